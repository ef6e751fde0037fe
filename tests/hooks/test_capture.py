import importlib.metadata

import pytest
import tiny_models as tiny
import torch

from nbhelpers.hooks.store import weight_fingerprint
from nbhelpers.inputs.text import load_text
from nbhelpers.protocol import PAPER

PLAIN = ["key_profile", "last_query", "lag_profile", "stationary_profile"]
ALL = [*PLAIN, "local_mass", "row_entropy", "row_metrics"]


def test_axes_coordinates_groups_and_provenance(llama):
    ids = tiny.make_tokens(20, n=3)
    got = tiny.capture_quietly(llama, ids, ALL)
    own = ["key", "key", "lag", "lag back", "distance", None, "metric"]
    for name, axis in zip(ALL, own, strict=True):
        assert got.axes[name] == ("sequence", "layer", "head", *([axis] if axis else []))
        assert got[name].shape == (3, 2, 4, *([len(got.coordinates[name])] if axis else []))
        assert got[name].dtype == torch.float32
        assert not got[name].is_inference()  # may be changed and differentiated like any tensor
    assert got.kv_groups == [0, 0, 1, 1]
    assert got.n_real.tolist() == [20, 20, 20]
    facts = got.provenance
    assert (facts["length"], facts["n_sequences"], facts["stream"]) == (20, 3, "self")
    assert (facts["dtype"], facts["device"], facts["attention"]) == ("float32", "cpu", "sdpa")
    assert facts["model"]["family"] == "llama"
    assert facts["versions"]["torch"] == importlib.metadata.version("torch")
    assert "nbhelpers" in facts["versions"]
    assert [reduction["name"] for reduction in facts["reductions"]] == ALL
    assert facts["reductions"][ALL.index("row_metrics")]["protocol"] == PAPER.hash


def test_inputs_and_weights_are_as_they_were_and_progress_is_not_shown(llama, capfd):
    ids, mask = tiny.make_tokens(20), tiny.make_padding(20, "left").bool()
    ids_before, mask_before, weights = ids.clone(), mask.clone(), weight_fingerprint(llama)
    tiny.capture_quietly(llama, ids, ALL, attention_mask=mask)
    assert torch.equal(ids, ids_before)
    assert torch.equal(mask, mask_before)
    assert weight_fingerprint(llama) == weights
    tiny.capture_quietly(llama, tiny.make_tokens(9))
    assert not capfd.readouterr().err


@pytest.mark.parametrize(("batch_size", "chunk"), [(1, None), (2, 3), (7, 1)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_and_chunks_do_not_matter(llama, batch_size, chunk, side):
    # Only the last batch holds a padded sequence.
    ids, options = tiny.make_tokens(20, n=5), {"attention_mask": tiny.make_padding(20, side, n=5)}
    parts = tiny.capture_quietly(llama, ids, ALL, batch_size=batch_size, chunk=chunk, **options)
    assert parts.n_real.tolist() == [20, 20, 20, 20, 13]
    tiny.assert_same_profiles(parts, tiny.capture_quietly(llama, ids, ALL, **options), 2e-5)


@pytest.mark.parametrize("family", ["llama", "bert", "bloom"])
def test_a_single_token(family):
    names = ["key_profile", "last_query", "lag_profile"]
    got = tiny.capture_quietly(tiny.make_model(family), tiny.make_tokens(1), [*names, "row_entropy"])
    for name in names:
        assert torch.equal(got[name], torch.ones(2, 2, 4, 1))
    assert not got.row_entropy.any()


def test_smollm2_equals_eager_to_the_rounding_of_the_model(smollm2):
    # SDPA rounds the hidden states of 30 layers elsewhere: one row drifts by 2e-6, a mean by less.
    ids = load_text("moby-dick", smollm2.tokenizer, n_sequences=2, length=64)
    attn = torch.from_numpy(tiny.eager_attention(smollm2.model, ids))
    lags = torch.stack([attn.diagonal(-lag, -2, -1).sum(-1) for lag in range(64)], -1) / 64
    wanted = {"key_profile": attn.mean(-2), "lag_profile": lags, "last_query": attn[..., -1, :]}
    for implementation, last in (("eager", 1e-6), ("sdpa", 5e-6)):
        smollm2.model.set_attn_implementation(implementation)
        got = tiny.capture_quietly(smollm2, ids, list(wanted))
        for name, expected in wanted.items():
            allowed = last if name == "last_query" else 1e-6
            assert (got[name] - expected).abs().max() <= allowed * attn.max(), (implementation, name)
    assert got.key_profile.shape == (2, 30, 9, 64)
    assert got.kv_groups == [0, 0, 0, 1, 1, 1, 2, 2, 2]

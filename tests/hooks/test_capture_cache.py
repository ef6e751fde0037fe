"""capture: what it leaves behind when interrupted, and how it resumes from its cache."""

import pytest
import torch
from tiny_models import assert_same_profiles, capture_quietly, make_model, make_padding, make_tokens, n_hooks

from nbhelpers.hooks.attention import RECORDER
from nbhelpers.hooks.reductions import KeyProfile, LocalMass, RowMetrics
from nbhelpers.protocol import PAPER


class Interrupted(KeyProfile):
    """A key profile that Ctrl-C hits after some batches."""

    after = None  # on the class: an attribute of the instance would name another result

    def finish(self, state, layout):
        cls = type(self)
        if cls.after is not None:
            cls.after -= 1
            if cls.after < 0:
                raise KeyboardInterrupt
        return super().finish(state, layout)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_an_interrupt_leaves_no_trace(monkeypatch, family):
    model, ids = make_model(family), make_tokens(20)
    hooks, implementation = n_hooks(model), model.config._attn_implementation
    monkeypatch.setattr(Interrupted, "after", 1)  # in the second layer
    with pytest.raises(KeyboardInterrupt):
        capture_quietly(model, ids, Interrupted())
    assert (n_hooks(model), model.config._attn_implementation) == (hooks, implementation)
    assert RECORDER.get(None) is None
    monkeypatch.setattr(Interrupted, "after", None)
    assert_same_profiles(capture_quietly(model, ids, Interrupted()), capture_quietly(model, ids))


def test_an_interrupted_run_keeps_what_is_done_and_resumes(monkeypatch, tmp_path, llama, forwards):
    ids = make_tokens(20, n=5)
    monkeypatch.setattr(Interrupted, "after", 2 * 2 + 1)  # two batches of two layers, and one layer more
    with pytest.raises(KeyboardInterrupt):
        capture_quietly(llama, ids, Interrupted(), batch_size=1, cache=tmp_path)
    assert len(forwards) == 3
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    monkeypatch.setattr(Interrupted, "after", None)
    resumed = capture_quietly(llama, ids, Interrupted(), batch_size=1, cache=tmp_path)
    assert len(forwards) == 3 + 3
    assert_same_profiles(resumed, capture_quietly(llama, ids, batch_size=1))
    assert resumed.provenance["n_sequences"] == 5
    del forwards[:]
    again = capture_quietly(llama, ids, Interrupted(), batch_size=1, cache=tmp_path)
    assert forwards == []
    assert torch.equal(again.key_profile, resumed.key_profile)


def test_files_and_fresh_batches_join(tmp_path, llama):
    # What a file gives back must equal what was never in one: a tuple became a list there.
    ids = make_tokens(20, n=3)
    whole = capture_quietly(llama, ids, LocalMass((5,)), batch_size=1, cache=tmp_path)
    sorted(tmp_path.rglob("*.safetensors"))[2].unlink()
    again = capture_quietly(llama, ids, LocalMass((5,)), batch_size=1, cache=tmp_path)
    assert torch.equal(again.local_mass, whole.local_mass)
    fresh = capture_quietly(llama, ids, LocalMass((5,)), batch_size=1)
    assert again.provenance == whole.provenance == fresh.provenance


@pytest.mark.parametrize("damage", [b"", b"not safetensors at all", None])
def test_a_corrupt_cache_file_is_rebuilt_with_a_warning(tmp_path, llama, forwards, damage):
    ids = make_tokens(20, n=3)
    expected = capture_quietly(llama, ids, batch_size=1, cache=tmp_path)
    victim = sorted(tmp_path.rglob("*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:-7] if damage is None else damage)
    del forwards[:]
    with pytest.warns(UserWarning, match=f"{victim.name} is damaged.*captured again"):
        rebuilt = capture_quietly(llama, ids, batch_size=1, cache=tmp_path)
    assert len(forwards) == 1
    assert torch.equal(rebuilt.key_profile, expected.key_profile)
    capture_quietly(llama, ids, batch_size=1, cache=tmp_path)
    assert len(forwards) == 1


def test_other_batches_find_other_files(tmp_path, llama):
    # The file of a single sequence must not stand in for a whole batch that starts with it.
    ids = make_tokens(20, n=5)
    for batch_size in (1, 2, 5, 3):
        got = capture_quietly(llama, ids, batch_size=batch_size, cache=tmp_path)
        assert got.n_sequences == 5
        assert_same_profiles(got, capture_quietly(llama, ids))


def rolled(weight):
    weight.copy_(weight.roll(8, 0))  # a head further


CHANGES = {
    "weight": lambda model: model.model.layers[1].self_attn.k_proj.weight[0, 0].add_(1e-3),
    "order of heads": lambda model: rolled(model.model.layers[0].self_attn.q_proj.weight),
    "frequency": lambda model: model.model.rotary_emb.inv_freq[1].mul_(0.5),
    "configuration": lambda model: setattr(model.config, "rms_norm_eps", 1e-2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_cache_knows_another_model(tmp_path, change):
    model, ids = make_model(), make_tokens(20)
    capture_quietly(model, ids, cache=tmp_path)
    with torch.no_grad():
        CHANGES[change](model)
    got = capture_quietly(model, ids, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(got.key_profile, capture_quietly(model, ids).key_profile)


def test_the_cache_knows_other_questions(tmp_path, llama):
    ids, mask = make_tokens(20), make_padding(20, "left")
    other_ids = ids.clone()
    other_ids[0, 0] += 1 if ids[0, 0] < 63 else -1
    asked = [
        (llama, ids, "key_profile", {}),
        (llama, other_ids, "key_profile", {}),
        (llama, ids, "last_query", {}),
        (llama, ids, "row_metrics", {}),
        (llama, ids, RowMetrics(PAPER.replace(window="boxcar")), {}),
        (llama, ids, LocalMass((5,)), {}),
        (llama, ids, "key_profile", {"attention_mask": mask}),
        (llama, ids[:, :10], "key_profile", {}),
        (make_model().bfloat16(), ids, "key_profile", {}),
    ]
    for count, (model, tokens, reduction, options) in enumerate(asked, 1):
        got = capture_quietly(model, tokens, reduction, **options, cache=tmp_path)
        assert len(list(tmp_path.iterdir())) == count
        assert_same_profiles(got, capture_quietly(model, tokens, reduction, **options))
    # An equal question is no other.
    capture_quietly(llama, ids, RowMetrics(PAPER.replace(window="boxcar")), cache=tmp_path)
    capture_quietly(llama, ids, attention_mask=torch.ones(2, 20), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(asked)


def test_the_cache_refuses_a_model_with_hooks(tmp_path, llama):
    handle = llama.model.layers[0].register_forward_hook(lambda module, args, output: output)
    try:
        with pytest.raises(ValueError, match=r"forward hooks.*without cache="):
            capture_quietly(llama, make_tokens(8), cache=tmp_path)
        capture_quietly(llama, make_tokens(8))  # without a cache hooks are welcome
    finally:
        handle.remove()

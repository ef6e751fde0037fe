import dataclasses

import numpy as np
import pytest
import pywt
import torch
from tiny_models import make_model

from nbhelpers import nulls
from nbhelpers.analysis import analyze
from nbhelpers.hooks.ablation import ablate_heads, token_losses
from nbhelpers.hooks.capture import capture
from nbhelpers.hooks.rotary import query_key_moments
from nbhelpers.inputs.models import load_model
from nbhelpers.inspector.reading import Stopped, read_text, shortest_text
from nbhelpers.kernels.scores import SCORES, read_by_rule
from nbhelpers.protocol import PAPER

TEXT = "the whale and the sea and the ship that sails the sea, again and again, until the night. " * 4


@pytest.fixture(scope="module")
def reading(tiny_llama):
    return read_text(tiny_llama, TEXT, length=96)


def test_numbers_are_those_of_analyze_and_the_null_is_uniform_attention(tiny_llama, reading):
    ids = torch.tensor([tiny_llama.tokenizer(TEXT)["input_ids"][:96]])
    table = analyze(tiny_llama, ids, PAPER, progress=False)
    assert set(reading.metrics) == {*table.metrics, *reading.scores}
    for layer, head in ((0, 0), (1, 3)):
        numbers = reading.numbers(layer, head)
        for metric in table.metrics:
            assert numbers.value[metric] == table.values(metric)[0, layer, head]
    order = np.argsort(reading.values("low_band").ravel()).tolist()
    assert numbers.percentile["low_band"] == 100 * (order.index(4 + 3) + 0.5) / 8
    profile = nulls.uniform_profiles(reading.n_tokens, causal=True).key_profile[0, 0, 0]
    assert reading.null_value("sink_mass") == pytest.approx(float(profile[0]), rel=1e-12)
    assert reading.null_value("positional_entropy") == pytest.approx(float(-(profile * profile.log()).sum()))


def test_a_head_is_seen_alike_in_matrix_and_profiles(tiny_llama, reading):
    for layer, head in ((0, 1), (1, 2)):
        view = reading.head(layer, head)
        n = reading.n_tokens
        assert view.attn.shape == (n, n)
        assert view.attn.mean(0) == pytest.approx(view.key_profile, abs=1e-6)
        lags = [np.trace(view.attn, offset=-lag) / n for lag in range(n)]
        assert lags == pytest.approx(view.lag_profile.tolist(), abs=1e-6)
        power = np.abs(np.fft.rfft(view.key_profile.astype(float) * np.hanning(n))) ** 2
        assert view.psd == pytest.approx(power / power.sum(), abs=1e-9)
        wanted = pywt.wavedec(view.key_profile.astype(float), "db2", level=len(view.levels) - 1)
        assert [len(level) for level in view.coefficients] == [len(level) for level in wanted]
        assert np.concatenate(view.coefficients) == pytest.approx(np.concatenate(wanted), abs=1e-9)


def test_another_protocol_needs_no_model(reading):
    protocol = PAPER.replace(signal="lag_profile", window="boxcar")
    changed = dataclasses.replace(reading, model=None).under(protocol)
    table = analyze(reading.model, reading.token_ids, changed.protocol, progress=False)
    assert changed.numbers(1, 1).value["low_band"] == table.values("low_band")[0, 1, 1]
    assert "self_mass" in changed.metrics
    assert reading.protocol == PAPER
    view = reading.under(PAPER.replace(sink="drop_renormalise")).head(0, 0)
    assert view.positions.tolist() == list(range(1, reading.n_tokens))
    assert view.scalogram.shape == (len(view.levels), reading.n_tokens - 1)


def test_scores_are_those_of_the_attention_shown(tiny_llama, reading):
    for layer in (0, 1):
        wanted = read_by_rule(reading.attention(layer), reading.token_ids)
        for at, name in enumerate(SCORES):
            np.testing.assert_allclose(reading.values(name)[layer], wanted[:, at], rtol=1e-5)
    lag_one = reading.observation.profiles.lag_profile[0, ..., 1] * reading.n_tokens / (reading.n_tokens - 1)
    np.testing.assert_allclose(reading.values("previous_token_score"), lag_one, rtol=1e-5)
    uniform = np.mean([1 / (query + 1) for query in range(1, reading.n_tokens)])
    assert reading.null_value("previous_token_score") == pytest.approx(uniform, rel=1e-5)


def test_kernels_are_those_of_the_library(tiny_llama, reading):
    ids, half = reading.token_ids, reading.n_tokens // 2
    computed = query_key_moments(tiny_llama, ids).kernels(half)
    measured = capture(tiny_llama, ids, ["lag_logits"], progress=False).lag_logits[0, ..., :half]
    for layer in (0, 1):
        found = reading.kernels(layer)
        np.testing.assert_allclose(found.computed, computed[layer], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(found.measured, measured[layer], rtol=1e-5, atol=1e-6)
    spread = np.abs(found.amplitudes).sum(-1)  # the kernel is a sum of cosines of these amplitudes
    assert (np.abs(found.computed) <= spread[:, None] * (1 + 1e-9)).all()
    assert found.wavelengths[0] == pytest.approx(2 * np.pi)


def test_ablation_is_the_loss_without_the_head(tiny_llama, reading):
    found = reading.ablate(1, 2)
    with ablate_heads(tiny_llama, [(1, 2)]):
        after = token_losses(tiny_llama, reading.token_ids)[0]
    before = token_losses(tiny_llama, reading.token_ids)[0]
    assert found.before == float(before.mean())
    assert found.after == float(after.mean())
    assert found.change == pytest.approx(float(found.changes.mean()), abs=1e-5)
    assert abs(found.change) > 1e-3
    assert len(found.changes) == reading.n_tokens - 1


def test_a_long_text_is_cut_and_says_so_and_progress_rises_to_one(tiny_llama, reading):
    n_all = len(tiny_llama.tokenizer(TEXT)["input_ids"])
    assert reading.n_tokens == 96
    assert f"first 96 of {n_all}" in reading.note
    cut = read_text(tiny_llama, TEXT * 4, length=1000)
    assert cut.n_tokens == 256
    assert "tiny-llama0 has 256 positions" in cut.note
    assert "".join(reading.tokens) == tiny_llama.tokenizer.decode(reading.token_ids[0])
    shares = []
    read_text(tiny_llama, TEXT, length=40, progress=shares.append)
    assert (shares, shares[-1]) == (sorted(shares), 1.0)
    assert len(shares) == 2 * 5  # layers, and the text, two variants, its queries and keys, its loss


def test_refusals(tiny_llama, reading):
    untokenized = dataclasses.replace(tiny_llama, tokenizer=None)
    for model, text, options, told in (
        (tiny_llama, "", {}, "empty"),
        (tiny_llama, " \n ", {}, "empty"),
        (tiny_llama, "a", {}, "at least 24"),
        (tiny_llama, TEXT, {"protocol": PAPER.replace(signal="rows")}, "signal='rows'"),
        (untokenized, TEXT, {}, "without a tokenizer"),
    ):
        with pytest.raises(ValueError, match=told):
            read_text(model, text, **options)
    assert shortest_text(PAPER) == 24  # db2 has 4 taps: 6 samples for a level, of a quarter of the text
    assert shortest_text(PAPER.replace(factors=())) == 6
    for place in ((2, 0), (0, 4), (-1, 0)):
        with pytest.raises(IndexError, match="layers run from 0 to 1"):
            reading.head(*place)


def test_stop_ends_between_layers_and_leaves_no_hook(tiny_llama):
    answers = iter([False, False, False, True])
    with pytest.raises(Stopped):
        read_text(tiny_llama, TEXT, stop=lambda: next(answers))
    assert next(answers, None) is None
    assert not any(module._forward_pre_hooks for module in tiny_llama.model.modules())
    assert tiny_llama.model.config._attn_implementation == "sdpa"


def test_an_encoder_has_everything_but_a_loss():
    reading = read_text(load_model("random:minilm-l6"), "the sea and the ship and the whale " * 6)
    assert reading.losses is None
    with pytest.raises(ValueError, match="not causal"):
        reading.ablate(0, 0)
    assert reading.head(2, 3).lags[0] == 1 - reading.n_tokens
    with pytest.raises(ValueError, match="no kernel from weights"):
        reading.kernels(0)


def test_layers_without_attention_are_shown_as_such(tmp_path, tiny_tokenizer):
    kinds = {"layer_types": ["conv", "full_attention", "full_attention"], "num_key_value_heads": 2}
    make_model("lfm2", layers=3, vocab_size=300, **kinds).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    reading = read_text(load_model(tmp_path), TEXT, length=64)
    values = reading.values("low_band")
    assert values.shape == reading.shape == (3, 4)
    assert np.isfinite(values).all(-1).tolist() == [False, True, True]
    with pytest.raises(IndexError, match="layer 0 has no softmax attention; the layers 1 to 2 have"):
        reading.head(0, 1)
    assert reading.nearest_head(0, 9) == (1, 3)
    view = reading.head(2, 1)
    np.testing.assert_allclose(view.attn.mean(0), view.key_profile, rtol=1e-4, atol=1e-6)
    assert reading.ablate(2, 1).change != 0

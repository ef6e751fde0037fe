import numpy as np
import pytest
import tiny_models as tiny
import torch
from torch import nn

from nbhelpers.hooks import attention
from nbhelpers.hooks.attention import Recorder, innermost_attention, score_blocks
from nbhelpers.hooks.exchange import holding
from nbhelpers.hooks.reductions import resolve

BATCH, HEADS, GROUPS, LENGTH, WIDTH = 2, 4, 2, 11, 6


class Causal(nn.Module):
    is_causal = True


def vectors(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(BATCH, HEADS, LENGTH, WIDTH, generator=generator) * 2
    key = torch.randn(BATCH, GROUPS, LENGTH, WIDTH, generator=generator) * 2
    return query.to(dtype), key.to(dtype)


def oracle(query, key, visible=None, *, bias=0.0, scaling=WIDTH**-0.5, softcap=None, sinks=None):
    query, key = query.double().numpy(), key.double().numpy()
    attn = np.zeros((BATCH, HEADS, LENGTH, LENGTH))
    for b, h, i in np.ndindex(BATCH, HEADS, LENGTH):
        scores = key[b, h // (HEADS // GROUPS)] @ query[b, h, i] * scaling
        scores = softcap * np.tanh(scores / softcap) if softcap else scores
        scores = scores + np.broadcast_to(bias, attn.shape)[b, h, i]
        hidden = np.zeros(LENGTH, bool) if visible is None else ~np.broadcast_to(visible, attn.shape)[b, h, i]
        weights = np.where(hidden, 0.0, np.exp(scores))
        attn[b, h, i] = weights / (weights.sum() + (np.exp(sinks[h]) if sinks is not None else 0.0))
    return attn


def assembled(blocks):
    attn = torch.zeros(BATCH, HEADS, LENGTH, LENGTH)
    expected_start = 0
    for start, scores, part in blocks:
        assert start == expected_start
        assert scores is None or scores.shape == part.shape
        assert part.dtype == torch.float32
        attn[:, :, start : start + part.shape[2], : part.shape[3]] = part
        expected_start += part.shape[2]
    assert expected_start == LENGTH
    return attn.double().numpy()


TRIANGLE = np.tril(np.ones((LENGTH, LENGTH), bool))
WINDOW = TRIANGLE & ~np.tril(np.ones((LENGTH, LENGTH), bool), -4)


@pytest.mark.parametrize("rows", [1, 3, 4, LENGTH, 100])
@pytest.mark.parametrize("masked", ["causal", "none", "boolean", "additive", "row of keys"])
def test_blocks_hold_the_softmax(masked, rows):
    query, key = vectors()
    before = query.clone(), key.clone()
    visible = {"none": None, "causal": TRIANGLE, "row of keys": np.arange(LENGTH) < 7}.get(masked, WINDOW)
    options = {} if masked == "causal" else {"is_causal": False}  # the module says it is causal
    mask = None if masked in ("none", "causal") else torch.from_numpy(np.atleast_2d(visible))[None, None]
    if masked == "additive":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    got = assembled(score_blocks(Causal(), query, key, mask, rows, **options))
    assert abs(got - oracle(query, key, visible)).max() < 1e-6
    assert torch.equal(query, before[0])
    assert torch.equal(key, before[1])


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_soft_cap_scaling_bias_and_sinks(rows):
    query, key = vectors()
    bias = torch.randn(1, HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(3))
    sinks = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    options = {"scaling": 0.7, "softcap": 3.0}
    blocks = score_blocks(Causal(), query, key, None, rows, position_bias=bias, s_aux=sinks, **options)
    given = {"bias": bias.double().numpy(), "sinks": sinks.double().numpy()}
    expected = oracle(query, key, TRIANGLE, **given, **options)
    assert abs(assembled(blocks) - expected).max() < 1e-6
    assert expected.sum(-1).max() < 1


def test_a_single_query_sees_every_key():
    query, key = vectors()
    (block,) = score_blocks(Causal(), query[:, :, -1:], key, None, 8)
    assert abs(block[2].double().numpy() - oracle(query, key)[:, :, -1:]).max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_before_the_product_and_a_module_that_says_nothing_is_causal(dtype):
    query, key = vectors(dtype=dtype)
    got = assembled(score_blocks(nn.Identity(), query, key, None, 4))
    assert abs(got - oracle(query, key, TRIANGLE)).max() < 1e-6


def test_a_hidden_row_gives_finite_numbers():
    query, key = vectors()
    mask = torch.zeros(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    for form in (mask, torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)):
        assert all(attn.isfinite().all() for _, _, attn in score_blocks(Causal(), query, key, form, 4))


def recorder_for(model, **options):
    return Recorder(model, resolve("key_profile"), **options)


def test_an_implementation_that_hides_its_mask_is_refused():
    model = tiny.make_model()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"'flash_attention_2'.*set_attn_implementation\('sdpa'\)"):
        tiny.capture_quietly(model, tiny.make_tokens(8))
    assert attention.RECORDER.get(None) is None


def test_rows_that_do_not_sum_to_one_are_refused_unless_padded_and_unequal_heads():
    model = tiny.make_model()
    recorder = recorder_for(model)
    for module, value in zip(innermost_attention(model), (1, 1.25), strict=True):
        assert recorder.wants(module, 8, 8)
        recorder.observe_probabilities(torch.full((1, 4, 8, 8), value / 8))
    with pytest.raises(ValueError, match=r"layers \[1\].*miss 1 by up to 0\.25.*allowed 0\.001"):
        recorder.profiles()
    with pytest.raises(NotImplementedError, match="4 and 6 heads"):
        recorder.observe_probabilities(torch.full((1, 6, 8, 8), 1 / 8))
    mask = torch.ones(1, 8, dtype=torch.long)
    mask[0, 5:] = 0
    attn = torch.full((1, 4, 8, 8), 1 / 8)
    attn[:, :, 5:] = 3.0
    model = tiny.make_model("bert", layers=1)  # whose queries see later keys, as these do
    recorder = recorder_for(model, attention_mask=mask)
    assert recorder.wants(*innermost_attention(model), 8, 8)
    recorder.observe_probabilities(attn)
    assert torch.allclose(recorder.profiles().key_profile, torch.tensor(1 / 8))


def test_autocast_on_the_module_route():
    model, ids = tiny.make_model("bloom"), tiny.make_tokens(40)
    with torch.autocast("cpu", torch.bfloat16):
        got = tiny.captured_matrix(model, ids)
    assert abs(got - tiny.eager_attention(model, ids)).max() < 0.05


def test_autocast_does_not_degrade_what_is_recorded_and_infinity_is_refused():
    query, key = vectors()
    attn = torch.from_numpy(oracle(query, key, TRIANGLE)).float()
    model = tiny.make_model(layers=1)
    (module,) = innermost_attention(model)
    module.is_causal, output = True, (attn @ key.repeat_interleave(2, 1)).transpose(1, 2)

    def recorded(*by_vectors, on):
        recorder = Recorder(model, [tiny.Whole(), *resolve("row_entropy")])
        assert recorder.wants(module, *attn.shape[2:])
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            if by_vectors:
                recorder.observe(module, *by_vectors, key, None, output)
            else:
                recorder.observe_probabilities(attn)
        return recorder.profiles()

    for given in ((query, key), ()):
        tiny.assert_same_profiles(recorded(*given, on=True), recorded(*given, on=False))
    query[0, 0, 0, 0] = torch.inf  # the first row sees one key, and the softmax of one score is 1
    with pytest.raises(ValueError, match="not a distribution"):
        recorded(query, key, on=False)


def test_calls_of_other_streams_are_counted():
    model = tiny.make_model("t5")
    recorder = Recorder(model, resolve(["key_profile"]), stream="decoder")
    inside = [module for module in innermost_attention(model) if "encoder" in recorder.names[module][0][:8]]
    assert [recorder.wants(module, 8, 8) for module in inside] == [False, False]
    with pytest.raises(RuntimeError, match=r"\(2 calls\).* of other streams"):
        recorder.require_layers([])


def test_what_follows_the_mask_without_a_name_keeps_its_name():
    def original(module, query, key, value, mask, dropout, scaling):
        return dropout, scaling

    module, half = nn.Linear(2, 2), torch.ones(1)
    changes = {module: lambda query, key, options: (query, key, {**options, "scaling": 3.0})}
    with holding(attention.CHANGES, changes):
        assert attention.recorded(original)(module, half, half, half, None, 0.25, 2.0) == (0.25, 3.0)


def test_only_modules_of_the_model_and_of_the_stream_are_wanted():
    model, ids = tiny.make_model("bart"), tiny.make_tokens(LENGTH)
    recorder = Recorder(model, stream="cross")
    assert not recorder.wants(nn.Identity(), 8, 8)
    assert recorder.n_calls == 0
    attention.forward(model, recorder, ids, decoder_ids=ids)
    given = {recorder.names[module][0] for module in recorder.cross}  # what the encoder made
    assert given == {name for name, _ in model.named_modules() if name.endswith("encoder_attn")}

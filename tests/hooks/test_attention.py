"""The two routes to attention: blocks of probabilities, what is refused, and that nothing is left behind."""

import numpy as np
import pytest
import torch
from tiny_models import (
    attention_from_vectors,
    capture_quietly,
    captured_matrix,
    eager_attention,
    make_model,
    make_tokens,
    n_hooks,
)
from torch import nn

from nbhelpers.hooks.attention import (
    CPU_BLOCK_BYTES,
    RECORDER,
    Recorder,
    default_chunk,
    innermost_attention,
    interface_route,
    module_route,
    score_blocks,
    stream_of,
)
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
    """Softmax over keys, head by head and row by row, in float64."""
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
    """Put blocks together again, checking what each promises."""
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
    options, visible = {"is_causal": False}, None
    mask = None
    if masked == "causal":
        options, visible = {}, TRIANGLE  # the module says it is causal
    elif masked == "boolean":
        mask, visible = torch.from_numpy(WINDOW)[None, None], WINDOW
    elif masked == "additive":
        mask, visible = torch.zeros(1, 1, LENGTH, LENGTH), WINDOW
        mask = mask.masked_fill(~torch.from_numpy(WINDOW), torch.finfo(torch.float32).min)
    elif masked == "row of keys":
        visible = np.arange(LENGTH) < 7
        mask = torch.from_numpy(visible)[None, None, None]
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
    got = assembled(
        score_blocks(Causal(), query, key, None, rows, **options, position_bias=bias, s_aux=sinks)
    )
    expected = oracle(
        query, key, TRIANGLE, bias=bias.double().numpy(), sinks=sinks.double().numpy(), **options
    )
    assert abs(got - expected).max() < 1e-6
    assert expected.sum(-1).max() < 1


def test_a_single_query_sees_every_key():
    query, key = vectors()
    (block,) = score_blocks(Causal(), query[:, :, -1:], key, None, 8)
    assert abs(block[2].double().numpy() - oracle(query, key)[:, :, -1:]).max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_before_the_product(dtype):
    query, key = vectors(dtype=dtype)
    got = assembled(score_blocks(Causal(), query, key, None, 4))
    assert abs(got - oracle(query, key, TRIANGLE)).max() < 1e-6


def test_a_hidden_row_gives_finite_numbers():
    query, key = vectors()
    mask = torch.zeros(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    for form in (mask, torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)):
        assert all(attn.isfinite().all() for _, _, attn in score_blocks(Causal(), query, key, form, 4))


def test_default_chunk_fits_the_block_and_never_vanishes():
    assert default_chunk(1, 9, 2048, "cpu") % 8 == 0
    assert 4 * 9 * 2048 * default_chunk(1, 9, 2048, "cpu") <= CPU_BLOCK_BYTES
    assert default_chunk(64, 64, 8192, "cpu") == 8
    assert default_chunk(1, 9, 2048, "cuda") > default_chunk(1, 9, 2048, "cpu")


@pytest.mark.parametrize(
    ("name", "encoder_decoder", "stream"),
    [
        ("model.layers.0.self_attn", False, "self"),
        ("decoder.layers.0.self_attn", False, "self"),  # OPT calls its stack a decoder
        ("encoder.block.0.layer.0.SelfAttention", True, "encoder"),
        ("decoder.block.0.layer.0.SelfAttention", True, "decoder"),
        ("decoder.block.0.layer.1.EncDecAttention", True, "cross"),
        ("model.decoder.layers.1.encoder_attn", True, "cross"),
        ("encoder.layer.1.crossattention.self", False, "cross"),
    ],
)
def test_streams_are_told_by_name(name, encoder_decoder, stream):
    assert stream_of(name, encoder_decoder) == stream


@pytest.mark.parametrize(("family", "n_layers"), [("llama", 2), ("bert", 2), ("bloom", 2), ("t5", 6)])
def test_the_innermost_attention_modules(family, n_layers):
    found = innermost_attention(make_model(family))
    assert len(found) == n_layers
    assert not any("Attention" in type(child).__name__ for module in found for child in module.children())


def recorder_for(model, reductions="key_profile", **options):
    return Recorder(model, resolve(reductions), **options)


@pytest.mark.parametrize(("family", "route"), [("llama", interface_route), ("bloom", module_route)])
def test_a_route_undoes_itself_after_an_error(family, route):
    model = make_model(family)
    implementation, hooks = model.config._attn_implementation, n_hooks(model)
    inside = None

    def interrupted():
        nonlocal inside
        with route(model, recorder_for(model)):
            inside = model.config._attn_implementation, n_hooks(model)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert inside != (implementation, hooks)
    assert (model.config._attn_implementation, n_hooks(model)) == (implementation, hooks)
    assert RECORDER.get(None) is None


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_output_is_bitwise_that_of_the_implementation(implementation):
    model, ids = make_model(), make_tokens(24)
    model.set_attn_implementation(implementation)
    with torch.inference_mode():
        before = model.model(ids).last_hidden_state
        with interface_route(model, recorder_for(model)) as extra:
            during = model.model(ids, **extra).last_hidden_state
    assert torch.equal(before, during)
    assert model.config._attn_implementation == implementation


def test_an_implementation_that_hides_its_mask_is_refused():
    model = make_model()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"'flash_attention_2'.*set_attn_implementation\('sdpa'\)"):
        capture_quietly(model, make_tokens(8))
    assert RECORDER.get(None) is None


def test_no_call_names_the_family_and_the_way_out():
    recorder = recorder_for(make_model())
    with pytest.raises(RuntimeError, match=r"llama.*'self' stream.*0 calls.*register_family"):
        recorder.profiles()


def test_rows_that_do_not_sum_to_one_are_named():
    recorder = recorder_for(make_model())
    recorder.observe_probabilities(torch.full((1, 4, 8, 8), 1 / 8))
    recorder.observe_probabilities(torch.full((1, 4, 8, 8), 1.25 / 8))
    with pytest.raises(ValueError, match=r"layers \[1\].*miss 1 by up to 0\.25.*allowed 0\.001"):
        recorder.profiles()


def test_padded_rows_need_not_sum_to_one():
    mask = torch.ones(1, 8, dtype=torch.long)
    mask[0, 5:] = 0
    attn = torch.full((1, 4, 8, 8), 1 / 8)
    attn[:, :, 5:] = 3.0
    recorder = recorder_for(make_model(), attention_mask=mask)
    recorder.observe_probabilities(attn)
    assert torch.allclose(recorder.profiles().key_profile, torch.tensor(1 / 8))


def test_layers_of_unequal_heads_are_refused():
    recorder = recorder_for(make_model())
    recorder.observe_probabilities(torch.full((1, 4, 8, 8), 1 / 8))
    with pytest.raises(NotImplementedError, match="4 and 6 heads"):
        recorder.observe_probabilities(torch.full((1, 6, 8, 8), 1 / 8))


def test_autocast_does_not_degrade_the_scores():
    model, ids = make_model(), make_tokens(40)
    with torch.autocast("cpu", torch.bfloat16):
        expected = attention_from_vectors(model, ids)
        got = captured_matrix(model, ids)
    assert not np.array_equal(got, captured_matrix(model, ids))  # autocast did something
    assert abs(got - expected).max() < 2e-6


def test_autocast_on_the_module_route():
    model, ids = make_model("bloom"), make_tokens(40)
    with torch.autocast("cpu", torch.bfloat16):
        got = captured_matrix(model, ids)
    assert abs(got - eager_attention(model, ids)).max() < 0.05


def test_autocast_does_not_degrade_reductions_on_the_module_route():
    recorder, plain = (recorder_for(make_model("bloom"), "row_metrics") for _ in range(2))
    scores = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)).mul_(3)
    attn = scores.masked_fill(torch.ones(32, 32, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    plain.observe_probabilities(attn)
    with torch.autocast("cpu", torch.bfloat16):
        recorder.observe_probabilities(attn)
    assert (recorder.profiles().row_metrics - plain.profiles().row_metrics).abs().max() < 1e-6

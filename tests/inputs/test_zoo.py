import itertools
import math

import numpy as np
import pytest
import torch
from tiny_models import captured_matrix, make_model, make_padding, make_tokens
from tolerances import assert_close

from nbhelpers.inputs.models import describe, load_model
from nbhelpers.inputs.zoo import ENCODINGS, ZooConfig, ZooForLanguageModeling, build
from nbhelpers.kernels import rope

MASKS = [True, False]
LENGTH = 24


def make(encoding="rope", *, causal=True, std=0.3, **options):
    options |= {"position_encoding": encoding, "is_causal": causal, "train_length": 64}
    return make_model("nbhelpers_zoo", std=std, **options)


def logits_of(model, ids, **options):
    with torch.inference_mode():
        return model(ids, **options).logits


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_only_nope_is_blind_to_order_without_a_mask(encoding):
    model, ids = make(encoding, causal=False), make_tokens(LENGTH)
    order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(0))
    difference = (logits_of(model, ids[:, order]) - logits_of(model, ids)[:, order]).abs().max()
    assert (difference < 1e-4) == (encoding == "nope")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_later_tokens_change_nothing_before_them_if_causal(encoding):
    ids = make_tokens(LENGTH)
    for causal in MASKS:
        model = make(encoding, causal=causal)
        whole, prefix = logits_of(model, ids)[:, :10], logits_of(model, ids[:, :10])
        difference = float((whole - prefix).abs().max() / whole.abs().max())
        assert difference < 1e-5 if causal else difference > 1e-2


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("causal", MASKS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_padding_is_not_seen(encoding, causal, side):
    model, ids, mask = make(encoding, causal=causal), make_tokens(LENGTH), make_padding(LENGTH, side)
    real = mask == 1
    first, second = (logits_of(model, x, attention_mask=mask) for x in (ids, torch.where(real, ids, 3)))
    assert_close(first[real], second[real])
    assert first.isfinite().all()


@pytest.mark.parametrize("causal", MASKS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_training_and_measuring_use_the_same_attention(encoding, causal):
    # Training writes attention out ("eager"); measuring uses SDPA.
    model, ids = make(encoding, causal=causal), make_tokens(LENGTH)
    expected = logits_of(model, ids)
    model.set_attn_implementation("eager")
    assert_close(logits_of(model, ids), expected)


def slow_first_layer(model, ids, encoding, *, causal):
    """Return the attention of the first layer, (sequence, head, query, key), in float64, entry by entry."""
    weights = {name: w.detach().double().numpy() for name, w in model.named_parameters()}
    config, length = model.config, ids.shape[1]
    width, n_heads = config.hidden_size, config.num_attention_heads
    x = weights["model.token.weight"][ids.numpy()]
    if encoding == "learned":
        x = x + weights["model.position.weight"][:length]
    if encoding == "sinusoidal":
        pair = np.arange(width) // 2
        angle = np.arange(length)[:, None] * 10000.0 ** (-2 * pair / width)
        x = x + 0.02 * np.where(np.arange(width) % 2, np.cos(angle), np.sin(angle))
    x = x * math.sqrt(width)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    projected = x @ weights["model.layers.0.attention.query_key_value.weight"].T
    query, key = (projected[..., i * width : (i + 1) * width] for i in range(2))
    half = width // n_heads // 2
    share = {"rope": half, "prope": round(0.75 * half)}.get(encoding, 0)
    frequency = 1000.0 ** (-np.arange(half) / half) * (np.arange(half) < share)
    attn = np.zeros((len(ids), n_heads, length, length))
    for sequence, head, i in np.ndindex(len(ids), n_heads, length):
        part = slice(head * 2 * half, (head + 1) * 2 * half)
        scores = np.full(length, -np.inf)
        for j in range(i + 1 if causal else length):
            q, k = query[sequence, i, part], key[sequence, j, part]
            turn = np.exp(1j * (i - j) * frequency)
            dot = ((q[:half] + 1j * q[half:]) * turn * (k[:half] - 1j * k[half:])).real.sum()
            scores[j] = dot / math.sqrt(2 * half)
            if encoding == "alibi":
                scores[j] -= 2.0 ** (-2 * (head + 1)) * abs(i - j)
            if encoding == "t5":
                bucket = rope.t5_bucket(j - i, bidirectional=not causal)
                scores[j] += weights["model.bias.weight"][bucket, head]
        exponential = np.exp(scores - scores.max())
        attn[sequence, head, i] = exponential / exponential.sum()
    return attn


@pytest.mark.parametrize("causal", MASKS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_captured_attention_of_the_first_layer_is_that_of_the_formulas(encoding, causal):
    model, ids = make(encoding, causal=causal), make_tokens(12)
    expected = slow_first_layer(model, ids, encoding, causal=causal)
    got = captured_matrix(model, ids, chunk=5)[:, 0]
    assert abs(got - expected).max() < 1e-5
    assert expected[..., -1, :].max() > 3 / 12  # far from uniform


def test_models_of_one_seed_start_from_the_same_weights_up_to_the_encodings_own():
    counts = {e: describe(build(ZooConfig(position_encoding=e))).n_parameters for e in ENCODINGS}
    plain = 2048 * 128 + 4 * (12 * 128**2 + 2 * 128) + 128  # tokens, layers (attention 4, MLP 8), last norm
    own = {"learned": 256 * 128, "t5": 32 * 4}
    assert counts == {e: plain + own.get(e, 0) for e in ENCODINGS}
    first = dict(build(ZooConfig(position_encoding="nope"), seed=3).named_parameters())
    for encoding, causal in itertools.product(ENCODINGS, MASKS):
        config = ZooConfig(position_encoding=encoding, is_causal=causal)
        weights = dict(build(config, seed=3).named_parameters())
        assert all(torch.equal(first[name], weights[name]) for name in first)
    other = dict(build(ZooConfig(position_encoding="nope"), seed=4).named_parameters())
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].ndim > 1)


def test_weights_start_with_the_stated_deviation():
    state = torch.get_rng_state()
    config = ZooConfig(num_hidden_layers=2, position_encoding="learned", position_initializer_range=0.002)
    model = build(config, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    layer, into_stream = model.model.layers[1], 0.02 / math.sqrt(2 * 2)
    for module, std in (
        (model.model.token, 0.02), (model.model.position, 0.002),
        (layer.attention.query_key_value, 0.02), (layer.mlp_in, 0.02),
        (layer.attention.output, into_stream), (layer.mlp_out, into_stream),
    ):  # fmt: skip
        error = 4 * std / math.sqrt(2 * module.weight.numel())  # of a standard deviation, four times
        assert abs(float(module.weight.detach().std()) - std) < error
    assert model.lm_head.weight is model.model.token.weight


def test_loss_is_the_mean_over_the_positions_that_predict():
    model, ids = make(), make_tokens(LENGTH)
    labels = make_tokens(LENGTH, seed=2)
    labels[0, 5:] = -100
    with torch.inference_mode():
        loss = model(ids, labels=labels).loss
    log_p = logits_of(model, ids).double().log_softmax(-1)
    losses = [-log_p[s, i, labels[s, i]] for s, i in np.ndindex(2, LENGTH) if labels[s, i] != -100]
    assert len(losses) == 5 + LENGTH
    assert_close(loss, torch.stack(losses).mean(), dtype=torch.float32)


@pytest.mark.parametrize("causal", MASKS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_saved_loaded_and_described(encoding, causal, tmp_path):
    model, ids = make(encoding, causal=causal), make_tokens(LENGTH)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, device="cpu")
    d = loaded.description
    assert d.position_encoding == {"prope": "rope", "nope": "none"}.get(encoding, encoding)
    assert d.rope_theta == (1000.0 if "rope" in encoding else None)
    assert d.rotary_fraction == {"rope": 1.0, "prope": 0.75}.get(encoding)
    assert d.causal == causal
    assert d.max_positions == (64 if encoding == "learned" else None)
    assert (d.n_layers, d.n_heads, d.n_kv_heads, d.head_dim) == (2, 4, 4, 8)
    again = ZooForLanguageModeling.from_pretrained(tmp_path)
    assert torch.equal(logits_of(again, ids), logits_of(model, ids))
    with torch.inference_mode():
        assert torch.equal(loaded.model.base_model(ids)[0], model.model(ids)[0])
    fresh = load_model(f"random:{tmp_path}", device="cpu")
    weights, other = (m.model.base_model.layers[0].mlp_in.weight for m in (loaded, fresh))
    assert not torch.equal(weights, other)
    assert 0.015 < float(other.detach().std()) < 0.025


def test_refusals():
    model = make("learned")
    logits_of(model, make_tokens(64))
    for refused, said in (
        (lambda: captured_matrix(model, make_tokens(65)), "65.*64"),
        (lambda: logits_of(model, make_tokens(65)), "65 tokens; this model learned 64"),
        (lambda: ZooConfig(position_encoding="rotary"), "'rotary'; the zoo has rope, prope"),
        (lambda: ZooConfig(hidden_size=36, num_attention_heads=4), "hidden_size is 36; .* multiple of 8"),
    ):
        with pytest.raises(ValueError, match=said):
            refused()
    logits_of(make("rope"), make_tokens(65))

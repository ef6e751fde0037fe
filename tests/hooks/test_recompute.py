import pytest
import torch
from tiny_models import capture_quietly, eager_attention, make_model, make_tokens

from nbhelpers.hooks.recompute import attention_modules, cache_attention

LENGTH = 21


@pytest.mark.parametrize("family", ["llama", "bert", "bloom", "gpt_oss"])
def test_every_layer_equals_eager_attention(family):
    model, ids = make_model(family), make_tokens(LENGTH, n=1)
    kept = cache_attention(model, ids)
    wanted = torch.as_tensor(eager_attention(model, ids))[0]  # (layer, head, query, key)
    assert kept.layers == list(range(len(wanted)))
    for layer in (1, 0, 1):  # backwards and again: what is kept of the last layer must not be mistaken
        assert (kept.layer(layer) - wanted[layer]).abs().max() <= 2e-6


def test_mean_scores_by_lag_are_those_of_capture():
    model, ids = make_model("llama"), make_tokens(LENGTH, n=1)
    wanted = capture_quietly(model, ids, "lag_logits").lag_logits[0]  # (layer, head, lag)
    got = torch.stack([cache_attention(model, ids).lag_logits(layer, causal=True) for layer in (0, 1)])
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5, equal_nan=True)


def test_of_an_encoder_decoder_the_encoder_is_read():
    model, ids = make_model("t5"), make_tokens(LENGTH, n=1)
    with torch.inference_mode():
        model.set_attn_implementation("eager")
        wanted = model.get_encoder()(ids, output_attentions=True).attentions
        model.set_attn_implementation("sdpa")
    kept = cache_attention(model, ids)
    assert (kept.layer(1) - wanted[1][0]).abs().max() <= 2e-6
    assert len(attention_modules(model)) == 2


def test_refusals():
    model = make_model("llama")
    with pytest.raises(ValueError, match=r"one sequence .* got \(2, 21\)"):
        cache_attention(model, make_tokens(LENGTH, n=2))
    kept = cache_attention(model, make_tokens(LENGTH, n=1))
    heads = model.config.num_attention_heads + model.config.num_key_value_heads
    assert kept.nbytes == 2 * 4 * LENGTH * heads * 8, "queries and keys of two layers, heads of 8, float32"
    for layer in (-1, 2):
        with pytest.raises(IndexError, match=f"layer {layer} .* 0 to 1"):
            kept.layer(layer)

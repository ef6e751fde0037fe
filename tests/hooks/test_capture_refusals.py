"""capture: what it refuses, and what its errors say."""

import pytest
import torch
from tiny_models import capture_quietly, make_model, make_padding, make_tokens, n_hooks

from nbhelpers.inputs import families


def test_train_mode_is_refused():
    with pytest.raises(ValueError, match=r"train mode.*model.eval\(\)"):
        capture_quietly(make_model().train(), make_tokens(8))


def test_a_sequence_longer_than_the_positions(llama):
    with pytest.raises(ValueError, match=r"have 257 tokens.*has 256 positions.*at most 256"):
        capture_quietly(llama, make_tokens(257))


@pytest.mark.parametrize("word", [-1, 64, 50_000])
def test_ids_outside_the_vocabulary(llama, word):
    ids = make_tokens(8)
    ids[1, 3] = word
    with pytest.raises(ValueError, match=rf"run from .*{word}.*knows 0 to 63.*tokenizer"):
        capture_quietly(llama, ids)


@pytest.mark.parametrize(
    "ids", [torch.rand(2, 8), torch.ones(8, dtype=torch.long), torch.ones(0, 8, dtype=torch.long)]
)
def test_ids_of_another_form(llama, ids):
    with pytest.raises(ValueError, match=r"integers \(sequence, position\), not empty"):
        capture_quietly(llama, ids)


def test_a_fully_padded_row(llama):
    mask = make_padding(8, "left", n=3, hidden=8)
    with pytest.raises(ValueError, match=r"Sequences \[2\] are padding"):
        capture_quietly(llama, make_tokens(8, n=3), attention_mask=mask)


def test_a_mask_of_another_shape(llama):
    with pytest.raises(ValueError, match=r"shape \(2, 7\), token_ids \(2, 8\)"):
        capture_quietly(llama, make_tokens(8), attention_mask=torch.ones(2, 7))


def test_a_mask_of_other_values(llama):
    with pytest.raises(ValueError, match=r"1 for tokens and 0 for padding.*-10000"):
        capture_quietly(llama, make_tokens(8), attention_mask=torch.full((2, 8), -10000.0))


@pytest.mark.parametrize("name", ["batch_size", "chunk"])
@pytest.mark.parametrize("value", [0, -3])
def test_impossible_sizes(llama, name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 1.*got {value}"):
        capture_quietly(llama, make_tokens(8), **{name: value})


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_nan_weights_name_the_layer(family, layer):
    model = make_model(family)
    with torch.no_grad():
        if family == "llama":
            model.model.layers[layer].self_attn.q_proj.weight[3, 3] = torch.nan
        else:
            model.transformer.h[layer].self_attention.query_key_value.weight[3, 3] = torch.nan
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match=rf"layers \[{layer}[],].* is not a distribution.*nan"):
        capture_quietly(model, make_tokens(8))
    assert model.config._attn_implementation == before


def test_attention_of_the_module_route_that_does_not_sum_to_one():
    model = make_model("bloom")
    attention = model.transformer.h[1].self_attention
    handle = attention.register_forward_hook(
        lambda module, args, output: (output[0], output[1] * 1.5), prepend=True
    )
    with pytest.raises(ValueError, match=r"layers \[1\].*miss 1 by up to 0\.5"):
        capture_quietly(model, make_tokens(8))
    handle.remove()
    assert n_hooks(model) == n_hooks(make_model("bloom"))


def test_an_unknown_stream(llama):
    with pytest.raises(ValueError, match="streams self; 'cross' was asked for"):
        capture_quietly(llama, make_tokens(8), stream="cross")
    with pytest.raises(ValueError, match="streams encoder, decoder, cross; 'self'"):
        capture_quietly(make_model("t5"), make_tokens(8), stream="self")


def test_decoder_ids_are_checked(llama):
    t5, ids = make_model("t5"), make_tokens(8)
    with pytest.raises(ValueError, match=r"decoder_ids run from .* to 99"):
        capture_quietly(t5, ids, stream="cross", decoder_ids=torch.full((2, 5), 99))
    with pytest.raises(ValueError, match=r"with 2 sequences; got \(1, 5\)"):
        capture_quietly(t5, ids, stream="cross", decoder_ids=make_tokens(5, n=1))
    with pytest.raises(ValueError, match="one stack"):
        capture_quietly(llama, ids, decoder_ids=ids)


def test_a_family_that_bypasses_the_interface(monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "bloom", families.Family("bloom", "alibi", route="interface"))
    model = make_model("bloom")
    before = model.config._attn_implementation
    with pytest.raises(
        RuntimeError, match=r"bloom: no attention was seen.*register_family\(.*route='module'"
    ):
        capture_quietly(model, make_tokens(8))
    assert model.config._attn_implementation == before

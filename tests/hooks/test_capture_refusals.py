from types import SimpleNamespace

import families_walk as walk
import pytest
import torch
from tiny_models import capture_quietly, make_model, make_padding, make_tokens

from nbhelpers.hooks.layers import layer_numbers
from nbhelpers.hooks.recompute import cache_attention
from nbhelpers.inputs import families
from nbhelpers.inputs.models import describe

IDS = make_tokens(8, n=3)
MASK = torch.ones(3, 8)
PADDED = make_padding(8, "left", n=3, hidden=8)
BAD = {
    "longer than the positions": ({"ids": make_tokens(257)}, r"257 tokens.*has 256 positions"),
    "negative id": ({"ids": IDS - IDS.max()}, r"run from -.*knows 0 to 63"),
    "id beyond the vocabulary": ({"ids": IDS - IDS.max() + 64}, r"to 64 but.*knows 0 to 63"),
    "a fully padded row": ({"attention_mask": PADDED}, r"Sequences \[2\] of attention_mask are padding"),
    "a mask of another shape": ({"attention_mask": MASK[:, 1:]}, r"shape \(3, 7\), its token ids \(3, 8\)"),
    "a mask to be added": ({"attention_mask": -1e4 * MASK}, r"1 for tokens and 0 for padding.*-10000"),
    "unknown stream": ({"stream": "cross"}, "streams self; got 'cross'"),
    "one stack": ({"decoder_ids": IDS}, "one stack"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input(llama, bad):
    options, said = BAD[bad]
    with pytest.raises(ValueError, match=said):
        capture_quietly(llama, **{"ids": IDS} | options)


def test_bad_input_of_an_encoder_decoder():
    model, ids = make_model("t5"), make_tokens(8)
    for options, said in (
        ({"stream": "self"}, "streams encoder, decoder, cross; got 'self'"),
        ({"decoder_ids": torch.full((2, 5), 99)}, r"decoder_ids run from .* to 99"),
        ({"decoder_ids": make_tokens(5, n=1)}, r"with 2 sequences; got .* shape \(1, 5\)"),
    ):
        with pytest.raises(ValueError, match=said):
            capture_quietly(model, ids, **{"stream": "cross"} | options)
    parts = {"The part 'decoder.block.1' of the model": model.decoder.block[1], "The model": model}
    for said, part in parts.items():
        part.train()
        with pytest.raises(ValueError, match=f"{said} is in train mode"):
            capture_quietly(model, ids)


def test_models_without_heads_and_streams_without_attention_say_so():
    mamba = walk.make_model("causal", "mamba")
    for tried in (describe, lambda m: capture_quietly(m, IDS), lambda m: cache_attention(m, IDS[:1])):
        with pytest.raises(ValueError, match="mamba: MambaConfig states no num_attention_heads"):
            tried(mamba)
    landmarks = make_model("nystromformer", num_landmarks=4, segment_means_seq_len=8)
    with pytest.raises(NotImplementedError, match="weighs 4 keys where 8 positions are read"):
        capture_quietly(landmarks, IDS)


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


def test_a_family_that_bypasses_the_interface(monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "bloom", families.Family("bloom", "alibi", route="interface"))
    with pytest.raises(RuntimeError, match=r"bloom: no attention was seen.*\(0 calls\).*register_family\("):
        capture_quietly(make_model("bloom"), make_tokens(8))


def test_the_last_position_is_one():
    assert capture_quietly(make_model("gpt2"), make_tokens(256)).n_real.tolist() == [256, 256]


def test_two_modules_of_a_layer_and_a_layer_that_is_called_for_another():
    halves = [torch.nn.Linear(1, 1) for _ in range(2)]
    for half in halves:
        half.layer_idx = 0
    names = {half: [f"layer.{name}"] for half, name in zip(halves, ("left", "right"), strict=True)}
    with pytest.raises(RuntimeError, match="ran 2 times in 2 modules of one pass \\(1 layers"):
        layer_numbers(halves, names, SimpleNamespace(num_hidden_layers=1, model_type="halves"))
    first, second = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    config, names = SimpleNamespace(num_hidden_layers=2, model_type="twice"), {first: ["layers.0.attn"]}
    assert layer_numbers([first, first], names, config) == [0, 1], "one module serves all (ALBERT)"
    with pytest.raises(RuntimeError, match="ran 2 times in 1 modules"):
        layer_numbers([first, first], names | {second: ["layers.1.attn"]}, config)

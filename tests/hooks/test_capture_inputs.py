import functools

import pytest
import tiny_models as tiny
import torch
import transformers as hf

from nbhelpers import analyze
from nbhelpers.inputs.models import _auto_class, describe
from nbhelpers.inputs.probes import looks_ahead
from nbhelpers.protocol import PAPER

KINDS = ["key_profile", "lag_profile", "last_query"]
ROTATIONS = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    "longrope": {
        "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "short_factor": [1.0] * 4,
        "long_factor": [1.0, 2.0, 3.0, 9.0], "original_max_position_embeddings": 16,
    },
}  # fmt: skip


@functools.cache
def model_of(family):
    return tiny.make_model(family, std=0.15).double()


def by_length(kind):
    positions = 16 if kind == "dynamic" else 64
    return tiny.make_model(positions=positions, rope_parameters=dict(ROTATIONS[kind])).double()


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama"])
def test_positions_and_segments_reach_the_model(family):
    model, ids = model_of(family), tiny.make_tokens(12)
    name = "token_type_ids" if family == "bert" else "position_ids"
    given = (torch.arange(12) // 6 if name == "token_type_ids" else torch.arange(12) ** 2).expand(2, -1)
    if family == "llama":
        given = 3 * given  # up to 363: beyond the 256 of its training, where rotations go on
    own = torch.ones_like(ids)  # without a mask, positions that jump are read as several texts in a row
    got = tiny.captured_matrix(model, ids, attention_mask=own, batch_size=1, **{name: given})
    assert abs(got - tiny.eager_attention(model, ids, own, **{name: given})).max() <= 1e-6
    assert abs(got - tiny.captured_matrix(model, ids)).max() > 1e-3


@pytest.mark.parametrize("stream", ["decoder", "cross"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_decoder_reads_what_the_tokens_alone_are(side, stream):
    model, mask = model_of("t5"), tiny.make_padding(12, side, n=1, hidden=4)
    ids, kept = tiny.make_tokens(12, n=1), mask[0].bool()
    alone = tiny.capture_quietly(model, ids[:, kept], KINDS[:1], stream=stream).key_profile
    got = tiny.capture_quietly(model, ids * mask, KINDS[:1], stream=stream, attention_mask=mask)
    torch.testing.assert_close(got.key_profile[..., kept], alone, atol=1e-6, rtol=0)
    assert got.n_real.tolist() == [8]
    read = tiny.make_tokens(12, n=1, seed=5)
    alone = tiny.capture_quietly(model, ids, stream=stream, decoder_ids=read[:, kept]).key_profile
    got = tiny.capture_quietly(model, ids, stream=stream, decoder_ids=read, decoder_mask=mask).key_profile
    torch.testing.assert_close(got[..., kept] if stream == "decoder" else got, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ROTATIONS)
def test_rotations_by_length_forget_what_was_read_before(kind):
    ids, state = tiny.make_tokens(24), by_length(kind).state_dict()
    expected = tiny.eager_attention(by_length(kind), ids)
    model = by_length(kind)
    model.load_state_dict(state)
    model(tiny.make_tokens(40))  # the frequencies of 40 tokens are kept
    before = model.model.rotary_emb.inv_freq.clone()
    assert abs(tiny.captured_matrix(model, ids, beyond=True) - expected).max() <= 1e-6
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
    said = tiny.capture_quietly(model, ids, beyond=True).provenance["rotations"]
    assert said == f"{kind}: scaled at 24 of 16 trained tokens; reset before each pass"
    mask = tiny.make_padding(24, "left", hidden=12)  # a batch of texts of 24 and 12 tokens
    alone = tiny.capture_quietly(by_length(kind), ids[1:, 12:]).key_profile
    got = tiny.capture_quietly(model, ids, attention_mask=mask, beyond=True).key_profile[1:, ..., 12:]
    torch.testing.assert_close(got, alone, atol=1e-6, rtol=0)
    table = analyze(model, ids, PAPER, beyond=True, progress=False)
    assert "at 24 of 16" in table.provenance["rotations"]
    assert table.provenance["scaled_rotations"].keys() == {str(factor) for factor in PAPER.factors}


def test_beyond_where_the_encoding_goes_on():
    model, ids = tiny.make_model(positions=16), tiny.make_tokens(24)
    with pytest.raises(ValueError, match=r"24 tokens.*16 positions.*or pass beyond=True"):
        tiny.capture_quietly(model, ids)
    assert abs(tiny.captured_matrix(model, ids, beyond=True) - tiny.eager_attention(model, ids)).max() <= 1e-6
    for family in ("gpt2", "gptj", "mpt", "bert"):
        with pytest.raises(ValueError, match=r"16 positions; ask for no more\.$"):
            tiny.capture_quietly(tiny.make_model(family, positions=16), ids, beyond=True)


def test_what_a_model_does_not_take_is_refused(llama, tmp_path):
    ids, left = tiny.make_tokens(8), tiny.make_padding(8, "left")
    for model, options, said in (
        (llama, {"token_type_ids": ids}, "llama takes no token_type_ids"),
        (llama, {"position_ids": ids[:, 1:]}, r"one for each token, \(2, 8\); got .*\(2, 7\)"),
        (tiny.make_model("gpt2"), {"position_ids": ids + 256}, "position_ids run from .* 0 to 255"),
        (
            tiny.make_model("bart"),
            {"attention_mask": left},
            "bart looks positions up .* padding behind",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            tiny.capture_quietly(model, ids, **options)


def test_inputs_are_told_apart_by_the_cache(tmp_path):
    model, ids = model_of("bert"), tiny.make_tokens(8)
    for given in (None, torch.zeros_like(ids), torch.ones_like(ids)):
        for name in ("position_ids", "token_type_ids"):
            kept = tiny.capture_quietly(model, ids, cache=tmp_path, **{name: given})
            tiny.assert_same_profiles(kept, tiny.capture_quietly(model, ids, **{name: given}), 0)


T = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 0}
T |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
SEES = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4}
QWEN = {"text_config": T | MROPE, "vision_config": SEES}
CLIP = {name: value for name, value in T.items() if name != "num_key_value_heads"}
OTHERS = {
    "qwen2_vl": lambda: hf.Qwen2VLForConditionalGeneration(hf.Qwen2VLConfig(**QWEN)),
    "glm4v": lambda: hf.Glm4vTextModel(hf.Glm4vTextConfig(**T | MROPE | {"head_dim": 8})),
    "clip": lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**CLIP)),
    "siglip": lambda: hf.SiglipTextModel(hf.SiglipTextConfig(**CLIP)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_causality_is_seen_where_no_table_tells(name):
    model, ids = OTHERS[name]().eval(), tiny.make_tokens(12)
    whole = torch.as_tensor(tiny.captured_matrix(model, ids))
    assert describe(model).causal == (not whole.triu(1).any())
    assert describe(model).causal == (name != "siglip")
    assert name != "qwen2_vl" or _auto_class(model.config) is hf.AutoModelForImageTextToText
    profiles = tiny.capture_quietly(model, ids, KINDS)
    assert profiles.lag_profile.shape[-1] == (23 if name == "siglip" else 12)


@pytest.mark.parametrize("length", [2, 12])
def test_attention_that_contradicts_the_probe_is_an_error(length):
    model, ids = tiny.make_model(), tiny.make_tokens(length)
    assert looks_ahead(model, lambda network: "cpu") is False
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(RuntimeError, match="causal, but queries see later keys"):
        tiny.capture_quietly(model, ids)


def test_widths_that_differ_are_shown():
    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    gemma = hf.AutoModel.from_config(hf.AutoConfig.for_model("gemma4_text", **T | layers | {
        "head_dim": 8, "global_head_dim": 16, "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 8,
    }))  # fmt: skip
    assert describe(gemma).head_dim == (8, 16)
    scaled = describe(tiny.make_model(rope_parameters=dict(ROTATIONS["dynamic"])))
    assert scaled.rope_scaling == "dynamic by 4"

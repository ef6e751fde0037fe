import pytest
import torch
from tiny_models import GROUPED, WIDE_HEADS, tiny_config
from tolerances import TOL
from transformers import CONFIG_MAPPING, AutoModel

from nbhelpers.inputs import families
from nbhelpers.inputs.families import Family, family_of, register_family
from nbhelpers.inputs.models import describe


def tiny_model(family, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModel.from_config(tiny_config(family, positions=24, **changes)).eval()


@torch.no_grad()
def hidden(model, token_ids):
    if model.config.is_encoder_decoder:
        return model.get_encoder()(input_ids=token_ids).last_hidden_state
    return model(input_ids=token_ids).last_hidden_state


def rotations(model):
    found = {name: buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")}
    found = {name: buffer for name, buffer in found.items() if "original" not in name}
    full = [buffer for name, buffer in found.items() if "full_attention" in name]
    return (full or list(found.values()) or [None])[0]


@pytest.mark.parametrize("model_type", families.FAMILIES)
def test_description_agrees_with_the_model(model_type):
    model = tiny_model(model_type)
    description = describe(model)
    assert description.family == model_type
    assert (description.n_layers, description.n_heads) == (2, 4)
    wide = model_type in WIDE_HEADS or description.rotary_fraction == 0.25
    assert description.head_dim == (16 if wide else 8)
    assert description.n_kv_heads == (2 if model_type in GROUPED else 1 if model_type == "falcon" else 4)
    assert description.n_parameters == sum(p.numel() for p in model.parameters())
    assert description.dtype == "float32"
    if model_type in GROUPED:
        ends = ("qkv_proj", 8) if model_type == "phi3" else ("k_proj", 2)  # heads that it gives
        projection = next(m for name, m in model.named_modules() if name.endswith(ends[0]))
        assert projection.out_features == ends[1] * description.head_dim


@pytest.mark.parametrize(
    "model_type", [name for name, f in families.FAMILIES.items() if "rope" in f.position_encoding]
)
def test_rotations_are_those_the_model_uses(model_type):
    model = tiny_model(model_type)
    description = describe(model)
    assert description.position_encoding.startswith("rope")
    inv_freq = rotations(model)
    if inv_freq is None:  # GPT-J and CodeGen tabulate sines
        tensors = [*model.named_buffers(), *model.named_parameters()]  # the latter in RoFormer
        table = next(tensor for name, tensor in tensors if "embed_positions" in name)
        inv_freq = torch.asin(table[1, : table.shape[1] // 2])
        inv_freq[0] = 1.0
    rotated = round(description.rotary_fraction * description.head_dim)
    assert 2 * len(inv_freq) == rotated
    expected = description.rope_theta ** (-torch.arange(0, rotated, 2) / rotated)
    torch.testing.assert_close(inv_freq.float(), expected, rtol=TOL[torch.float32], atol=0)


LEARNED = [name for name, f in families.FAMILIES.items() if f.position_encoding == "learned"]
RESERVED = ["xlm-roberta-xl", "data2vec-text", "esm", "longformer"]  # positions, for padding


@pytest.mark.parametrize("model_type", [*LEARNED, "mpt", *RESERVED])
def test_max_positions_is_the_longest_sequence_that_runs(model_type):
    model = tiny_model(model_type)
    longest = describe(model).max_positions
    assert model_type not in RESERVED or longest == 23
    assert hidden(model, torch.full((1, longest), 5)).shape[1] == longest
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        hidden(model, torch.full((1, longest + 1), 5))


def test_fields_that_override_the_family():
    for unlimited in ("t5", "bloom", "nbhelpers_zoo"):
        assert describe(tiny_model(unlimited)).max_positions is None
    assert describe(tiny_model("falcon", alibi=True)).position_encoding == "alibi"
    assert describe(tiny_model("falcon", alibi=True)).rope_theta is None
    assert describe(tiny_model("deberta", relative_attention=False)).position_encoding == "learned"
    assert describe(tiny_model("smollm3", no_rope_layers=[1, 1])).position_encoding == "rope"
    assert describe(tiny_model("bert", is_decoder=True)).causal
    assert not describe(tiny_model("gemma3_text", use_bidirectional_attention=True)).causal
    assert describe(tiny_model("falcon", new_decoder_architecture=True, num_kv_heads=2)).n_kv_heads == 2
    assert describe(tiny_model("falcon", multi_query=False)).n_kv_heads == 4
    big_bird = tiny_model("big_bird", attention_type="block_sparse")
    describe(big_bird)
    assert big_bird.attention_type == "block_sparse", "left as it was"


def test_unknown_families_are_inferred():
    inferred = {"granite": ("rope", "decoder"), "xlm-roberta": ("learned", "encoder")}
    inferred |= {"mt5": ("t5", "encoder-decoder"), "gpt_bigcode": ("learned", "decoder")}
    for model_type, expected in inferred.items():
        family = family_of(CONFIG_MAPPING[model_type]())
        assert (family.position_encoding, family.kind) == expected


def test_register_family(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    register_family(Family("granite", "alibi"))
    assert family_of(CONFIG_MAPPING["granite"]()).position_encoding == "alibi"
    with pytest.raises(ValueError, match="already registered"):
        register_family(Family("granite", "none"))
    register_family(Family("granite", "none"), replace=True)
    assert family_of(CONFIG_MAPPING["granite"]()).position_encoding == "none"
    with pytest.raises(TypeError, match="must be a Family, from Family"):
        register_family({"model_type": "granite"})
    with pytest.raises(ValueError, match=r"route of Family .* got 'magic'"):
        Family("granite", "rope", route="magic")

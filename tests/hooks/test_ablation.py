"""A head that is set to zero: against values and attention outputs that are zeroed another way."""

import contextlib

import pytest
import torch
import transformers as hf
from tiny_models import make_model, make_tokens

from nbhelpers.hooks.ablation import output_projection, token_losses, without_head

SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64}
PLAIN = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
    "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
WITH_INTERFACE = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**PLAIN, num_key_value_heads=2)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**PLAIN, num_key_value_heads=2, head_dim=16)),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**PLAIN)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**SIZES)),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**PLAIN)),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, ffn_dim=48,
                     max_position_embeddings=64, word_embed_proj_dim=32, pad_token_id=0)
    ),
}  # fmt: skip
WITH_VALUES = {
    "gptj": lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**SIZES, rotary_dim=4)),
    "gpt_neo": lambda: hf.GPTNeoForCausalLM(
        hf.GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=4, vocab_size=64, max_position_embeddings=64,
                        attention_types=[[["global", "local"], 1]])
    ),
}  # fmt: skip


def build(maker):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = maker().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.2)
    return model


@torch.inference_mode()
def logits(model, ids):
    return model(ids, use_cache=False).logits


@contextlib.contextmanager
def silenced_output(model, layer, head):
    """Zero what the attention function of a layer returns for a head, (batch, query, head, width)."""
    original = hf.modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(module, *args, **options):
        output, weights = original(module, *args, **options)
        if getattr(module, "layer_idx", None) == layer:
            output = output.clone()
            output[:, :, head] = 0
        return output, weights

    hf.AttentionInterface.register("silenced", attend)
    hf.AttentionMaskInterface.register("silenced", hf.AttentionMaskInterface()["sdpa"])
    model.set_attn_implementation("silenced")
    yield
    model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("family", WITH_INTERFACE)
@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 3), (1, 2)])
def test_equal_to_a_head_whose_attention_output_is_zero(family, layer, head):
    model, ids = build(WITH_INTERFACE[family]), make_tokens(12)
    with silenced_output(model, layer, head):
        wanted = logits(model, ids)
    before = logits(model, ids)
    with without_head(model, layer, head):
        without = logits(model, ids)
    assert (without - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (without - before).abs().max() > 1e-3 * before.abs().max()
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("family", WITH_VALUES)
def test_equal_to_a_head_whose_values_are_zero(family):
    model, ids = build(WITH_VALUES[family]), make_tokens(12)
    with without_head(model, 1, 2):
        without = logits(model, ids)
    block = model.transformer.h[1].attn
    values = getattr(block, "attention", block).v_proj
    with torch.no_grad():
        values.weight[16:24] = 0  # head 2 of 4, 8 wide
    assert (without - logits(model, ids)).abs().max() <= 1e-5 * without.abs().max()


def test_the_hook_is_gone_after_an_error():
    model, ids = make_model("llama"), make_tokens(12)
    before = logits(model, ids)
    with pytest.raises(ZeroDivisionError), without_head(model, 0, 1):
        raise ZeroDivisionError
    assert torch.equal(logits(model, ids), before)


def test_token_losses_against_a_loop_in_float64():
    model, ids = make_model("llama"), make_tokens(9)
    scores = logits(model, ids).double()
    wanted = [
        [-float(scores[s, t].log_softmax(-1)[ids[s, t + 1]]) for t in range(ids.shape[1] - 1)]
        for s in range(len(ids))
    ]
    got = token_losses(model, ids)
    assert got.shape == (2, 8)
    assert (got - torch.tensor(wanted)).abs().max() < 1e-5


def test_refusals():
    llama, ids = make_model("llama"), make_tokens(9)
    for layer, head, said in ((2, 0, "layer 2 .* 0 to 1"), (0, 4, "head 4 .* 0 to 3"), (0, -1, "head -1")):
        with pytest.raises(IndexError, match=said), without_head(llama, layer, head):
            pass
    with pytest.raises(ValueError, match="is an encoder: it predicts no next token"):
        token_losses(make_model("bert"), ids)
    with pytest.raises(ValueError, match="no language-model head"):
        token_losses(llama.model, ids)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        token_losses(llama, ids[:, :1])
    bert = make_model("bert")
    with pytest.raises(
        NotImplementedError, match="bert: its attention module BertSelfAttention has no output"
    ):
        output_projection(bert, 0)

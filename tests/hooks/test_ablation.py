"""A head that is set to zero: against values and attention outputs that are zeroed another way."""

import contextlib

import pytest
import torch
import transformers as hf
from tiny_models import make_model, make_tokens, n_hooks

from nbhelpers.hooks.ablation import ablate_heads, output_projection, token_losses

WITH_INTERFACE = ["llama", "gemma", "gpt_neox", "gpt2", "phi", "opt"]


@torch.inference_mode()
def logits(model, ids):
    return model(ids, use_cache=False).logits


@contextlib.contextmanager
def silenced_output(model, heads):
    """Zero what the attention functions return for some (layer, head), (batch, query, head, width)."""
    original = hf.modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(module, *args, **options):
        output, weights = original(module, *args, **options)
        output = output.clone()
        for layer, head in heads:
            if module.layer_idx == layer:
                output[:, :, head] = 0
        return output, weights

    hf.AttentionInterface.register("silenced", attend)
    hf.AttentionMaskInterface.register("silenced", hf.AttentionMaskInterface()["sdpa"])
    model.set_attn_implementation("silenced")
    yield
    model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("family", WITH_INTERFACE)
@pytest.mark.parametrize("heads", [[(0, 0)], [(1, 3)], [(1, 2), (0, 1), (1, 0)]])
def test_equal_to_heads_whose_attention_output_is_zero(family, heads):
    model, ids = make_model(family), make_tokens(12)
    with silenced_output(model, heads):
        wanted = logits(model, ids)
    before = logits(model, ids)
    with ablate_heads(model, heads):
        without = logits(model, ids)
    assert (without - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (without - before).abs().max() > 1e-3 * before.abs().max()
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("family", ["gptj", "gpt_neo"])
def test_equal_to_a_head_whose_values_are_zero(family):
    model, ids = make_model(family), make_tokens(12)
    with ablate_heads(model, [(1, 2)]):
        without = logits(model, ids)
    block = model.transformer.h[1].attn
    values = getattr(block, "attention", block).v_proj
    with torch.no_grad():
        values.weight[16:24] = 0  # head 2 of 4, 8 wide
    assert (without - logits(model, ids)).abs().max() <= 1e-5 * without.abs().max()


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
    llama, bert, ids = make_model("llama"), make_model("bert"), make_tokens(9)
    for layer, head, said in ((2, 0, "layer 2 .* 0 to 1"), (0, 4, "head 4 .* 0 to 3"), (0, -1, "head -1")):
        with pytest.raises(IndexError, match=said), ablate_heads(llama, [(1, 0), (layer, head)]):
            pass
    with pytest.raises(ZeroDivisionError), ablate_heads(llama, [(0, 1)]):
        raise ZeroDivisionError
    assert n_hooks(llama) == 0
    for model, tokens, said in (
        (bert, ids, "no next token"),
        (llama.model, ids, "no language-model head"),
        (llama, ids[:, :1], "at least 2 tokens"),
    ):
        with pytest.raises(ValueError, match=said):
            token_losses(model, tokens)
    with pytest.raises(NotImplementedError, match="bert: its attention module BertSelfAttention"):
        output_projection(bert, 0)

"""Random models small enough for slow oracles, and the attention they compute by their own eager path."""

import numpy as np
import torch
import transformers as hf

from nbhelpers.hooks.capture import capture
from nbhelpers.hooks.reductions import Reduction

N_WORDS = 64
SHAPE = {"vocab_size": N_WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PLAIN = SHAPE | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
STACK = PLAIN | {"max_position_embeddings": 256}


def _llama():
    return hf.LlamaForCausalLM(hf.LlamaConfig(**STACK, num_key_value_heads=2))


def _bert():
    return hf.BertForMaskedLM(hf.BertConfig(**STACK))


def _bloom():
    return hf.BloomForCausalLM(hf.BloomConfig(**SHAPE, hidden_size=32, n_layer=2, n_head=4))


def _gpt_oss():
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "rope_parameters": {"rope_type": "default"}}
    config = hf.GptOssConfig(**STACK, num_key_value_heads=2, head_dim=8, sliding_window=6, **experts)
    return hf.GptOssForCausalLM(config)


def _t5():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    special = {"vocab_size": N_WORDS, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    return hf.T5ForConditionalGeneration(hf.T5Config(**sizes, **special))


MAKERS = {"llama": _llama, "bert": _bert, "bloom": _bloom, "gpt_oss": _gpt_oss, "t5": _t5}


def make_model(family="llama", *, seed=0, std=0.2):
    """Return a model in eval mode whose weights are large, so that attention is far from uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MAKERS[family]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=std)
    return model


def make_uniform():
    """Return a Llama whose queries are zero: attention is exactly uniform over the visible keys."""
    model = make_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    return model


def make_tokens(length, n=2, *, seed=1):
    """Return ids (sequence, position) without special tokens."""
    return torch.randint(3, N_WORDS, (n, length), generator=torch.Generator().manual_seed(seed))


def make_padding(length, side, *, n=2, hidden=7):
    """Return a mask (sequence, position) that hides `hidden` tokens of the last sequence on one side."""
    mask = torch.ones(n, length, dtype=torch.long)
    mask[-1, slice(0, hidden) if side == "left" else slice(length - hidden, length)] = 0
    return mask


def eager_attention(model, ids, mask=None):
    """Return (sequence, layer, head, query, key) as the model's own eager attention gives it, in float64."""
    implementation = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        with torch.inference_mode():
            layers = model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    finally:
        model.config._attn_implementation = implementation
    return torch.stack(layers, 1).double().numpy()


def attention_from_vectors(model, ids):
    """Return (sequence, layer, head, query, key): causal softmax in float64 of its queries and keys.

    The queries and keys are those that the model hands to its attention function, in its own precision or
    that of autocast, so what they give in float64 is what scores taken in higher precision should give.
    """
    pairs, original = [], hf.modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def keep(module, query, key, *args, **options):
        pairs.append((query.double(), key.double()))
        return original(module, query, key, *args, **options)

    hf.AttentionInterface.register("keep_vectors", keep)
    hf.AttentionMaskInterface.register("keep_vectors", hf.AttentionMaskInterface()["sdpa"])
    implementation = model.config._attn_implementation
    model.set_attn_implementation("keep_vectors")
    try:
        with torch.inference_mode():
            model(ids)
    finally:
        model.set_attn_implementation(implementation)
    return torch.stack([_causal_softmax(query, key) for query, key in pairs], 1).numpy()


def _causal_softmax(query, key):
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)  # (sequence, head, key, width)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5  # (sequence, head, query, key)
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


class Whole(Reduction):
    """Keeps the matrix, which only a test wants."""

    name, axis = "whole", "entry"

    def coordinates(self, layout):
        return list(range(layout.n_queries * layout.n_keys))

    def start(self, layout):
        return layout.zeros(layout.n_queries, layout.n_keys)

    def update(self, state, block, layout):
        state[:, :, block.start : block.start + block.n_rows, : block.attn.shape[-1]] = block.attn

    def finish(self, state, layout):
        return state.flatten(-2)


def captured_matrix(model, ids, **options):
    """Return (sequence, layer, head, query, key) as capture sees it, in float64."""
    whole = capture(model, ids, [Whole()], progress=False, **options).whole
    return whole.unflatten(-1, (ids.shape[1], ids.shape[1])).double().numpy()


def capture_quietly(model, ids, reductions="key_profile", **options):
    """Capture without a progress bar."""
    return capture(model, ids, reductions, progress=False, **options)


def assert_same_profiles(got, expected, tolerance=1e-6):
    """Assert the same arrays within a tolerance, relative and absolute."""
    assert got.arrays.keys() == expected.arrays.keys()
    for name in got.arrays:
        torch.testing.assert_close(got[name], expected[name], rtol=tolerance, atol=tolerance)


def over_heads(matrices, function):
    """Return `function` of each matrix (query, key), stacked over (sequence, layer, head)."""
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    values = np.stack([np.asarray(function(matrix)) for matrix in flat])
    return values.reshape(*matrices.shape[:3], *values.shape[1:])


def n_hooks(model):
    """Return how many forward hooks and pre-hooks sit on the modules of a model."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())

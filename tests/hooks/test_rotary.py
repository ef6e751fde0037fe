"""Rotations and kernels against the model's own eager attention: no table of families, no rotation of ours.

A text of one word all along gives a model that rotates the same query and key everywhere, so its logits are
the kernel exactly, and log ratios of its eager attention are differences of the kernel.
"""

import numpy as np
import pytest
import tiny_models as tiny
import torch

from nbhelpers.hooks.reductions import EARLY, Reduction
from nbhelpers.hooks.rotary import query_key_moments, rotations_of

LENGTH = 40


def scaled(kind, **options):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0, "factor": 4.0, **options}}


BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LISTED = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0]}
LATENT = {
    "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": 8,
    "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
}  # fmt: skip
CASES = {  # family, changes, layers whose heads rotate
    "halves": ("llama", {}),
    "grouped, sliding window, wide heads": ("mistral", {}),
    "normed queries": ("qwen3", {}),
    "biases": ("qwen2", {}),
    "two bases": ("gemma3_text", {}),
    "soft cap": ("gemma2", {}),
    "a quarter": ("gpt_neox", {}),
    "half": ("phi", {}),
    "interleaved": ("cohere", {}),
    "interleaved, partial": ("glm4", {"num_key_value_heads": 2, "head_dim": 8}),
    "every fourth layer not": ("smollm3", {"layers": 4}),
    "interleaved, every fourth layer not": ("cohere2", {"layers": 4}),
    "sees later keys": ("modernbert", {}),
    "a learned sink": ("gpt_oss", {"layers": 1}),  # whose share is left out of the ratios
    "the last dimensions": ("deepseek_v3", LATENT | {"num_key_value_heads": 4, "head_dim": 4}),
    "linear": ("llama", scaled("linear")),
    "dynamic": ("llama", scaled("dynamic") | {"positions": 24}),
    "yarn": ("llama", scaled("yarn", original_max_position_embeddings=16)),
    "llama 3": ("llama", scaled("llama3", original_max_position_embeddings=16, **BANDS)),
    "longrope": ("phi3", scaled("longrope", original_max_position_embeddings=16, **LISTED)),
    "zoo, all pairs": ("nbhelpers_zoo", {}),
    "zoo, three quarters": ("nbhelpers_zoo", {"position_encoding": "prope"}),
    "zoo, slopes": ("nbhelpers_zoo", {"position_encoding": "alibi"}),
    "zoo, buckets": ("nbhelpers_zoo", {"position_encoding": "t5"}),
    "zoo, nowhere": ("nbhelpers_zoo", {"position_encoding": "nope"}),
}


@pytest.mark.parametrize("case", CASES)
def test_kernels_are_the_logits_of_the_models_own_attention(case):
    family, changes = CASES[case]
    model, ids = tiny.make_model(family, **changes), torch.full((1, LENGTH), 9)
    attn = torch.as_tensor(tiny.eager_attention(model, ids))[0, :, :, -1].flip(-1)  # (layer, head, lag)
    kernels = query_key_moments(model, ids).kernels(LENGTH)
    seen = ~kernels.isnan()
    assert torch.equal(seen, attn > 0)
    expected = (attn.log() - attn[..., :1].log())[seen]
    off = ((kernels - kernels[..., :1])[seen] - expected).abs().max()
    assert off < 1e-4 * max(1, expected.abs().max())
    if case != "zoo, nowhere":
        assert expected.abs().max() > 0.1, "a flat kernel would show nothing"


@pytest.mark.parametrize("case", ["halves", "interleaved", "interleaved, partial", "the last dimensions"])
def test_a_kernel_is_the_sum_of_its_pairs(case):
    family, changes = CASES[case]
    moments = query_key_moments(tiny.make_model(family, **changes), tiny.make_tokens(LENGTH))
    kernels = moments.kernels(LENGTH)[1]
    expected = kernels - kernels.mean(-1, keepdim=True)
    torch.testing.assert_close(moments.parts(1, LENGTH).sum(1), expected)


def test_rotations_are_those_of_the_text_and_the_model_is_left_as_it_was():
    model = tiny.make_model("llama", positions=24, **scaled("dynamic"))
    before = model.model.rotary_emb.inv_freq.clone()
    short, long = (rotations_of(model, n)[0].frequencies for n in (20, 40))
    torch.testing.assert_close(short, before.double())
    assert long[-1] < 0.9 * short[-1]
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
    assert tiny.n_hooks(model) == 0
    for family in ("smollm3", "cohere2"):
        layers = rotations_of(tiny.make_model(family, layers=4), LENGTH)
        assert [bool(layer.frequencies.any()) for layer in layers] == [True, True, True, False]


def test_moments_are_means_before_rotation():
    model, ids = tiny.make_model("qwen2"), tiny.make_tokens(LENGTH, n=3)
    seen = {}
    for name in ("q_proj", "k_proj"):
        keep = lambda module, args, output, name=name: seen.update({name: output})  # noqa: E731
        getattr(model.model.layers[1].self_attn, name).register_forward_hook(keep)
    moments = query_key_moments(model, ids)
    for name, got in (("q_proj", moments.query[1]), ("k_proj", moments.key[1][::2])):
        expected = seen[name][:, EARLY:].double().mean((0, 1)).view(-1, 8)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(moments.key[1][0], moments.key[1][1]), "two heads share a key"


@pytest.mark.parametrize("family", ["llama", "mistral", "bert"])
@pytest.mark.parametrize("chunk", [None, 8])
def test_mean_and_variance_of_logits_are_a_slow_loop_over_scores(family, chunk):
    model, ids = tiny.make_model(family), tiny.make_tokens(LENGTH)
    kept = []

    class Scores(Reduction):
        name = "scores"

        def update(self, state, block, layout):
            kept.append(block.scores.where(block.attn > 0, torch.nan))

    tiny.capture_quietly(model, ids, [Scores()], batch_size=2, chunk=LENGTH)
    profiles = tiny.capture_quietly(model, ids, ["lag_logits", "logit_variance"], chunk=chunk)
    scores = torch.stack(kept, 1).double().numpy()  # (sequence, layer, head, query, key)
    variance = np.nanvar(scores[..., EARLY:, 1:], axis=(-2, -1))
    np.testing.assert_allclose(profiles.logit_variance, variance, rtol=1e-4)
    for column, lag in enumerate(profiles.coordinates["lag_logits"]):
        pairs = [scores[..., q, q - lag] for q in range(EARLY, LENGTH) if 1 <= q - lag < LENGTH]
        seen = [pair for pair in pairs if np.isfinite(pair).all()]
        got = profiles.lag_logits[..., column].numpy()
        expected = np.mean(seen, 0) if seen else np.full(got.shape, np.nan)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_what_has_no_kernel_is_refused_in_words():
    for family, changes, said in (
        ("gpt2", {}, r"no kernel from weights\. .*\(learned\)"),
        ("nbhelpers_zoo", {"position_encoding": "sinusoidal"}, r"no kernel from weights\. .*\(sinusoidal\)"),
        ("bloom", {}, "kernels are made of .* one stack"),
        ("t5", {}, "kernels are made of .* one stack"),
    ):
        with pytest.raises(ValueError, match=f"{family}: {said}"):
            rotations_of(tiny.make_model(family, **changes), LENGTH)
    with pytest.raises(ValueError, match=r"more than 8 positions; got .* \(2, 8\)"):
        query_key_moments(tiny.make_model(), tiny.make_tokens(8))
    with pytest.raises(ValueError, match="from 1 to 40, the tokens that were read; got 41"):
        query_key_moments(tiny.make_model(), tiny.make_tokens(LENGTH)).kernels(41)

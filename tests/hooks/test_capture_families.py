"""Captured probabilities equal eager ``output_attentions``, family by family."""

import pytest
import torch
import transformers as hf
from tiny_models import Whole, attention_from_vectors, make_tokens, n_hooks

from nbhelpers.hooks.attention import Recorder, interface_route, module_route
from nbhelpers.hooks.capture import capture
from nbhelpers.hooks.reductions import resolve
from nbhelpers.inputs.families import family_of, kind_of

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "pad_token_id": 0,
}
GROUPED = SMALL | {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 256}
PLAIN = SMALL | {"intermediate_size": 48, "max_position_embeddings": 256}

# name: (config, model class). Random weights, scaled up so that attention is far from uniform.
FAMILIES = {
    "llama": (hf.LlamaConfig(**GROUPED), hf.LlamaForCausalLM),
    "gpt_neox": (hf.GPTNeoXConfig(**PLAIN, rotary_pct=0.25), hf.GPTNeoXForCausalLM),
    "gemma2": (
        hf.Gemma2Config(
            **GROUPED, head_dim=8, query_pre_attn_scalar=8, sliding_window=6, attn_logit_softcapping=5.0
        ),
        hf.Gemma2ForCausalLM,
    ),
    "qwen2": (hf.Qwen2Config(**GROUPED), hf.Qwen2ForCausalLM),
    "mistral": (hf.MistralConfig(**GROUPED, sliding_window=6), hf.MistralForCausalLM),
    "phi": (hf.PhiConfig(**GROUPED), hf.PhiForCausalLM),
    "olmo2": (hf.Olmo2Config(**GROUPED), hf.Olmo2ForCausalLM),
    "smollm3": (hf.SmolLM3Config(**GROUPED, no_rope_layers=[1, 0]), hf.SmolLM3ForCausalLM),
    "gpt2": (
        hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=256),
        hf.GPT2LMHeadModel,
    ),
    "opt": (
        hf.OPTConfig(**SMALL, ffn_dim=48, max_position_embeddings=256, word_embed_proj_dim=32),
        hf.OPTForCausalLM,
    ),
    "gpt_oss": (
        hf.GptOssConfig(**GROUPED, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=6),
        hf.GptOssForCausalLM,
    ),
    "bert": (hf.BertConfig(**PLAIN), hf.BertForMaskedLM),
    "modernbert": (hf.ModernBertConfig(**PLAIN, local_attention=12), hf.ModernBertForMaskedLM),
    "bloom": (hf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=64), hf.BloomForCausalLM),
    "mpt": (
        hf.MptConfig(d_model=32, n_layers=2, n_heads=4, vocab_size=64, max_seq_len=256),
        hf.MptForCausalLM,
    ),
    "gptj": (
        hf.GPTJConfig(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=256, rotary_dim=4),
        hf.GPTJForCausalLM,
    ),
    "gpt_neo": (
        hf.GPTNeoConfig(
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            vocab_size=64,
            attention_types=[[["global", "local"], 1]],
            window_size=6,
            max_position_embeddings=256,
        ),
        hf.GPTNeoForCausalLM,
    ),
    "falcon": (hf.FalconConfig(**SMALL, alibi=False, new_decoder_architecture=False), hf.FalconForCausalLM),
    "codegen": (
        hf.CodeGenConfig(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=256, rotary_dim=4),
        hf.CodeGenForCausalLM,
    ),
    "deberta": (
        hf.DebertaConfig(**PLAIN, relative_attention=True, pos_att_type=["c2p", "p2c"]),
        hf.DebertaForMaskedLM,
    ),
    "deberta-v2": (
        hf.DebertaV2Config(**PLAIN, relative_attention=True, pos_att_type=["c2p"]),
        hf.DebertaV2ForMaskedLM,
    ),
}
LENGTHS = [1, 2, 7, 8, 9, 64, 130]
STREAMS = {
    "t5": hf.T5Config(
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        vocab_size=64,
        decoder_start_token_id=0,
        pad_token_id=0,
    ),
    "bart": hf.BartConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        vocab_size=64,
        max_position_embeddings=256,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    ),
}


def build(config, cls, std=0.2):
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=std)
    return model


@pytest.fixture(scope="module")
def models():
    made = {}

    def get(name):
        if name not in made:
            made[name] = build(*FAMILIES[name])
        return made[name]

    return get


def eager_attentions(model, **inputs):
    """Attention (batch, layer, head, query, key) by the model's own eager path, the oracle."""
    implementation = model.config._attn_implementation
    model.config._attn_implementation = (
        "eager"  # the setter reaches Falcon too, which set_attn_implementation does not
    )
    with torch.inference_mode():
        attentions = model(**inputs, output_attentions=True).attentions
    model.config._attn_implementation = implementation
    return torch.stack(attentions, 1)


def captured(model, ids, **options):
    profiles = capture(model, ids, [Whole()], progress=False, **options)
    n_keys = len(profiles.coordinates["whole"])
    n_queries = options.get("decoder_ids", ids).shape[1]
    return profiles.whole.unflatten(-1, (n_queries, n_keys // n_queries))


def assert_same(got, expected, mask=None):
    """Equal to 1e-6 of the largest entry in float32, over real query rows."""
    if mask is not None:
        got, expected = (x * mask[:, None, None, :, None] for x in (got, expected))
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_eager(models, family, length):
    model = models(family)
    ids = make_tokens(length)
    got = captured(model, ids, chunk=5)
    assert_same(got, eager_attentions(model, input_ids=ids))
    if kind_of(model.config) == "decoder":
        assert not got.triu(1).any()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_eager_with_padding(models, family, side):
    model = models(family)
    ids, mask = make_tokens(20), torch.ones(2, 20, dtype=torch.long)
    mask[1, slice(0, 7) if side == "left" else slice(13, 20)] = 0
    ids[mask == 0] = 0
    expected = eager_attentions(model, input_ids=ids, attention_mask=mask)
    assert_same(captured(model, ids, attention_mask=mask, chunk=8), expected, mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_of_the_test_models_is_far_from_uniform(models, family):
    attn = captured(models(family), make_tokens(64))
    assert attn[..., -1, :].amax() > 6 / 64


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_model_are_unchanged(models, family):
    model, ids = models(family), make_tokens(24)
    family_ = family_of(model.config)
    route = module_route if family_.route == "module" else interface_route
    causal = kind_of(model.config) == "decoder"
    implementation, hooks = model.config._attn_implementation, n_hooks(model)
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        recorder = Recorder(model, resolve("key_profile"), stream="self", causal=causal)
        with route(model, recorder) as extra:
            during = model(input_ids=ids, **extra).logits
        after = model(input_ids=ids).logits
    mass = recorder.profiles(family_).key_profile.sum(-1)
    assert mass.allclose(torch.tensor(1.0)) or (
        family == "gpt_oss" and bool((mass < 1).all())
    )  # sinks take a share
    assert torch.equal(before, after)
    if family == "falcon":  # gives probabilities only off its SDPA path: equal to rounding
        assert (during - before).abs().max() <= 1e-5 * before.abs().max()
    else:
        assert torch.equal(during, before)
    assert model.config._attn_implementation == implementation
    assert n_hooks(model) == hooks


@pytest.mark.parametrize("stream", ["encoder", "decoder", "cross"])
@pytest.mark.parametrize("family", STREAMS)
def test_three_streams(family, stream):
    classes = {"t5": hf.T5ForConditionalGeneration, "bart": hf.BartForConditionalGeneration}
    model = build(STREAMS[family], classes[family], std=0.15)  # T5 does not scale its scores
    ids, decoder_ids = make_tokens(20), make_tokens(9, seed=2)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, 13:] = 0
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        out = model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids, output_attentions=True)
    model.set_attn_implementation("sdpa")
    expected = torch.stack(
        getattr(out, "cross_attentions" if stream == "cross" else f"{stream}_attentions"), 1
    )
    profiles = capture(
        model,
        ids,
        [Whole()],
        attention_mask=mask,
        decoder_ids=decoder_ids,
        stream=stream,
        chunk=4,
        progress=False,
    )
    got = profiles.whole.reshape(expected.shape)
    assert_same(got, expected, mask if stream == "encoder" else None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_taken_in_float32(dtype):
    # The floor is that of the stored query and key: the same vectors in float64 give the same probabilities.
    model, ids = build(*FAMILIES["llama"]).to(dtype), make_tokens(64)
    assert abs(captured(model, ids).numpy() - attention_from_vectors(model, ids)).max() < 2e-6

"""Random models small enough for slow oracles, and the attention they compute by their own eager path."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
import transformers as hf
import yaml

import nbhelpers.inputs.zoo  # noqa: F401 (registers the zoo with transformers)
from nbhelpers.hooks.capture import capture
from nbhelpers.hooks.exchange import attention_entries, exchanged
from nbhelpers.hooks.reductions import Reduction
from nbhelpers.inputs.families import kind_of

N_WORDS = 64
TINY = yaml.safe_load((Path(__file__).parent / "tiny_families.yaml").read_text(encoding="utf-8"))
GROUPED, WIDE_HEADS = TINY["grouped"].split(), TINY["wide_heads"].split()


def tiny_config(family, *, layers=2, positions=256, **changes):
    """Return a configuration of 4 heads of 8 (or 16) for up to 256 positions, by the name of its family."""
    fields = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4, "vocab_size": N_WORDS}
    fields |= {"intermediate_size": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if family not in ("mpt", "bloom", "t5", "nbhelpers_zoo"):
        fields["max_position_embeddings"] = positions
    if family == "mpt":
        fields["max_seq_len"] = positions
    if family in GROUPED:
        fields["num_key_value_heads"] = 2
    if family in WIDE_HEADS:
        fields["head_dim"] = 16
    return hf.CONFIG_MAPPING[family](**(fields | deepcopy(TINY["fields"].get(family, {})) | changes))


def make_model(family="llama", *, seed=0, std=0.2, **changes):
    """Return a model in eval mode whose weights are large, so that attention is far from uniform."""
    config = tiny_config(family, **changes)
    masked = type(config) in hf.AutoModelForMaskedLM._model_mapping and kind_of(config) == "encoder"
    auto = hf.AutoModelForMaskedLM if masked else hf.AutoModelForCausalLM
    auto = hf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else auto
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1 and parameter.requires_grad:  # not RoFormer's table of sines
                    parameter.normal_(std=std)
    return model


def make_uniform():
    """Return a Llama whose queries are zero: attention is exactly uniform over the visible keys."""
    model = make_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    return model


def save_llama(folder):
    """Save a Llama of 6 layers, about 1.7 MB in float32, and return its folder."""
    changes = {"layers": 6, "hidden_size": 64, "intermediate_size": 256, "num_key_value_heads": 4}
    make_model(std=0.02, **changes).save_pretrained(folder)
    return folder


def make_tokens(length, n=2, *, seed=1):
    """Return ids (sequence, position) without special tokens."""
    return torch.randint(3, N_WORDS, (n, length), generator=torch.Generator().manual_seed(seed))


def make_padding(length, side, *, n=2, hidden=7):
    """Return a mask (sequence, position) that hides `hidden` tokens of the last sequence on one side."""
    mask = torch.ones(n, length, dtype=torch.long)
    mask[-1, slice(0, hidden) if side == "left" else slice(length - hidden, length)] = 0
    return mask


def eager_attention(model, ids, mask=None, *, stream="self", **inputs):
    """Return (sequence, layer, head, query, key) as the model's own eager attention gives it, in float64."""
    implementation = model.config._attn_implementation
    _implement(model, "eager")
    try:
        with torch.inference_mode():
            output = model(input_ids=ids, attention_mask=mask, output_attentions=True, **inputs)
    finally:
        _implement(model, implementation)
    kept = {"self": "attentions", "cross": "cross_attentions"}.get(stream, f"{stream}_attentions")
    attn = torch.stack(output[kept], 1).double()
    return (attn.softmax(-1) if model.config.model_type == "squeezebert" else attn).numpy()  # gives scores


def effective_attention(model, run):
    """Return [(module name, (batch, head, query, key))] of one pass: what the model's own functions make of
    values that are one-hot vectors is the attention that they use."""
    names, found, inside = {module: name for name, module in model.named_modules()}, [], []

    def wrap(original):
        def attention(module, query, key, value, *args, **options):
            if not inside:  # one function may call another that is exchanged too
                inside.append(module)
                identity = torch.eye(key.shape[2], dtype=value.dtype).expand(*key.shape[:2], -1, -1)
                identity = identity.contiguous()
                attn = original(module, query, key, identity, *args, **options)[0].transpose(1, 2)
                found.append((names[module], attn))
                inside.clear()
            return original(module, query, key, value, *args, **options)

        return attention

    with exchanged(attention_entries(names), wrap):
        run()
    return found


def _implement(model, implementation):
    model.set_attn_implementation(implementation)  # reaches the stacks of T5
    model.config._attn_implementation = implementation  # reaches Falcon


class Whole(Reduction):
    """Keeps the matrix, which only a test wants."""

    name, axis = "whole", "entry"

    def coordinates(self, layout):
        return list(range(layout.n_queries * layout.n_keys))

    def update(self, state, block, layout):
        matrix = state.unflatten(-1, (layout.n_queries, layout.n_keys))
        matrix[:, :, block.start : block.start + block.n_rows, : block.attn.shape[-1]] = block.attn

    def finish(self, state, layout):
        return state


def captured_matrix(model, ids, **options):
    """Return (sequence, layer, head, query, key) as capture sees it, in float64."""
    n_queries = ids.shape[1] if options.get("decoder_ids") is None else options["decoder_ids"].shape[1]
    whole = capture(model, ids, [Whole()], progress=False, **options).whole
    return whole.unflatten(-1, (n_queries, -1)).double().numpy()


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
    """Return how many forward hooks and pre-hooks sit on a model, but for those of transformers itself."""
    tables = [table for m in model.modules() for table in (m._forward_hooks, m._forward_pre_hooks)]
    owners = [hook.__module__ for table in tables for hook in table.values()]
    return sum(not owner.startswith("transformers.") for owner in owners)

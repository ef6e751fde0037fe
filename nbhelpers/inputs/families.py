"""What differs between model families: position encoding, kind, how attention is reached.

A family that is not in the table is inferred from its configuration; `register_family` adds one.
"""

from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from importlib.metadata import version

import yaml

from nbhelpers.arguments import checked, made_by, one_of


@checked(kind=one_of("decoder", "encoder", "encoder-decoder"), route=one_of("interface", "module"))
@dataclass(frozen=True)
class Family:
    """One model family.

    `position_encoding` is "rope", "rope+nope" (some layers rotate, some know no positions), "learned",
    "alibi", "t5", "disentangled" (DeBERTa's relative terms), "sinusoidal", "none" or "unknown". `route` is
    "interface" where attention goes through `transformers.AttentionInterface`, else "module": capture then
    needs a hook on each attention module.
    """

    model_type: str  # of its transformers configuration
    position_encoding: str
    kind: str = "decoder"  # causal; or "encoder" (bidirectional), "encoder-decoder"
    route: str = "interface"
    rope_theta: float | None = None  # base of the rotations where the code fixes it


DATA = resources.files("nbhelpers.data")
TESTED = DATA / "families.csv"  # what tests/families_walk.py measured, below a line with the versions
FAMILIES = {}
for _row in yaml.safe_load((DATA / "model_families.yaml").read_text("utf-8")):
    FAMILIES |= {name: Family(name, **_row) for name in _row.pop("types").split()}
if [int(n) for n in version("transformers").split(".")[:2]] >= [5, 24]:
    FAMILIES |= {name: replace(FAMILIES[name], route="interface") for name in ("gptj", "codegen")}


@checked(family=made_by("Family", "Family(...)"))
def register_family(family, *, replace=False):
    """Add a family to the table, so that `describe` and `capture` know it."""
    if family.model_type in FAMILIES and not replace:
        raise ValueError(f"family {family.model_type!r} is already registered; pass replace=True")
    FAMILIES[family.model_type] = family


def family_of(config):
    """Return the `Family` of a transformers configuration, from the table or inferred from its fields."""
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    return Family(config.model_type, _inferred_encoding(config), _inferred_kind(config))


def position_encoding_of(config):
    """Return the position encoding of one model: its family's, unless its configuration differs."""
    if config.model_type == "nbhelpers_zoo":
        own = config.position_encoding
        return {"prope": "rope", "nope": "none"}.get(own, own)  # in the words of `Family`
    if getattr(config, "alibi", False) is True:  # Falcon-RW
        return "alibi"
    encoding = family_of(config).position_encoding
    if encoding == "disentangled" and not getattr(config, "relative_attention", False):
        return "learned"
    if encoding == "rope+nope" and all(getattr(config, "no_rope_layers", None) or [0]):
        return "rope"
    return encoding


def kind_of(config):
    """Return "decoder", "encoder" or "encoder-decoder" for one model: its family's, unless its fields differ
    (BERT with `is_decoder`, embedding models built on Gemma, Llama or Qwen)."""
    kind = family_of(config).kind
    if kind == "encoder" and getattr(config, "is_decoder", False):
        return "decoder"
    bidirectional = getattr(config, "use_bidirectional_attention", None) is True
    if kind == "decoder" and (bidirectional or getattr(config, "is_causal", None) is False):
        return "encoder"
    return kind


def rope_of(config):
    """Return (rope_theta, rotary_fraction) of layers with full attention, (None, None) without rotations."""
    if not position_encoding_of(config).startswith("rope"):
        return None, None
    parameters = _rotation_parameters(config)
    theta = parameters.get("rope_theta", getattr(config, "rope_theta", None)) or family_of(config).rope_theta
    fraction = parameters.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    rotary_dim = _first(config, "qk_rope_head_dim", "rotary_dim")
    if fraction is None and rotary_dim:
        fraction = largest(rotary_dim) / largest(head_dim_of(config))
    return (float(theta) if theta is not None else None), (float(fraction) if fraction is not None else 1.0)


def rope_scaling_of(config):
    """Return how rotations are scaled beyond their first training ("llama3 by 32"), None if not at all."""
    parameters = _rotation_parameters(config)
    kind, factor = parameters.get("rope_type", "default"), parameters.get("factor")
    if kind == "default" or not position_encoding_of(config).startswith("rope"):
        return None
    return f"{kind} by {factor:g}" if factor else kind


def rotations_by_length(config, n_tokens):
    """Return a sentence on rotations that depend on the length of what is read, None where they do not."""
    kind = (rope_scaling_of(config) or "").split(" ")[0]
    if kind not in ("dynamic", "longrope"):
        return None
    trained = _rotation_parameters(config).get("original_max_position_embeddings")
    trained = trained or config.max_position_embeddings
    state = "scaled" if n_tokens > trained else "as trained"
    return f"{kind}: {state} at {n_tokens} of {trained} trained tokens; reset before each pass"


def _rotation_parameters(config):
    parameters = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in parameters:
        return parameters["full_attention"] or {}
    return next((own for own in parameters.values() if isinstance(own, dict)), parameters)


def largest(number):
    """Return a number, or the largest of those of several layers."""
    return max(number) if isinstance(number, (tuple, list)) else number


def _per_layer(config, read):
    """Return what `read` gives of each layer's configuration: one value, or a tuple where layers differ."""
    values = tuple(read(layer) for layer in getattr(config, "per_layer_config", None) or [config])
    return values[0] if len(set(values)) == 1 else values


def _first(config, *fields):
    """Return the first of some fields that is set, None if none is; a tuple where layers differ."""
    return _per_layer(config, lambda own: next((v for f in fields if (v := getattr(own, f, None))), None))


def require_heads(config):
    """Raise ValueError, saying why, unless a configuration states how many heads its layers have."""
    stacked = hasattr(config, "num_hidden_layers")
    if not stacked or _per_layer(config, lambda own: hasattr(own, "num_attention_heads")) is not True:
        raise ValueError(
            f"{config.model_type}: {type(config).__name__} states no num_attention_heads of its layers. "
            "Models without softmax attention (state-space, RWKV, xLSTM, Fourier) have none to capture; of "
            "those made of several stacks (Perceiver, BLT) no stack is the model's."
        )


def n_heads_of(config):
    """Return the number of query heads, a tuple where layers differ."""
    listed = getattr(config, "num_attention_heads_per_layer", None) or []  # Laguna
    if len(set(listed)) > 1:
        return tuple(listed)
    ratio = getattr(config, "head_ratio", 1)  # ConvBERT has a convolution for the other heads
    return _per_layer(config, lambda own: max(1, own.num_attention_heads // ratio))


def head_dim_of(config):
    """Return the width of one head's queries and keys, a tuple where layers differ."""

    def width(own):
        if getattr(own, "qk_nope_head_dim", None):  # multi-head latent attention: a part rotates
            return own.qk_nope_head_dim + own.qk_rope_head_dim
        return getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads

    return _per_layer(config, width)


def value_dim_of(config):
    """Return the width of one head's values, a tuple where layers differ."""
    return _first(config, "v_head_dim") or head_dim_of(config)


def n_kv_heads_of(config):
    """Return the number of key/value heads, which query heads divide evenly; a tuple where layers differ."""
    if config.model_type == "falcon" and config.new_decoder_architecture:
        return config.num_kv_heads
    grouped = _first(config, "num_key_value_heads")
    return grouped or (1 if getattr(config, "multi_query", False) else n_heads_of(config))


def max_positions_of(config, model=None):
    """Return how many positions a model has for tokens, None where nothing sets a limit (T5, BLOOM)."""
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if limit is None or limit < 0 or config.model_type == "t5":
        return None
    return limit - n_reserved(limit, model)


def n_reserved(limit, model):
    """Return how many rows of a table of `limit` positions are for padding (RoBERTa, ESM, LUKE)."""
    for name, module in model.named_modules() if model is not None else ():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None and len(module.weight) == limit:
            return padding + 1
    return 0


def goes_beyond(config, model):
    """Return whether a model has positions beyond those of its training: none is looked up in a table."""
    encoding, limit = position_encoding_of(config), max_positions_of(config)
    if encoding.startswith(("learned", "sinusoidal")) or config.model_type == "mpt":
        return False
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return not any("pos" in name and limit in tensor.shape for name, tensor in tensors)


def _inferred_encoding(config):
    own = partial(getattr, config)
    stated = own("position_embedding_type", None)
    signs = {
        "alibi": stated == "alibi" or own("alibi", False) is True,
        "rope": stated in ("rotary", "rope") or own("rope_parameters", None) or own("rope_theta", None),
        "t5": own("relative_attention_num_buckets", None),
        "sinusoidal": stated == "sinusoidal" or own("sinusoidal_pos_embds", None),
        "learned": own("max_position_embeddings", None),
    }
    return next((encoding for encoding, seen in signs.items() if seen), "unknown")


def _inferred_kind(config):
    from transformers.models.auto import modeling_auto as auto

    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    masked = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    writes = config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or hasattr(config, "use_cache")
    if getattr(config, "is_decoder", False) or (writes and not masked):
        return "decoder"
    return "encoder"


def tested_families():
    """Return how capture does: a row for each model type, task and stream; `attrs["summary"]` counts them.

    `verdict` is "exact" (`difference`: the largest from the model's own attention), "refused" (`said`: the
    sentence) or "cannot be built" (`said`: why, in the words of the model's own code).
    """
    import pandas as pd  # late: nothing else here needs it

    table = pd.read_csv(TESTED, dtype=str, keep_default_na=False, skiprows=1)
    versions = TESTED.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    n, largest = table["verdict"].value_counts(), pd.to_numeric(table["difference"]).max()
    table.attrs["summary"] = (
        f"{table['type'].nunique()} model types, {len(table)} attention streams: {n['exact']} exact (largest "
        f"difference {largest:.0e}), {n['refused']} refused in a sentence, {n['cannot be built']} whose tiny "
        f"model does not run ({versions})."
    )
    return table

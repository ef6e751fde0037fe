"""What differs between model families, as one table: position encoding, kind, how attention is reached.

A family that is not in the table is inferred from its configuration; `register_family` adds one.
"""

from dataclasses import dataclass
from importlib.metadata import version

KINDS = ("decoder", "encoder", "encoder-decoder")
ROUTES = ("interface", "module")


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
    notes: str = ""  # what a reader of the numbers should know

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"family {self.model_type!r}: kind is {self.kind!r}, expected one of {KINDS}")
        if self.route not in ROUTES:
            raise ValueError(f"family {self.model_type!r}: route is {self.route!r}, expected one of {ROUTES}")


# GPT-J and CodeGen go through the interface from transformers 5.24 on.
_ROUTE_OF_GPTJ = (
    "interface" if [int(n) for n in version("transformers").split(".")[:2]] >= [5, 24] else "module"
)
_TWO_BASES = "local and global layers rotate with different bases; rope_theta is the global one"

FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", "rope"),
        Family("gpt_neox", "rope", notes="rotates a quarter of each head by default (Pythia)"),
        Family("gemma", "rope"),
        Family("gemma2", "rope", notes="soft-capped scores; every other layer has a sliding window"),
        Family("gemma3_text", "rope", notes=_TWO_BASES),
        Family("qwen2", "rope"),
        Family("qwen3", "rope", notes="queries and keys are normalised before the rotation"),
        Family("mistral", "rope", notes="sliding window where the configuration sets one"),
        Family("mixtral", "rope", notes="mixture of experts; attention is Mistral's"),
        Family("gpt2", "learned"),
        Family("opt", "learned"),
        Family("phi", "rope", notes="rotates half of each head by default"),
        Family("phi3", "rope"),
        Family("olmo", "rope"),
        Family("olmo2", "rope", notes="queries and keys are normalised before the rotation"),
        Family("smollm3", "rope+nope", notes="every fourth layer does not rotate (config.no_rope_layers)"),
        Family("cohere", "rope", notes="interleaved rotation pairs"),
        Family("cohere2", "rope+nope", notes="only the sliding-window layers rotate; interleaved pairs"),
        Family("starcoder2", "rope"),
        Family("stablelm", "rope", notes="rotates a quarter of each head by default"),
        Family("gpt_oss", "rope", notes="a learned sink per head joins the softmax; YaRN-scaled frequencies"),
        Family("bert", "learned", "encoder"),
        Family("roberta", "learned", "encoder", notes="the first pad_token_id + 1 positions are reserved"),
        Family("distilbert", "learned", "encoder"),
        Family("electra", "learned", "encoder"),
        Family("modernbert", "rope", "encoder", notes=_TWO_BASES),
        Family(
            "t5", "t5", "encoder-decoder", notes="a learned bias per distance bucket, shared by all layers"
        ),
        Family("bart", "learned", "encoder-decoder"),
        Family("bloom", "alibi", route="module"),
        Family("mpt", "alibi", route="module", notes="biases exist up to config.max_seq_len"),
        Family("gptj", "rope", route=_ROUTE_OF_GPTJ, rope_theta=10000.0, notes="interleaved rotation pairs"),
        Family(
            "gpt_neo",
            "learned",
            route="module",
            notes="every other layer has a local window; unscaled scores",
        ),
        Family("falcon", "rope", route="module", notes="ALiBi instead of RoPE where config.alibi is set"),
        Family(
            "codegen", "rope", route=_ROUTE_OF_GPTJ, rope_theta=10000.0, notes="interleaved rotation pairs"
        ),
        Family("nbhelpers_zoo", "unknown", notes="nbhelpers.zoo; config.position_encoding says which it has"),
        Family("deberta", "disentangled", "encoder", "module"),
        Family("deberta-v2", "disentangled", "encoder", "module"),
    )
}


def register_family(family, *, replace=False):
    """Add a family to the table, so that `describe` and `capture` know it.

    One that is there already is a ValueError, unless `replace` is true.
    """
    if not isinstance(family, Family):
        raise TypeError(f"register_family takes a Family, got {type(family).__name__}")
    if family.model_type in FAMILIES and not replace:
        raise ValueError(
            f"family {family.model_type!r} is already registered; pass replace=True to replace it"
        )
    FAMILIES[family.model_type] = family


def family_of(config):
    """Return the `Family` of a transformers configuration, from the table or inferred from its fields.

    The route of an inferred one is "interface", where families added to transformers since 2025 go; capture
    finds out at run time if one does not.
    """
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    return Family(
        config.model_type,
        _inferred_encoding(config),
        _inferred_kind(config),
        notes="inferred from the configuration",
    )


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
    """Return "decoder", "encoder" or "encoder-decoder" for one model.

    An encoder family configured with `is_decoder=True` (BERT as a decoder) is a decoder, and a decoder family
    with `use_bidirectional_attention=True` or `is_causal=False` (embedding models built on Gemma, Llama or
    Qwen) an encoder.
    """
    kind = family_of(config).kind
    if kind == "encoder" and getattr(config, "is_decoder", False):
        return "decoder"
    bidirectional = getattr(config, "use_bidirectional_attention", None) is True
    if kind == "decoder" and (bidirectional or getattr(config, "is_causal", None) is False):
        return "encoder"
    return kind


def rope_of(config):
    """Return (rope_theta, rotary_fraction) of a configuration, (None, None) where nothing rotates.

    Where layers differ (Gemma-3, ModernBERT) the base is that of the layers with full attention.
    """
    if not position_encoding_of(config).startswith("rope"):
        return None, None
    parameters = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in parameters:
        parameters = parameters["full_attention"] or {}
    theta = parameters.get("rope_theta", getattr(config, "rope_theta", None)) or family_of(config).rope_theta
    fraction = parameters.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    rotary_dim = getattr(config, "rotary_dim", None)
    if fraction is None and rotary_dim:
        fraction = rotary_dim / head_dim_of(config)
    return (float(theta) if theta is not None else None), (float(fraction) if fraction is not None else 1.0)


def head_dim_of(config):
    """Return the width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def n_kv_heads_of(config):
    """Return the number of key/value heads: the query heads divide evenly among them."""
    grouped = getattr(config, "num_key_value_heads", None)
    if grouped:
        return grouped
    if config.model_type == "falcon" and config.new_decoder_architecture:
        return config.num_kv_heads
    if getattr(config, "multi_query", False):
        return 1
    return config.num_attention_heads


def max_positions_of(config, model=None):
    """Return how many positions a model has, or None where its encoding sets no limit (T5, BLOOM).

    Tables of positions with a row for padding (RoBERTa, ESM, LUKE) reserve it and those before it, which only
    the model tells.
    """
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if limit is None or config.model_type == "t5":
        return None
    for name, module in model.named_modules() if model is not None else ():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None and len(module.weight) == limit:
            return limit - padding - 1
    return limit


def _inferred_encoding(config):
    stated = getattr(config, "position_embedding_type", None)
    if getattr(config, "alibi", False) is True or stated == "alibi":
        return "alibi"
    rotates = getattr(config, "rope_parameters", None) or getattr(config, "rope_theta", None)
    if rotates or stated in ("rotary", "rope"):
        return "rope"
    if getattr(config, "relative_attention_num_buckets", None):
        return "t5"
    if getattr(config, "sinusoidal_pos_embds", False) or stated == "sinusoidal":
        return "sinusoidal"
    if getattr(config, "max_position_embeddings", None):
        return "learned"
    return "unknown"


def _inferred_kind(config):
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if getattr(config, "is_decoder", False) or (causal and not masked):
        return "decoder"
    return "encoder"

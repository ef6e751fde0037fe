"""Read weights, of GGUF files too; refuse those of which transformers would drop or make up a part."""

import inspect
import math

from nbhelpers.words import first_names

from . import families


def read_exactly(classes, path, name, **options):
    """Return a model, of the first of the classes that takes them all, whose every tensor is its file's.

    Tensors that transformers would draw, drop or reshape are a ValueError by name. Tied weights, derived
    buffers and heads, which do not attend, may differ; a pooler that the file lacks is taken off.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    options |= {"use_safetensors": True, "trust_remote_code": False, "ignore_mismatched_sizes": True}
    differences, verbosity = [], logging.get_verbosity()
    logging.set_verbosity_error()  # its report is read here
    try:
        for each in classes:
            model, report = each.from_pretrained(path, **options, output_loading_info=True)
            differences.append(_difference(model, report))
            if not differences[-1]:
                return model
    except SafetensorError as error:
        raise ValueError(f"a weight file of {name!r} is damaged ({error}); download it again") from error
    finally:
        logging.set_verbosity(verbosity)
    why = f"the weights of {name!r} are not the model of its configuration"
    raise ValueError(f"{why}: {differences[0]}; download it again, or correct config.json")


def _difference(model, report):
    """Return in words how a model differs from its file, "" if it does not."""
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    optional = "add_pooling_layer" in inspect.signature(type(model).__init__).parameters
    if missing and optional and all(key.startswith("pooler.") for key in missing):
        model.pooler, missing = None, []
    if unexpected:
        base = model.base_model
        own = {model.base_model_prefix, *dict(model.named_children()), *dict(base.named_children())}
        heads = _heads(model.config) - own
        unexpected = [key for key in unexpected if key.split(".")[0] not in heads]
    mismatched = sorted(report["mismatched_keys"])
    reshaped = [f"{key} {tuple(held)} for {tuple(wanted)}" for key, held, wanted in mismatched]
    n_tensors = len(model.state_dict())
    parts = (
        (missing, f"of its {n_tensors} tensors {{}} are not in the file and would be drawn at random"),
        (unexpected, "{} tensors of the file have no place in it"),
        (reshaped, "{} tensors have another shape in the file"),
    )
    return "; ".join(f"{words.format(len(keys))} ({first_names(keys)})" for keys, words in parts if keys)


def _heads(config):
    """Return the names of all parts that transformers puts on top of a model of this kind."""
    import torch
    import transformers

    autos = [getattr(transformers, name) for name in dir(transformers) if name.startswith("AutoModelFor")]
    with torch.device("meta"):
        models = [auto.from_config(config) for auto in autos if type(config) in auto._model_mapping]
    return {name for model in models for name, _ in model.named_children()}


def open_parts(parts):
    """Return a `gguf.GGUFReader` for each file; ValueError if one is damaged or they are not a model."""
    import gguf

    try:
        readers = [gguf.GGUFReader(part) for part in parts]
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"{parts[0]} or a part of it is damaged ({error}); download it again") from error
    n_tensors = sum(len(reader.tensors) for reader in readers)
    stated = _value(readers[0], "split.count", 1), _value(readers[0], "split.tensors.count", n_tensors)
    if stated != (len(parts), n_tensors):
        raise ValueError(
            f"{parts[0]} is of a model of {stated[0]} files with {stated[1]} tensors, and {len(parts)} with "
            f"{n_tensors} were found; put all beside it, as NAME-00001-of-{stated[0]:05d}.gguf and so on"
        )
    return readers


def merge(readers, path):
    """Write the parts of a split model as one file, as llama.cpp does."""
    import gguf

    writer = gguf.GGUFWriter(path, _value(readers[0], "general.architecture"))
    for field in readers[0].fields.values():
        if not field.name.startswith(("GGUF.", "split.", "general.architecture")):
            kind, *entries = field.types
            writer.add_key_value(field.name, field.contents(), kind, entries[-1] if entries else None)
    for tensor in (tensor for reader in readers for tensor in reader.tensors):
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def require_all_read(readers, model, name):
    """Raise a ValueError if transformers left out tensors, or settings of attention, that the files hold."""
    import gguf

    config, architecture = model.config, _value(readers[0], "general.architecture")
    tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    ends = [tensors.get(name) for name in ("token_embd.weight", "output.weight")]
    if config.tie_word_embeddings and all(ends) and ends[0].data.tobytes() == ends[1].data.tobytes():
        del tensors["output.weight"]  # stored twice
    held = sum(int(tensor.n_elements) for tensor in tensors.values())
    taken = sum({weight.data_ptr(): weight.numel() for weight in model.state_dict().values()}.values())
    if held != taken:
        code = next(code for code, known in gguf.MODEL_ARCH_NAMES.items() if known == architecture)
        names = gguf.get_tensor_name_map(code, config.num_hidden_layers)
        read = {names.get_name(key, try_suffixes=(".weight", ".bias")) for key in model.state_dict()}
        lost = first_names([tensor for tensor in tensors if tensor not in read])
        raise ValueError(f"of {held} weights in {name} transformers reads {taken}, not {lost}; {_WAY_OUT}")
    for key, setting in _SETTINGS.items():
        stated, taken = _value(readers[0], f"{architecture}.{key}"), setting(config)
        differs = isinstance(stated, int | float) and not math.isclose(stated, taken or 0, rel_tol=1e-5)
        if differs or (stated is None and key == "attention.head_count"):
            raise ValueError(f"{name} says {key} {stated}, and transformers takes {taken}; {_WAY_OUT}")


_WAY_OUT = "the model would be another one: load its safetensors"
_SETTINGS = {  # by their names in a file; transformers does not read all of them for all families
    "attention.head_count": lambda config: config.num_attention_heads,
    "attention.sliding_window": lambda config: getattr(config, "sliding_window", None),
    "attn_logit_softcapping": lambda config: getattr(config, "attn_logit_softcapping", None),
    "rope.freq_base": lambda config: families.rope_of(config)[0],
    "rope.scaling.factor": lambda config: (getattr(config, "rope_parameters", 0) or {}).get("factor", 1.0),
}


def _value(reader, key, default=None):
    field = reader.fields.get(key)
    return default if field is None else field.contents()

"""Read weights; refuse a model of which transformers would make a part up."""

import inspect

from nbhelpers.words import first_names


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

"""A model without its weights: its architecture on torch's meta device, which takes no memory."""

import torch

from .files import locate
from .models import LoadedModel, _config, _dtype, describe, skeleton_of


def load_skeleton(name, *, revision=None, dtype=None, device="cpu"):
    """Return a model as `load_model` names it, without weights and tokenizer, to count and to plan with.

    Only the configuration is read. A packaged GGUF model is converted first if it never was.

    Parameters
    ----------
    name, revision, dtype
        As in `load_model`; `dtype` None means what `load_model` would choose on `device`.
    device : str
        "cpu" or "cuda": where the model would go.

    Returns
    -------
    LoadedModel
        Its parameters are on the meta device; its description is that of the model itself.

    Raises
    ------
    LookupError, FileNotFoundError, ConnectionError, PermissionError, ValueError
        As `load_model`.
    """
    base = name.removeprefix("random:")
    files = locate(base, revision=revision, weights=False)
    config = _config(files, base)
    model = skeleton_of(config, _dtype(dtype, torch.device(device)))
    return LoadedModel(model.eval(), None, describe(model, name=name, revision=files.revision))

"""Where the weights of a model go: one device, or spread over GPUs, memory and disk."""

import ctypes
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

SPREAD = "spread"


@dataclass(frozen=True)
class Placement:
    """Where weights go.

    Attributes
    ----------
    device : torch.device
        Of the whole model; of its first layers, if it is spread.
    spread : dict
        Arguments of `from_pretrained` that spread a model; empty for one device.
    """

    device: torch.device
    spread: dict = field(default_factory=dict)


def place(device, *, max_memory=None, offload=None):
    """Return the placement that `load_model` was asked for; see there.

    Raises
    ------
    ValueError
        An unknown device word, or limits for one device.
    RuntimeError
        CUDA asked for without a GPU.
    """
    if device == SPREAD:
        first = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        options = {"device_map": "auto"}
        options |= {} if max_memory is None else {"max_memory": dict(max_memory)}
        options |= {} if offload is None else {"offload_folder": str(Path(offload))}
        return Placement(first, options)
    if max_memory is not None or offload is not None:
        raise ValueError(f"max_memory and offload belong to device={SPREAD!r}; device is {device!r}.")
    return Placement(one_device(device))


def one_device(device):
    """Return a torch.device; "auto" is CUDA where there is a GPU, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"unknown device {device!r}: expected 'auto', 'cpu', 'cuda', 'cuda:0' or {SPREAD!r}"
        ) from error
    n_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        raise RuntimeError(
            f"device {str(device)!r} was asked for, but torch {torch.__version__} sees {n_gpus} CUDA GPUs "
            "here; use device='auto' or device='cpu', or install a CUDA build of torch"
        )
    return device


def require_room(skeleton, placement, name):
    """Refuse a model whose weights do not fit the free memory of its device, before they are read.

    Parameters
    ----------
    skeleton : transformers.PreTrainedModel
        On the meta device, in the dtype it will have.
    placement : Placement
    name : str

    Raises
    ------
    MemoryError
        The message holds both sizes and what to do.
    """
    if placement.spread:
        return  # what does not fit one place goes to the next
    needed = sum(parameter.nbytes for parameter in skeleton.parameters())
    free = free_memory(placement.device)
    if needed > free:
        smaller = "" if skeleton.dtype.itemsize < 4 else "dtype='bfloat16' (half of that), "
        raise MemoryError(
            f"the weights of {name!r} take {needed / 2**30:.2f} GB in {str(skeleton.dtype)[6:]}, and "
            f"{free / 2**30:.2f} GB are free on {placement.device}; try {smaller}another device, or "
            f"device={SPREAD!r}, which puts on disk what does not fit"
        )


def free_memory(device):
    """Return the free bytes of a device: of the GPU, or what the system can give without swapping."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return psutil.virtual_memory().available


def return_freed_memory():
    """Hand back to the system what was freed and is kept by the C library; only glibc can be asked to.

    Weights that were drawn at random lie in many small pieces, which glibc keeps for later (450 MB for
    SmolLM2-135M); those of a checkpoint are read into pages of their own and would come on top.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

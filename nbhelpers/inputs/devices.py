"""Where the weights of a model go: one device, or spread over GPUs, memory and disk."""

import ctypes
import sys

import torch

from .files import cache_folder
from .memory import available_memory, left_to_groups

SPREAD = "spread"


def place(device, *, max_memory=None, offload=None):
    """Return the device, of the first layers if a model is spread, and what has from_pretrained spread it."""
    if device == SPREAD:
        if max_memory is None and (room := left_to_groups()):  # accelerate asks the whole machine
            from accelerate.utils import get_max_memory

            max_memory = get_max_memory()
            max_memory["cpu"] = min([max_memory["cpu"], *room])
        options = {"max_memory": max_memory, "offload_folder": str(offload or cache_folder() / "offload")}
        return one_device("auto"), {"device_map": "auto"} | options
    if max_memory is not None or offload is not None:
        raise ValueError(f"max_memory and offload belong to device={SPREAD!r}; device is {device!r}.")
    return one_device(device), {}


def one_device(device):
    """Return a torch.device; "auto" is CUDA where there is a GPU, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"unknown device {device!r}: expected auto, cpu, cuda, cuda:0 or spread") from error
    n_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        raise RuntimeError(f"device '{device}' was asked for; torch sees {n_gpus} CUDA GPUs")
    return device


def require_room(skeleton, device, name):
    """Raise MemoryError if the weights of a skeleton do not fit the free memory of their one device."""
    needed = sum(parameter.nbytes for parameter in skeleton.parameters())
    free = free_memory(device)
    if needed > free:
        smaller = "" if skeleton.dtype.itemsize < 4 else "dtype='bfloat16' (half of that), "
        taken = f"{needed / 2**30:.2f} GB in {str(skeleton.dtype)[6:]}, and {free / 2**30:.2f} GB are free"
        way_out = f"{smaller}another device, or device={SPREAD!r}, which puts on disk what does not fit"
        raise MemoryError(f"the weights of {name!r} take {taken} on {device}; try {way_out}")


def free_memory(device):
    """Return the free bytes of a GPU, or what the system can give without swapping."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return available_memory()


def return_freed_memory():
    """Hand back to the system what glibc keeps of freed memory: 450 MB of a random SmolLM2-135M, in 7 ms."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)

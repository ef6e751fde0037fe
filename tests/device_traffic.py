"""What passes between the host and a device while code runs, and the devices that tests ask for.

`meta` tensors have shapes and no numbers: code that reads one on the host fails. That makes them a stand-in
for a GPU on a machine without one, as far as shapes, devices and traffic go.
"""

import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def gpu_marks(count=1):
    """Return the marks of tests that need CUDA devices: skipped, and said, where there are too few."""
    found = torch.cuda.device_count()
    reason = f"needs {count} CUDA device{'s' * (count > 1)}, {found} here: results on a GPU are not tested"
    return [pytest.mark.gpu, pytest.mark.skipif(found < count, reason=reason)]


def needs_gpus(count=1):
    """Give these marks to one test."""
    gpu, skip = gpu_marks(count)
    return lambda test: gpu(skip(test))


@contextlib.contextmanager
def traffic():
    """Yield a list that gets an entry for each number read, each copy, each operation that mixes devices."""
    seen = []
    with _Made(seen), _Called(seen):
        yield seen


class _Made(TorchFunctionMode):
    """Notes tensors made from numbers of Python, which are made on the host and copied."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and isinstance(args[0], (bool, int, float, list, tuple)):
            _note_copy(self.seen, torch.device("cpu"), result.device)
        return result


class _Called(TorchDispatchMode):
    """Notes what the kernels that are called do."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        name = func.overloadpacket.__name__
        if name in ("item", "_local_scalar_dense", "nonzero"):  # the last to know the shape of its result
            self.seen.append(f"read from {given[0].device.type}")
        copies = name in ("to", "_to_copy", "copy_")
        # A number in a CPU tensor without axes goes along with the call of a kernel.
        if not copies and len({tensor.device for tensor in given if tensor.ndim}) > 1:
            self.seen.append(f"devices mixed by {name}")
        result = func(*args, **(kwargs or {}))
        if copies:
            _note_copy(self.seen, given[-1].device, result.device)
        return result


def _note_copy(seen, source, target):
    if source != target:
        seen.append(f"copy from {source.type} to {target.type}")

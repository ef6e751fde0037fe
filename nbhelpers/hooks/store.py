"""Keep finished batches of a capture in a folder named by all that could change them."""

import functools
import hashlib
import inspect
import json
import types
from contextvars import ContextVar
from pathlib import Path

import torch

from nbhelpers.profiles import Profiles
from nbhelpers.words import warn

from .attention import CHANGES
from .exchange import holding

# Attributes of modules that decide nothing of what they compute, or are stated elsewhere.
BOOKKEEPING = {*vars(torch.nn.Module()), "_hf_hook", "_is_hf_initialized", "generation_config"} - {"training"}
BOOKKEEPING |= {"hf_device_map", "name_or_path", "warnings_issued"}
DEPTH = 6  # of objects within an attribute that are looked into
_HASHED = ContextVar("nbhelpers_hashed", default=None)  # fingerprints of models by their id


class BatchStore:
    """Finished batches of one capture; keeps nothing where `folder` is None or cannot be written."""

    def __init__(self, folder, network, facts, *inputs):
        self.folder = None
        if folder is None:
            return
        tables = [table for m in network.modules() for table in (m._forward_hooks, m._forward_pre_hooks)]
        owners = [getattr(hook, "__module__", None) or "" for table in tables for hook in table.values()]
        changed = not CHANGES.get().keys().isdisjoint(network.modules())
        if changed or not all(owner.startswith("transformers.") for owner in owners):  # which hooks outputs
            carried = "forward hooks or changed positions, which a cache cannot tell apart"
            raise ValueError(f"The model carries {carried}; capture without cache=.")
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(network.config.to_json_string(use_diff=False).encode())
        known = {} if _HASHED.get() is None else _HASHED.get()
        if id(network) not in known:
            known[id(network)] = weight_fingerprint(network) + computation_fingerprint(network)
        digest.update(known[id(network)] + "".join(repr(_content(each, {})) for each in inputs).encode())
        self.key = digest.hexdigest()
        self.folder = Path(folder) / f"profiles-{self.key[:16]}"

    def _place(self, rows):
        """Return the file and the label of some sequences: both ends, as the next run may batch otherwise."""
        label = f"sequences {rows.start} to {rows.stop} of the capture {self.key}"
        return self.folder / f"sequences-{rows.start:06d}-{rows.stop:06d}.safetensors", label

    def load(self, rows):
        """Return the Profiles of a slice of sequences, None if they are to be captured."""
        if self.folder is not None:
            path, label = self._place(rows)
            try:
                return Profiles.load(path, label=label)
            except FileNotFoundError:
                pass
            except (ValueError, OSError) as error:
                warn(f"{error} It is captured again.")
        return None

    def save(self, rows, part):
        """Keep the Profiles of a slice of sequences."""
        if self.folder is not None:
            path, label = self._place(rows)
            try:
                part.save(path, label=label)
            except OSError as error:
                warn(f"{error}. The capture goes on without its cache.")
                self.folder = None


def hashed_once():
    """Return a block in which a model, which must not change, is hashed once for all captures."""
    return holding(_HASHED, {})


def weight_fingerprint(network):
    """Return bytes that change with any bit of any parameter or buffer."""
    from accelerate.utils import align_module_device

    digest = hashlib.sha256()
    names = {name for name, _ in [*network.named_parameters(), *network.named_buffers()]}  # tied ones once
    for path, module in network.named_modules():
        with align_module_device(module):  # weights that wait on a disk are read in turn
            for name, tensor in (*module.named_parameters(path, False), *module.named_buffers(path, False)):
                if name in names:
                    digest.update(f"{name} {_content(tensor, {})}".encode())
    return digest.digest()


def computation_fingerprint(network):
    """Return bytes that change with what modules compute beside their tensors: classes, code, attributes."""
    digest, known = hashlib.sha256(), {}
    for path, module in network.named_modules():
        own = {name: value for name, value in vars(module).items() if name not in BOOKKEEPING}
        forward = type(module).forward
        parts = [type(module), inspect.unwrap(forward), forward, own]  # what decorators hide, from its top
        digest.update(f"{path} {_content(parts, known)}".encode())
    return digest.digest()


def _content(value, known, depth=DEPTH):
    """Return lists and texts that tell a value from others, the same in every process."""
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return [str(value.dtype), tuple(value.shape), hashlib.sha256(data).hexdigest()]
    if isinstance(value, (type, types.BuiltinFunctionType)) or depth == 0:
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}.{named.__qualname__}"
    content = functools.partial(_content, known=known, depth=depth - 1)
    if isinstance(value, torch.nn.Module):
        return content(type(value))  # looked into by its own name
    if isinstance(value, dict):
        return sorted(([content(key), content(item)] for key, item in value.items()), key=repr)
    if isinstance(value, (set, frozenset)):
        return sorted(map(content, value), key=repr)
    if isinstance(value, (list, tuple)):
        return [*map(content, value)]
    if isinstance(value, (types.FunctionType, types.CodeType)) or hasattr(value, "to_json_string"):
        if id(value) not in known:
            known[id(value)] = type(value).__name__  # while it is looked into, for those that call themselves
            known[id(value)] = content(_behaviour(value))
        return known[id(value)]
    if isinstance(value, types.MethodType):
        return content([value.__func__, value.__self__])
    if isinstance(value, functools.partial):
        return content([value.func, value.args, value.keywords])
    return [content(type(value)), content(vars(value))] if hasattr(value, "__dict__") else repr(value)


def _behaviour(value):
    """Return what decides what a function computes, or what a configuration says."""
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_names, value.co_consts]
    if not isinstance(value, types.FunctionType):
        return value.to_json_string()
    used = {name: value.__globals__.get(name) for name in value.__code__.co_names}
    called = {name: other for name, other in used.items() if isinstance(other, types.FunctionType)}
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    return [value.__code__, value.__defaults__, value.__kwdefaults__, cells, called]

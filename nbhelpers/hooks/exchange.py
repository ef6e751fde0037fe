"""Change what models look up, what a context holds, and torch.compile, while blocks of any thread run."""

import contextlib
import sys
import threading

import torch
from transformers import AttentionInterface

_LOCK = threading.Lock()
_EXCHANGED = {}  # by (id of a table, key): [what was there, blocks that run]
_EAGER = []  # one for every block of `as_written` that runs; the first holds what the last undoes


@contextlib.contextmanager
def holding(variable, value):
    """Run a block in which a context variable has a value, in this thread alone."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextlib.contextmanager
def exchanged(entries, wrap):
    """Run a block in which every entry, (table, key), holds `wrap` of what it held, which must find out by
    itself whose call it is: blocks that share an entry share it."""
    with _LOCK:
        for table, key in entries:
            held = _EXCHANGED.setdefault((id(table), key), [table[key], 0])
            if not held[1]:
                table[key] = wrap(held[0])
            held[1] += 1
    try:
        yield
    finally:
        with _LOCK:
            for table, key in entries:
                held = _EXCHANGED[id(table), key]
                held[1] -= 1
                if not held[1]:
                    table[key] = held[0]
                    del _EXCHANGED[id(table), key]


@contextlib.contextmanager
def as_written():
    """Run a block in which compiled layers run as they are written, so that hooks see them."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled
        yield
        return
    with _LOCK:
        _EAGER.append(_EAGER[0] if _EAGER else torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _LOCK:
            stance = _EAGER.pop()
            if not _EAGER:
                stance.__exit__(None, None, None)


def attention_entries(modules):
    """Return where these modules find their attention functions, as pairs (table, key)."""
    names = sorted({kind.__module__ for module in modules for kind in type(module).__mro__})
    scopes = [vars(sys.modules[name]) for name in names if name in sys.modules]
    own = [getattr(scope.get("ALL_ATTENTION_FUNCTIONS"), "_local_mapping", {}) for scope in scopes]
    tables = {id(table): table for table in (AttentionInterface._global_mapping, *own)}.values()  # each once
    eager = [(scope, "eager_attention_forward") for scope in scopes if "eager_attention_forward" in scope]
    return [*((table, "sdpa") for table in tables if "sdpa" in table), *eager]

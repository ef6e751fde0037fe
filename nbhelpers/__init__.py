"""Analyse what the attention of a transformer does across positions and scales.

The names below are all that the notebooks need; each is imported when it is first used, so that the command
line starts without torch.
"""

import importlib
import os

__version__ = "0.1.0"

# OpenMP's threads spin while they wait, which on a busy machine takes the cores from those that work. It
# reads this when torch is imported; kernels and other processes started from here inherit it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_NAMES = {
    "inputs.models": ("load_model", "available_models", "describe"),  # a model
    "inputs.text": ("load_text", "scaled_variant"),  # and a text
    "hooks.capture": ("capture",),  # its attention, reduced to small arrays
    "hooks.memory": ("plan",),
    "profiles": ("Profiles",),
    "protocol": ("Protocol", "PAPER"),  # every choice between attention and a number
    "analysis": ("analyze", "observe", "measure", "Observation"),  # the metrics of every head
    "table": ("HeadTable", "compare"),
    "inspector": ("inspect_heads",),  # look at a head
    "nulls": ("nulls",),  # a whole module: attention that learned nothing
    "specifications": ("specifications",),  # every reading at once
    "kernels": ("kernels",),  # the mathematics alone
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = ["__version__", *_HOME]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'nbhelpers' has no attribute {name!r}; it has {', '.join(_HOME)}")
    module = importlib.import_module(f"nbhelpers.{_HOME[name]}")
    return module if name == _HOME[name] else getattr(module, name)


def __dir__():
    return __all__

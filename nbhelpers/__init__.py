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

_HOME = {
    # a model and a text
    "load_model": "inputs.models",
    "available_models": "inputs.models",
    "describe": "inputs.models",
    "load_text": "inputs.text",
    "scaled_variant": "inputs.text",
    # its attention, reduced to small arrays
    "capture": "hooks.capture",
    "plan": "hooks.memory",
    "Profiles": "profiles",
    # every choice between attention and a number
    "Protocol": "protocol",
    "PAPER": "protocol",
    # the metrics of every head
    "analyze": "analysis",
    "observe": "analysis",
    "measure": "analysis",
    "Observation": "analysis",
    "HeadTable": "table",
    "compare": "table",
    # look at a head
    "inspect_heads": "inspector",
    # whole modules: attention that learned nothing; every reading at once; the mathematics alone
    "nulls": "nulls",
    "specifications": "specifications",
    "kernels": "kernels",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'nbhelpers' has no attribute {name!r}; it has {', '.join(_HOME)}")
    module = importlib.import_module(f"nbhelpers.{_HOME[name]}")
    return module if name == _HOME[name] else getattr(module, name)


def __dir__():
    return __all__

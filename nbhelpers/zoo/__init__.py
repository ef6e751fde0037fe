"""The controlled zoo: one small transformer, seven position encodings, dense checkpoints, sizes.

The names below are what the notebooks need; each is imported when it is first used.
"""

import importlib

_HOME = {
    "zoo_measurements": "shipped",
    "zoo_runs": "shipped",
    "zoo_yardstick": "shipped",
    "Settings": "settings",
    "ENCODINGS": "settings",
}

__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'nbhelpers.zoo' has no attribute {name!r}; it has {', '.join(_HOME)}")
    return getattr(importlib.import_module(f"nbhelpers.zoo.{_HOME[name]}"), name)


def __dir__():
    return __all__

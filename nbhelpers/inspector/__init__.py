"""The head inspector: ``inspect_heads(model, text)`` in a cell of JupyterLab.

`reading` measures (no widgets), `export` makes of it what the page and files get, and `widget` is Python's
side of the page that ``drawing.js`` and ``inspector.js`` draw.
"""

from .widget import inspect_heads

__all__ = ["inspect_heads"]

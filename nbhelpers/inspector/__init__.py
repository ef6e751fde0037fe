"""The head inspector: ``inspect_heads(model, text)`` in a cell of JupyterLab.

`reading` measures (no widgets), `packing` makes of it what the page gets, `widget` is Python's side
of the page that ``drawing.js`` and ``inspector.js`` draw, and `export` writes what is shown to files.
"""

from .reading import Ablation, HeadView, Reading, read_text
from .widget import HeadInspector, inspect_heads

__all__ = ["Ablation", "HeadInspector", "HeadView", "Reading", "inspect_heads", "read_text"]

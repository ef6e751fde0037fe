"""The head inspector: ``inspect_heads(model, text)`` in a cell of JupyterLab.

`reading` measures (no widgets), `panels` and `figures` draw, `map` is the clickable map, `widget` joins them.
"""

from .reading import Reading, read_text
from .views import Ablation, HeadView
from .widget import HeadInspector, inspect_heads

__all__ = ["Ablation", "HeadInspector", "HeadView", "Reading", "inspect_heads", "read_text"]

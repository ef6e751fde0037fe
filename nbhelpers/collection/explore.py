"""A figure with controls: each of them draws it anew, and a page without a kernel shows the first picture."""

import base64
import io

import matplotlib.pyplot as plt
from ipywidgets import HBox, Image, VBox


class Explorer(VBox):
    """Show the figure that `draw` makes of the values of some controls, and draw it anew when one changes.

    ``draw(name=value, ...)`` returns a matplotlib figure, which is closed here and kept as a picture;
    `controls` are ipywidgets with a ``value``, by the name of the argument.
    """

    def __init__(self, draw, **controls):
        self._draw, self.controls, self._drawn = draw, controls, {}
        self.picture = Image(format="png", layout={"max_width": "100%"})
        super().__init__([HBox([*controls.values()], layout={"flex_flow": "row wrap"}), self.picture])
        for control in controls.values():
            control.continuous_update = False  # a picture when the hand lets go
            control.observe(self._redraw, "value")
        self._redraw()

    def _redraw(self, _=None):
        values = {name: control.value for name, control in self.controls.items()}
        if (chosen := str(values)) not in self._drawn:
            figure, png = self._draw(**values), io.BytesIO()
            figure.savefig(png, format="png", dpi=90, bbox_inches="tight", metadata={"Software": None})
            plt.close(figure)
            self._drawn[chosen] = png.getvalue()
        self.picture.value = self._drawn[chosen]

    def idle(self):
        """Try both ends of each control, or some of its options; return the names that change nothing."""
        found = []
        for name, control in self.controls.items():
            first, shown = control.value, self.picture.value
            values = getattr(control, "options", None) or (control.min, control.max)
            for value in values[:: max(1, len(values) // 4)]:
                control.value = value
                if self.picture.value != shown:
                    break
            else:
                found.append(name)
            control.value = first
        return found

    def _repr_mimebundle_(self, **kwargs):
        png = base64.b64encode(self.picture.value).decode()
        return super()._repr_mimebundle_(**kwargs) | {"image/png": png}

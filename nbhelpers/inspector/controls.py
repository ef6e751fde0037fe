"""The controls of the inspector and where they stand; what they do is in ``widget.py``."""

from types import SimpleNamespace

import ipywidgets as widgets

from nbhelpers.inputs.models import available_models
from nbhelpers.protocol import OPTIONS, SIGNALS

from .map import HeadMap

WAVELETS = ("haar", "db2", "db4", "sym4", "coif1")
# The choices that the inspector offers; the other fields of the protocol stay as they were given.
CHOSEN = ("signal", "sink", "detrend", "window", "wavelet", "mode", "scaled_variant")
PROTOCOL_CHOICES = {name: (OPTIONS | {"signal": SIGNALS, "wavelet": WAVELETS})[name] for name in CHOSEN}
TYPED = "typed text"
SAMPLES = {
    TYPED: None,
    "a sentence over and over": "The grey cat sat on the warm wall and watched the slow boats go by. " * 8,
    "numbers in order": " ".join(str(number) for number in range(1, 90)),
    "questions and answers": (
        "Question: What is the capital of France? Answer: Paris. Question: What is the capital of Italy? "
        "Answer: Rome. Question: What is the capital of Spain? Answer: Madrid. Question: What is the capital "
        "of Greece? Answer: Athens. Question: What is the capital of Austria? Answer: Vienna."
    ),
    "a small program": (
        "def mean(values):\n    total = 0\n    for value in values:\n        total = total + value\n"
        "    return total / len(values)\n\n\ndef spread(values):\n    centre = mean(values)\n    total = 0\n"
        "    for value in values:\n        total = total + (value - centre) ** 2\n"
        "    return (total / len(values)) ** 0.5\n"
    ),
}
BANDS = {"low": "low_band", "mid": "mid_band", "high": "high_band"}


def make_controls(*, model, text, length, protocol, folder):
    """Return all widgets of the inspector by name."""
    c = SimpleNamespace()
    c.model = widgets.Combobox(
        value=model, options=list(available_models()), description="model", continuous_update=False,
        tooltip="a packaged name, a Hub id, a folder or a .gguf file", layout=_width(320),
    )  # fmt: skip
    c.sample = widgets.Dropdown(options=list(SAMPLES), value=TYPED, description="text", layout=_width(280))
    c.length = widgets.BoundedIntText(
        value=length, min=1, max=1_000_000, description="tokens at most", layout=_width(200),
        style={"description_width": "100px"},
    )  # fmt: skip
    c.measure = _button("Measure", "read the text again", icon="refresh")
    c.stop = _button("Stop", "stop what runs; what was shown stays", icon="stop", disabled=True)
    c.text = widgets.Textarea(
        value=text, rows=3, layout=widgets.Layout(width="99%", height="74px"),
        placeholder="type text; it is measured when you pause", tooltip="the text that the model reads",
    )  # fmt: skip
    c.progress = widgets.FloatProgress(min=0, max=1, layout=_width(180))
    c.progress.layout.visibility = "hidden"
    c.status = widgets.HTML()
    c.protocol = {
        name: widgets.Dropdown(
            options=list(dict.fromkeys([*options, getattr(protocol, name)])), value=getattr(protocol, name),
            description=name, layout=_width(250), style={"description_width": "100px"},
        )
        for name, options in PROTOCOL_CHOICES.items()
    }  # fmt: skip
    c.metric = widgets.Dropdown(description="colour by", layout=_width(300))
    c.metric.style.description_width = "70px"
    c.map = HeadMap()
    c.band = widgets.Dropdown(options=list(BANDS), description="band", layout=_width(130))
    c.band.style.description_width = "40px"
    c.previous = _button("◀ previous", "previous head of this band: a larger share")
    c.next = _button("next ▶", "next head of this band: a smaller share")
    c.span = widgets.IntRangeSlider(
        min=0, max=1, value=(0, 1), description="zoom (tokens)", continuous_update=False, layout=_width(380),
        style={"description_width": "100px"},
    )  # fmt: skip
    c.attention, c.other, c.curves = widgets.HTML(), widgets.HTML(), widgets.HTML()
    c.other.layout.display = "none"
    c.numbers = widgets.HTML()
    c.pin = _button("Pin this head", "keep it beside the next ones, for comparison", icon="thumb-tack")
    c.unpin = _button("Unpin", "show one head only", disabled=True)
    c.ablate = _button("Ablate this head", "set it to zero and see the loss of this text", icon="scissors")
    c.folder = widgets.Text(
        value=str(folder), description="folder", layout=_width(280), continuous_update=False
    )
    c.export = _button("Export PNG + CSV", "write picture and numbers into the folder", icon="download")
    c.ablation, c.links = widgets.HTML(), widgets.HTML()
    _mark(c)
    return c


def arrange(c):
    """Return the children of the inspector, from top to bottom."""
    row = widgets.Layout(flex_flow="row wrap", align_items="center")
    choices = widgets.Box(list(c.protocol.values()), layout=row)
    left = widgets.VBox([c.metric, c.map, widgets.Box([c.band, c.previous, c.next], layout=row)])
    panels = widgets.Layout(flex_flow="row wrap")
    return [
        widgets.Box([c.model, c.sample, c.length, c.measure, c.stop, c.progress], layout=row),
        c.text,
        widgets.Accordion([choices], titles=["Protocol: how attention becomes a number"]),
        widgets.Box([c.pin, c.unpin, c.ablate, c.export, c.folder], layout=row),
        c.status,
        c.ablation,
        c.links,
        widgets.Box([left, widgets.VBox([c.span, c.attention]), c.numbers], layout=panels),
        widgets.Box([c.curves, c.other], layout=panels),
    ]


def _button(text, tooltip, **options):
    return widgets.Button(description=text, tooltip=tooltip, layout=widgets.Layout(width="auto"), **options)


def _width(pixels):
    return widgets.Layout(width=f"{pixels}px")


def _mark(c):
    """Give each control a class by which style sheets and tests find it."""
    for name, control in (vars(c) | c.protocol).items():
        if name != "protocol":
            control.add_class(f"nbh-{name.replace('_', '-')}")

"""The head inspector: one widget whose page is drawn by ``inspector.js``, and what Python does for it.

The page is sent the reading once and one layer at a time, draws its heads by itself, and asks for the rest.
What takes seconds runs in another thread, one at a time, and replaces what is shown once it has succeeded.
"""

import base64
import html
import io
import json
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from IPython.display import HTML
from tqdm.auto import tqdm

from nbhelpers.arguments import checked, text
from nbhelpers.files import write_text
from nbhelpers.inputs.models import LoadedModel, available_models, load_model
from nbhelpers.plots import draw_heads
from nbhelpers.protocol import OPTIONS, PAPER, SIGNALS, Protocol

from .export import export_heads, pack_layer, pack_reading, to_page
from .reading import ModelBusy, Reading, Stopped, read_text, watched

HERE = Path(__file__).parent
FRAME = "width: 100%; height: 980px; border: 0"
SCRIPTS = "drawing.js", "inspector.js"
WAVELETS = ("haar", "db2", "db4", "sym4", "coif1")
# The choices that the page offers; the other fields of the protocol stay as they were given.
CHOSEN = ("signal", "sink", "detrend", "window", "wavelet", "mode", "scaled_variant")
CHOICES = {name: list((OPTIONS | {"signal": SIGNALS, "wavelet": WAVELETS})[name]) for name in CHOSEN}
FORESEEN = (ValueError, LookupError, OSError, ImportError, MemoryError, RuntimeError, TypeError)


@checked(text=text)
def inspect_heads(
    model=None, text=None, *, protocol=PAPER, length=256, layer=0, head=0, metric="low_band", folder=".",
    state=None, progress=True,
):  # fmt: skip
    """Return a widget that shows every head of a model on a text, and each head closely.

    `model` is what :func:`nbhelpers.load_model` returns, or takes, with a tokenizer; `protocol` has the
    signal key_profile, last_query or lag_profile; at most `length` tokens of the `text` are read. `layer` and
    `head` are selected first, `metric` colours the map first, exports go to `folder`. `state` is what
    :meth:`HeadInspector.state` returns, or a JSON file that *Export* wrote: its length, protocol, heads and
    metric are taken, its model and text where none is given. `progress` shows a bar for the first reading.

    The text is read before the widget is returned, so what cannot be read raises here: ValueError for a text
    that is empty or too short, IndexError if there is no such head, KeyError for a metric. Later mistakes are
    told in the widget. Where widgets cannot run, the last cell value shows as a picture.
    """
    pinned = None
    if state is not None:
        if not isinstance(state, dict):
            state = json.loads(Path(state).expanduser().read_text(encoding="utf-8"))
        if missing := {"model", "text", "length", "protocol", "selected", "metric"} - set(state):
            raise ValueError(f"state lacks {', '.join(sorted(missing))}; it must be one that Export wrote")
        model, text = model or state["model"], text or state["text"]
        protocol, length, metric = Protocol(**state["protocol"]), state["length"], state["metric"]
        (layer, head), pinned = state["selected"], state.get("pinned")
    if model is None or text is None:
        raise ValueError("inspect_heads needs a model and a text, or a state that has both")
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    started = time.perf_counter()
    with tqdm(total=100, desc="measuring all heads", unit="%", leave=False, disable=not progress) as bar:
        reading = read_text(
            loaded, text, protocol, length=length, progress=lambda share: bar.update(int(100 * share) - bar.n)
        )
    options = {"selected": (layer, head), "metric": metric, "folder": folder, "length": length}
    made = HeadInspector(reading, seconds=time.perf_counter() - started, **options)
    if pinned is not None:
        reading.require_head(*pinned)
        made.pinned = tuple(pinned)
    return made


class HeadInspector(anywidget.AnyWidget):
    """The widget of :func:`inspect_heads`.

    `reading` is the last good one, from which all that is shown is read; `selected` and `pinned` (None
    without one), which can be set, are (layer, head); `ablations` are those of this reading, the latest last;
    `click_seconds` holds the time from each selection in another layer to what the page is sent, `error` what
    ended the last work, if anything.
    """

    _esm = "".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    _css = HERE / "inspector.css"

    shown = traitlets.Dict().tag(sync=True)  # of `pack_reading`
    layer_shown = traitlets.Dict().tag(sync=True)  # of `pack_layer`
    asked = traitlets.Dict().tag(sync=True)  # model, text, length and protocol as the page shows them
    choices = traitlets.Dict().tag(sync=True)
    selected = traitlets.Tuple((0, 0)).tag(sync=True)  # (layer, head)
    pinned = traitlets.Tuple(None, allow_none=True).tag(sync=True)
    metric = traitlets.Unicode().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)  # kind ("note" or "error") and text
    ablation = traitlets.Unicode().tag(sync=True)
    share = traitlets.Float(-1.0).tag(sync=True)  # of the work that is done; −1 while there is none

    def __init__(self, reading: Reading, *, selected, metric, folder, length, seconds):
        selected = tuple(selected) if any(selected) else reading.nearest_head(0, 0)  # the first that there is
        reading.require_head(*selected)
        reading.values(metric)
        self.reading, self.folder = reading, folder
        self.ablations, self.click_seconds, self.error = [], [], None
        self._lock, self._stopped = threading.RLock(), threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="inspector")
        self._last = self._pool.submit(int)  # there is no work yet
        choices = {"models": list(available_models()), "protocol": CHOICES}
        super().__init__(selected=selected, metric=metric, choices=choices)
        self.add_class("nbh-inspector")
        self._length, self._pinned_of = length, None
        self._show_reading(reading, seconds)
        self.on_msg(lambda widget, content, buffers: self._answer(content))
        self.observe(self._clicked, "selected")
        self.observe(self._keep, "pinned")

    def select(self, layer, head):
        """Show a head; IndexError if there is none, ModelBusy if the model must run for it and is at work."""
        layer, head = int(layer), int(head)
        with self._lock:
            self.reading.require_head(layer, head)
            if self.layer_shown["layer"] != layer:
                started = time.perf_counter()
                self.layer_shown = pack_layer(self.reading, layer, wait=False)
                self.click_seconds.append(time.perf_counter() - started)
            self.selected = (layer, head)

    def measure(self, *, model=None, text=None, length=None, protocol=None):
        """Read a text with a model, given by name, in the other thread; what is not given stays."""
        name = model or self.reading.model.description.name
        text = self.reading.text if text is None else text
        length, protocol = length or self._length, protocol or self.reading.protocol

        def work(progress, stop):
            model = self.reading.model
            if name != model.description.name:
                self._say(f"Loading {name} …")
                model = load_model(name)
            if stop():
                raise Stopped
            self._say("Measuring …")
            started = time.perf_counter()
            reading = read_text(model, text, protocol, length=length, progress=progress, stop=stop)
            self._length = length
            self._show_reading(reading, time.perf_counter() - started)

        self._start(work)

    def remeasure(self, **changes):
        """Measure what was read under a changed protocol; the model runs only for other scaled variants."""
        protocol = self.reading.protocol.replace(**changes)
        if protocol.scaled_variant != self.reading.protocol.scaled_variant:
            return self.measure(protocol=protocol)
        started, reading = time.perf_counter(), self.reading.under(protocol)
        return self._show_reading(reading, time.perf_counter() - started)

    def ablate(self):
        """Set the selected head to zero and measure the loss of the text, in the other thread."""
        reading, (layer, head) = self.reading, self.selected
        if not self._last.done():
            raise ModelBusy("still at work; wait for it or press Stop before removing a head")

        def work(progress, stop):
            self._say(f"Running the model without layer {layer}, head {head} …")
            with watched(reading.model, progress=progress, stop=stop):
                result = reading.ablate(layer, head)
            with self._lock:
                self.ablations.append(result)
                self.ablation = _loss_without(result)
                self._say("")

        self._start(work)

    def export(self):
        """Write figures, numbers, arrays and state of the selected and pinned heads; return the paths."""
        with self._lock:
            heads, state = self._heads(), self.state()
        written = export_heads(heads, state, self.folder)
        self.send({"files": [path.name for path in written]}, [path.read_bytes() for path in written])
        self._say(f"Written to {written[0].parent}.")
        return written

    def state(self):
        """Return what is shown as plain JSON types; ``inspect_heads(state=...)`` opens it again."""
        told = {"model": self.reading.model.description.name, "text": self.reading.text}
        told |= {"length": self._length, "protocol": self.reading.protocol.to_dict(), "metric": self.metric}
        return told | {"selected": list(self.selected), "pinned": list(self.pinned) if self.pinned else None}

    def stop(self):
        """Stop what runs at its next pause; what is shown stays."""
        self._stopped.set()

    def wait(self, timeout=None):
        """Wait until all work has ended; TimeoutError if it has not after `timeout` seconds."""
        if wait([self._last], timeout).not_done:
            raise TimeoutError(f"the inspector still works after {timeout} s")
        self._last.result()

    def png(self, *, dpi=120):
        """Return a figure of the selected and the pinned head as the bytes of a PNG."""
        buffer = io.BytesIO()
        with self._lock:
            views = [reading.head(*place) for reading, place in self._heads()]
            draw_heads(views, self.reading.protocol.signal).savefig(buffer, format="png", dpi=dpi)
        return buffer.getvalue()

    def to_html(self, path, *, length=128):
        """Write one HTML file with every head that works without Python and network; return its path. A
        longer text is read again, cut to `length` tokens: 3 to 4 MB at 128 tokens and 270 heads."""
        write_text(path := Path(path).expanduser(), self._page(length))
        return path

    def frame(self, *, length=128):
        """Return what :meth:`to_html` writes as the output of a cell, for saved notebooks and their pages."""
        page = html.escape(self._page(length))
        return HTML(f'<div><iframe title="head inspector" style="{FRAME}" srcdoc="{page}"></iframe></div>')

    def _page(self, length):
        reading = self.reading
        if reading.n_tokens > length:
            reading = read_text(reading.model, reading.text, reading.protocol, length=length)
        layers = {layer: pack_layer(reading, layer, wait=True) for layer in reading.layers}
        state = {name: getattr(self, name) for name in ("asked", "choices", "metric", "selected")}
        told = f"{_summary(reading)} This page needs no Python and holds this text alone."
        state |= {"status": {"text": told}, "ablation": "", "share": -1, "still": True, "pinned": None}
        state |= {"layers": [*layers.values()], "layer_shown": layers[self.selected[0]]}
        state |= {"shown": pack_reading(reading)}
        *scripts, last = [(HERE / name).read_text(encoding="utf-8") for name in (*SCRIPTS, "page.js")]
        scripts = "".join(scripts).replace("export default { render };", last)
        return to_page(scripts, str(self._css), state, f"Heads of {reading.model.description.name}")

    def _repr_mimebundle_(self, **kwargs):
        data, *rest = super()._repr_mimebundle_(**kwargs)
        # Pages that run no widgets (GitHub, exported HTML) show this instead.
        return (data | {"image/png": base64.b64encode(self.png()).decode()}, *rest)

    def _heads(self):
        return [(self.reading, self.selected), *([(self._pinned_of, self.pinned)] if self.pinned else [])]

    def _show_reading(self, reading, seconds):
        with self._lock, self.hold_sync():
            if reading.token_ids is not self.reading.token_ids:
                self.ablations, self.ablation = [], ""
            self.reading = reading
            place = reading.nearest_head(*self.selected)
            protocol = {name: getattr(reading.protocol, name) for name in CHOSEN}
            given = {"model": reading.model.description.name, "text": reading.text, "length": self._length}
            self.metric = self.metric if self.metric in reading.metrics else reading.metrics[0]
            self.shown = pack_reading(reading)
            self.layer_shown = pack_layer(reading, place[0], wait=True)
            self.selected, self.asked = place, given | {"protocol": protocol}
            self._say(_summary(reading, seconds))

    def _keep(self, change):
        self._pinned_of = self.reading if change["new"] else None  # of this text, whatever is read later

    def _clicked(self, change):
        with self._lock:
            if not self._told(lambda: self.select(*change["new"])):
                self.selected = change["old"]  # the one before, since this could not be shown

    def _answer(self, content):
        asked = dict(content)
        actions = {
            "measure": self.measure, "protocol": self.remeasure, "ablate": self.ablate, "stop": self.stop,
            "export": lambda: self._start(lambda progress, stop: self.export()),
        }  # fmt: skip
        if action := actions.get(asked.pop("do", None)):
            self._told(lambda: action(**asked))

    def _start(self, work):
        """Do ``work(progress, stop)`` in the other thread, in place of what runs there."""
        self.stop()
        self.share, self._stopped = 0.0, threading.Event()
        self._last = self._pool.submit(self._run, work, self._stopped)

    def _progress(self, share):
        if share - self.share > 0.02 or share == 1:  # at most fifty messages a run
            self.share = share

    def _run(self, work, stopped):
        error = None
        try:
            if stopped.is_set():
                raise Stopped
            work(self._progress, stopped.is_set)
        except Exception as caught:  # told in the widget in words, and kept there with its traceback
            error = caught
        with self._lock:
            if stopped is not self._stopped:
                return  # the next work has the word
            self.error, self.share = error, -1.0
            if isinstance(error, Stopped):
                self._say("Stopped. What is shown is the last good reading.")
            elif error is not None:
                self._complain(error)

    def _told(self, action):
        """Do something short and return whether it was done; tell in the widget why if it was not."""
        try:
            action()
        except (ValueError, LookupError, OSError, TypeError, ModelBusy) as error:
            self._complain(error)
            return False
        return True

    def _say(self, text):
        self.status = {"kind": "note", "text": text}

    def _complain(self, error):
        """Tell an exception as a sentence, with the name of one that nobody foresaw."""
        self.error = error
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        if not isinstance(error, FORESEEN) or not text:
            text = f"unexpected {''.join(traceback.format_exception_only(error)).strip()}"
        text = text[:1].upper() + text[1:] + "." * (not text.endswith((".", "!", "?")))
        self.status = {"kind": "error", "text": f"{text} What is shown is still the last good reading."}


def _summary(reading, seconds=None):
    n_layers, n_heads = reading.shape
    took = "" if seconds is None else f", measured in {seconds:.2f} s"
    size = f"{reading.n_tokens:,} tokens, {n_layers} layers × {n_heads} heads"
    name, protocol = reading.model.description.name, reading.protocol
    return f"{name}: {size}, protocol {protocol.hash}{took}. {reading.note}".strip()


def _loss_without(ablation):
    n = len(ablation.changes)
    error = float(np.std(ablation.changes, ddof=1) / np.sqrt(n))
    where = f"Without layer {ablation.layer}, head {ablation.head}, the loss on these {n} predicted tokens"
    moves = f"goes from {ablation.before:.4f} to {ablation.after:.4f} nats per token: {ablation.change:+.4f}"
    return f"{where} {moves} ± {error:.4f} (standard error over tokens)."

"""The head inspector: what its controls do.

Everything that takes seconds runs in the thread of a :class:`Worker` and replaces what is shown only when it
has succeeded; a click reads what was measured and takes milliseconds.
"""

import base64
import contextlib
import threading
import time

import ipywidgets as widgets
import numpy as np
from tqdm.auto import tqdm

from nbhelpers.arguments import checked, text
from nbhelpers.inputs.models import LoadedModel, load_model
from nbhelpers.metrics import metric_label
from nbhelpers.protocol import PAPER

from . import sentences
from .controls import BANDS, SAMPLES, TYPED, arrange, make_controls
from .export import export_head, static_picture
from .jobs import Worker
from .panels import PINNED, SELECTED, AttentionPanel, CurvesPanel, to_png
from .reading import ModelBusy, Reading, Stopped, read_text, watched

TYPING_PAUSE = 0.8  # seconds without a key after which typed text is read


@checked(text=text)
def inspect_heads(
    model, text, *, protocol=PAPER, length=256, layer=0, head=0, metric="low_band", folder=".", progress=True
):
    """Return a widget that shows every head of a model on a text, and each head closely.

    The text is read before the widget is returned, so a model or text that cannot be read raises here; later
    mistakes are told in the widget. Where widgets cannot run, the last cell value shows as a picture.

    Parameters
    ----------
    model : LoadedModel or str
        What :func:`nbhelpers.load_model` returns, or takes. Needs a tokenizer.
    text : str
        The text itself.
    protocol : Protocol
        With the signal key_profile, last_query or lag_profile.
    length : int
        Tokens read at most.
    layer, head : int
        Selected first.
    metric : str
        That colours the map first.
    folder : path
        Where exports go.
    progress : bool
        Show a bar while the text is read for the first time; later readings have one in the widget.

    Returns
    -------
    HeadInspector

    Raises
    ------
    ValueError
        For text that is empty, too short, or longer than the model's positions.
    IndexError
        If there is no such head.
    KeyError
        If there is no such metric.
    """
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    started = time.perf_counter()
    with tqdm(total=100, desc="measuring all heads", unit="%", leave=False, disable=not progress) as bar:
        reading = read_text(
            loaded, text, protocol, length=length, progress=lambda share: bar.update(int(100 * share) - bar.n)
        )
    seconds = time.perf_counter() - started
    options = {"selected": (layer, head), "metric": metric, "folder": folder, "length": length}
    return HeadInspector(reading, seconds=seconds, **options)


class HeadInspector(widgets.VBox):
    """The widget of :func:`inspect_heads`.

    `reading` is the last good one, from which all that is shown is read; `selected` and `pinned` (None
    without one) are (layer, head); `ablations` are those of this reading, the latest last. `click_seconds`
    holds the time from each selection to its new panels, `error` what ended the last work, if anything.
    """

    def __init__(self, reading: Reading, *, selected, metric, folder, length, seconds):
        selected = tuple(selected) if any(selected) else reading.nearest_head(0, 0)  # the first that there is
        self.reading, self.selected, self.pinned = reading, selected, None
        self.ablations, self.click_seconds, self.error = [], [], None
        self.reading.require_head(*self.selected)
        self.reading.values(metric)
        self._lock, self._timer, self._quiet = threading.RLock(), None, []
        self._worker = Worker(on_progress=self._progress, on_end=self._ended)
        given = {"model": reading.model.description.name, "text": reading.text, "length": length}
        self.controls = make_controls(**given, protocol=reading.protocol, folder=folder)
        super().__init__(arrange(self.controls))
        self.add_class("nbh-inspector")
        self._show_reading(reading, seconds, metric=metric)
        self._listen()

    def select(self, layer, head):
        """Show a head; IndexError if there is none, ModelBusy if the model must run for it and is at work."""
        started = time.perf_counter()
        with self._lock:
            views = self._views((layer, head), self.pinned)
            self.selected = (int(layer), int(head))
            self._show_heads(views)
        self.click_seconds.append(time.perf_counter() - started)

    def pin(self):
        """Keep the selected head beside those selected later."""
        self._keep(self.selected)

    def unpin(self):
        """Show one head only."""
        self._keep(None)

    def _keep(self, pinned):
        with self._lock:
            views = self._views(self.selected, pinned)
            self.pinned = pinned
            self._show_heads(views, frames_anew=True)

    def step(self, direction):
        """Go to the next (1) or previous (−1) head whose largest band is the chosen one."""
        band = self.controls.band.value
        if not (heads := self.reading.heads_of_band(BANDS[band])):
            values = self.reading.values(BANDS[band])
            self.select(*divmod(int(np.nanargmax(values)), values.shape[1]))
            share = f"the largest share, {np.nanmax(values):.3f}, is that of the head now selected"
            return self._say(f"No head has most of its power in the {band} band; {share}.")
        at = (heads.index(self.selected) + direction) % len(heads) if self.selected in heads else 0
        self.select(*heads[at])
        return self._say(f"Head {at + 1} of {len(heads)} with most of its power in the {band} band.")

    def measure(self):
        """Read the text in the box with the model in the box, in the other thread."""
        c = self.controls
        name, text, length, protocol = c.model.value.strip(), c.text.value, c.length.value, self._protocol()

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
            self._show_reading(reading, time.perf_counter() - started)

        self._start(work)

    def remeasure(self):
        """Measure what was read under the chosen protocol; the model runs only for other scaled variants."""
        protocol = self._protocol()
        if protocol.scaled_variant != self.reading.protocol.scaled_variant:
            return self.measure()
        started, under = time.perf_counter(), self.reading.under
        return self._told(lambda: self._show_reading(under(protocol), time.perf_counter() - started))

    def ablate(self):
        """Set the selected head to zero and measure the loss of the text, in the other thread."""
        reading, (layer, head) = self.reading, self.selected
        if self._worker.busy:
            busy = "still at work; wait for it or press Stop before removing a head"
            return self._say_html(sentences.complaint(busy))

        def work(progress, stop):
            self._say(f"Running the model without layer {layer}, head {head} …")
            with watched(reading.model, progress=progress, stop=stop):
                result = reading.ablate(layer, head)
            with self._lock:
                self.ablations.append(result)
                self.controls.ablation.value = sentences.ablation(result, len(result.changes))
                self._say("")

        return self._start(work)

    def export(self):
        """Write the picture and the numbers of the selected and pinned heads; the widget links to them."""

        def write():
            with self._lock:
                shown = self.reading, self.selected, self.pinned, self.png(wait=False)
                self.controls.links.value = sentences.links(export_head(*shown, self.controls.folder.value))

        self._told(write)

    def stop(self):
        """Stop what runs; what is shown stays."""
        if self._timer is not None:
            self._timer.cancel()
        self._worker.stop()

    def wait(self, timeout=None):
        """Wait until typed text has been taken up and all work has ended; TimeoutError otherwise."""
        if self._timer is not None:
            self._timer.join(timeout)
        self._worker.wait(timeout)

    def png(self, *, wait=True):
        """Return what is shown as the bytes of a PNG; `wait` as in :meth:`Reading.head`."""
        c = self.controls
        with self._lock:
            views = self._views(self.selected, self.pinned, wait=wait)
            return to_png(static_picture(self.reading, c.metric.value, views, span=c.span.value))

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        # Pages that run no widgets (GitHub, exported HTML) show this instead.
        return bundle | {"image/png": base64.b64encode(self.png()).decode()}

    # What is shown.

    def _show_reading(self, reading, seconds, *, metric=None):
        with self._lock, self._silently():
            c = self.controls
            metric = metric or c.metric.value
            if reading.token_ids is not self.reading.token_ids:
                self.ablations, c.ablation.value, c.links.value = [], "", ""
            self.reading = reading
            self.selected = reading.nearest_head(*self.selected)
            if self.pinned and reading.nearest_head(*self.pinned) != self.pinned:
                self.pinned = None
            c.metric.options = [(metric_label(name, reading.protocol), name) for name in reading.metrics]
            c.metric.value = metric if metric in reading.metrics else reading.metrics[0]
            last = reading.n_tokens - 1
            if c.span.max != last:
                c.span.max, c.span.value = last, (0, last)
            c.map.show(reading, c.metric.value)
            self._show_heads(self._views(self.selected, self.pinned, wait=True), frames_anew=True)
            self._say(sentences.summary(reading, seconds))

    def _views(self, *places, wait=False):
        """Return the views of heads, None being no head; a click must not wait, or Stop would go unheard."""
        return [self.reading.head(*place, wait=wait) for place in places if place is not None]

    def _show_heads(self, views, *, frames_anew=False):
        """Draw the selected head and the pinned one; their frames too if these changed."""
        c = self.controls
        if frames_anew:
            colours = (SELECTED, PINNED)[: len(views)]
            tokens, span = self.reading.tokens, c.span.value
            self._attention = [AttentionPanel(tokens, span, colour=each) for each in colours]
            self._curves = CurvesPanel(self.reading, views)
        with self._silently():
            c.map.selected, c.map.pinned = list(self.selected), list(self.pinned or ())
        for box, panel, view in zip((c.attention, c.other), self._attention, views, strict=False):
            described = f"Attention of {view.name}, query token by key token"
            box.value = sentences.picture(panel.show(view), described)
        names = " and ".join(view.name for view in views)
        described = f"Key profile, lag profile, spectrum and wavelet coefficients of {names}"
        c.curves.value = sentences.picture(self._curves.show(*views), described)
        numbers = [(view.name, self.reading.numbers(view.layer, view.head)) for view in views]
        c.numbers.value = sentences.numbers_table(numbers, self.reading.protocol)
        c.other.layout.display = "" if self.pinned else "none"
        c.unpin.disabled = self.pinned is None

    # Between the controls and the methods above.

    def _listen(self):
        c = self.controls
        for button, action in (
            (c.measure, self.measure), (c.stop, self.stop), (c.pin, self.pin), (c.unpin, self.unpin),
            (c.ablate, self.ablate), (c.export, self.export), (c.next, lambda: self.step(1)),
            (c.previous, lambda: self.step(-1)),
        ):  # fmt: skip
            button.on_click(lambda _, action=action: self._told(action))
        # What a control was set to is passed on: another thread may set it again before it is answered.
        self._on(c.map, "selected", self._clicked)
        self._on(c.metric, "value", lambda metric: c.map.show(self.reading, metric))
        self._on(c.span, "value", lambda span: self._told(lambda: self._keep(self.pinned)))
        self._on(c.text, "value", self._typed)
        self._on(c.sample, "value", self._sample)
        for control in (c.model, c.length):
            self._on(control, "value", lambda value: self.measure())
        for control in c.protocol.values():
            self._on(control, "value", lambda value: self.remeasure())

    def _on(self, control, trait, action):
        def answer(change):
            if threading.get_ident() not in self._quiet:
                action(change["new"])

        control.observe(answer, trait)

    def _clicked(self, place):
        self._told(lambda: self.select(*place))
        with self._silently():
            self.controls.map.selected = list(self.selected)  # the one before, if it could not be shown

    def _typed(self, text):
        """Read the text once no key has been pressed for a moment."""
        c = self.controls
        if text != SAMPLES[c.sample.value]:
            with self._silently():
                c.sample.value = TYPED
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(TYPING_PAUSE, self.measure)
        self._timer.daemon = True
        self._timer.start()

    def _sample(self, name):
        if name != TYPED:
            self.controls.text.value = SAMPLES[name]

    def _protocol(self):
        chosen = {name: control.value for name, control in self.controls.protocol.items()}
        return self.reading.protocol.replace(**chosen)

    def _start(self, work):
        c = self.controls
        c.stop.disabled, c.progress.value, c.progress.layout.visibility = False, 0, "visible"
        self._worker.start(work)

    def _progress(self, share):
        if share - self.controls.progress.value > 0.02 or share == 1:  # at most fifty messages a run
            self.controls.progress.value = share

    def _ended(self, error, *, superseded):
        with self._lock:
            if superseded:
                return  # the next work has the word
            c, self.error = self.controls, error
            c.stop.disabled, c.progress.layout.visibility = True, "hidden"
            if isinstance(error, Stopped):
                self._say("Stopped. What is shown is the last good reading.")
            elif error is not None:
                self._say_html(sentences.complaint(sentences.in_words(error)))

    def _told(self, action):
        """Do something short and tell in the widget why it failed, if it did."""
        try:
            action()
        except (ValueError, LookupError, OSError, ModelBusy) as error:
            self.error = error
            self._say_html(sentences.complaint(sentences.in_words(error)))

    @contextlib.contextmanager
    def _silently(self):
        """Set controls without answering them; what other threads set meanwhile is answered."""
        thread = threading.get_ident()
        self._quiet.append(thread)
        try:
            yield
        finally:
            self._quiet.remove(thread)

    def _say(self, text):
        self._say_html(sentences.note(text))

    def _say_html(self, text):
        self.controls.status.value = text

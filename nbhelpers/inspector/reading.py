"""What the inspector knows of one text as one model read it; no widgets, no figures.

:func:`read_text` runs the model (seconds), :meth:`Reading.under` measures again under another protocol (a
twentieth of a second), :meth:`Reading.head` and :meth:`Reading.kernels` show heads (milliseconds).
"""

import contextlib
import dataclasses
import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import pywt
import torch

from nbhelpers import nulls
from nbhelpers.analysis import Observation, measure, observe, signals_of
from nbhelpers.arguments import checked, made_by, such_that
from nbhelpers.head_kernels import layer_kernels
from nbhelpers.hooks.ablation import ablate_heads, token_losses
from nbhelpers.hooks.recompute import AttentionCache, attention_modules, cache_attention
from nbhelpers.hooks.reductions import EARLY
from nbhelpers.hooks.rotary import rotations_of
from nbhelpers.inputs.models import LoadedModel
from nbhelpers.kernels import wavelets
from nbhelpers.kernels.scores import SCORES, read_by_rule
from nbhelpers.metrics import Signals
from nbhelpers.protocol import BANDS, PAPER, SIGNALS, Protocol
from nbhelpers.table import HeadTable
from nbhelpers.words import listed

FIRST_METRICS = (
    *BANDS, "spectral_entropy", "frequency_selectivity", "local_mass", "sink_mass", "self_mass",
    "positional_entropy", "scale_sensitivity",
)  # fmt: skip
SCORED = 512  # queries that the scores are means over, at most


class Stopped(Exception):
    """Raised inside long work that was asked to stop."""


class ModelBusy(RuntimeError):
    """Raised where the model must run and another thread is running it."""


@dataclass(frozen=True)
class HeadView:
    """Everything that is shown of one head, as arrays; `null_` marks those of uniform attention."""

    layer: int
    head: int
    attn: np.ndarray  # (query, key)
    key_profile: np.ndarray  # (key,)
    null_key_profile: np.ndarray
    lags: np.ndarray  # (lag,), in tokens
    lag_profile: np.ndarray
    null_lag_profile: np.ndarray
    frequency: np.ndarray  # (freq,), in cycles/token
    psd: np.ndarray  # (freq,), of the protocol's signal, as are those below; a share of the power
    null_psd: np.ndarray
    positions: np.ndarray  # key or lag of each sample of the signal
    levels: list  # names: a4, d4, ..., d1
    coefficients: list  # of the wavelet, an array for each level
    scalogram: np.ndarray  # (level, position), as `wavelets.level_image`

    @property
    def name(self):
        return f"layer {self.layer}, head {self.head}"


@dataclass(frozen=True)
class Ablation:
    """What the text costs with and without one head, nats/token; `changes` per predicted token."""

    layer: int
    head: int
    before: float
    after: float
    changes: np.ndarray

    @property
    def change(self):
        return self.after - self.before


@dataclass(frozen=True, eq=False)
class Reading:
    """One text as one model read it, measured under one protocol; made by :func:`read_text`."""

    model: LoadedModel
    text: str  # as asked for; `tokens` may be fewer, and then `note` says so
    token_ids: torch.Tensor  # (1, position)
    tokens: list
    note: str
    protocol: Protocol
    observation: Observation
    kept: AttentionCache
    losses: torch.Tensor | None  # (position − 1,), nats per predicted token with all heads
    no_loss: str  # why `losses` is None
    rotations: list  # of the layers; empty where none can be known
    no_kernel: str  # why `rotations` is empty
    scores: dict  # of SCORES over the first SCORED queries: arrays (layer, head), and uniform attention's

    @property
    def n_tokens(self):
        return len(self.tokens)

    @property
    def shape(self):
        """Layers of the model and heads per layer; not every layer need have attention."""
        return self.table.n_layers, len(self.kv_groups)

    @property
    def layers(self):
        """The numbers of the layers that have attention."""
        return self.observation.profiles.layers

    @property
    def kv_groups(self):
        return list(self.observation.profiles.kv_groups)

    @cached_property
    def table(self) -> HeadTable:
        """All metrics of all heads."""
        return measure(self.observation, self.protocol)

    @cached_property
    def signals(self) -> Signals:
        """What the metrics are computed from."""
        return signals_of(self.observation, self.protocol)

    @cached_property
    def _uniform(self):
        """The reading of uniform attention (N0), for its table, signals and profiles."""
        return dataclasses.replace(self, observation=self.observation.map(nulls.uniform))

    @cached_property
    def metrics(self):
        """Names of all metrics and scores, those of the map first."""
        names = [*self.table.metrics, *self.scores]
        first = [name for start in FIRST_METRICS for name in names if name.startswith(start)]
        return [*first, *(name for name in names if name not in first)]

    def values(self, metric):
        """Return a metric or a score of all heads, array (layer, head); NaN in layers without attention."""
        if metric not in self.scores:
            return self.table.by_layer(metric)[0]
        every = np.full(self.shape, np.nan)
        every[self.layers] = self.scores[metric][0]
        return every

    def null_value(self, metric):
        """Return what uniform attention has, the same for every head."""
        own = self.scores.get(metric)
        return float(self._uniform.table.values(metric)[0, 0, 0]) if own is None else own[1]

    def under(self, protocol):
        """Return the reading under another protocol, without the model; ValueError if it lacks a variant."""
        changed = dataclasses.replace(self, protocol=protocol)
        _ = changed.table, changed._uniform.table  # computed now, so that a refusal comes here
        return changed

    def numbers(self, layer, head):
        """Return the numbers of one head by metric, a frame with columns value, uniform (the null's) and
        percentile (share of heads below, ties counting half, in %)."""
        self.require_head(layer, head)
        rows = {}
        for metric in self.metrics:
            values = self.values(metric)  # (layer, head)
            own, known = values[layer, head], values[np.isfinite(values)]
            below = float((known < own).sum() + 0.5 * (known == own).sum())
            percentile = 100 * below / known.size if np.isfinite(own) else np.nan
            rows[metric] = own, self.null_value(metric), percentile
        columns = ["value", "uniform", "percentile"]
        return pd.DataFrame.from_dict(rows, "index", columns=columns).rename_axis("metric")

    def head(self, layer, head, *, wait=True):
        """Return the :class:`HeadView` of a head; ModelBusy if it would have to `wait` and shall not: some
        models must run again for it, see `cache_attention`, and another thread may be running them."""
        self.require_head(layer, head)
        attn = self.attention(layer, wait=wait)[head]  # (query, key)
        row = self.layers.index(layer)
        profiles, null = self.observation.profiles, self._uniform.observation.profiles
        psd, null_psd = (each.signals.psd[0, row, head] for each in (self, self._uniform))  # (freq,)
        positions = np.asarray(profiles.coordinates[self.protocol.signal])
        positions = positions[-self.signals.signal.shape[-1] :]  # without a dropped sink
        coefficients = [level[0, row, head].numpy() for level in self.signals.coefficients]
        taps, periodic = pywt.Wavelet(self.protocol.wavelet).dec_len, self.protocol.mode == "periodization"
        return HeadView(
            layer=layer,
            head=head,
            attn=attn.numpy(),
            key_profile=profiles.key_profile[0, row, head].numpy(),
            null_key_profile=null.key_profile[0, row, head].numpy(),
            lags=np.asarray(profiles.coordinates["lag_profile"]),
            lag_profile=profiles.lag_profile[0, row, head].numpy(),
            null_lag_profile=null.lag_profile[0, row, head].numpy(),
            frequency=self.signals.frequency.numpy(),
            psd=(psd / psd.sum()).numpy(),
            null_psd=(null_psd / null_psd.sum()).numpy(),
            positions=positions,
            levels=wavelets.level_names(len(coefficients) - 1),
            coefficients=coefficients,
            scalogram=wavelets.level_image(coefficients, len(positions), taps=taps, periodic=periodic),
        )

    def kernels(self, layer):
        """Return the `LayerKernels` of a layer on this text, lags below half of it; ValueError if unknown."""
        if not self.rotations:
            raise ValueError(self.no_kernel)
        lags = self.observation.profiles.coordinates["lag_profile"]
        return layer_kernels(self.kept, layer, self.rotations, self.n_tokens // 2, causal=lags[0] == 0)

    def attention(self, layer, *, wait=True):
        """Return the attention of a layer, (head, query, key); `wait` as in :meth:`head`."""
        if self.kept.at_hand(layer):
            return self.kept.layer(layer)
        if not self.model.lock.acquire(blocking=wait):
            why = f"{self.model.description.family} models must run again for the attention of layer {layer}"
            way_out = "wait for the work or press Stop, then click again"
            raise ModelBusy(f"the model is at work, and {why}; {way_out}")
        try:
            return self.kept.layer(layer)
        finally:
            self.model.lock.release()

    def ablate(self, layer, head):
        """Return the :class:`Ablation` of a head; ValueError if the model predicts no next token."""
        self.require_head(layer, head)
        if self.losses is None:
            raise ValueError(self.no_loss)
        with self.model.lock, ablate_heads(self.model, [(layer, head)]):
            after = token_losses(self.model, self.token_ids)[0]
        changes = (after - self.losses).numpy()
        return Ablation(layer, head, float(self.losses.mean()), float(after.mean()), changes)

    def require_head(self, layer, head):
        """Raise IndexError unless there is such a head."""
        n_layers, n_heads = self.shape
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            there = f"layers run from 0 to {n_layers - 1}, heads from 0 to {n_heads - 1}"
            raise IndexError(f"there is no layer {layer}, head {head}: {there}")
        if layer not in self.layers:
            raise IndexError(f"layer {layer} has no softmax attention; the layers {listed(self.layers)} have")

    def nearest_head(self, layer, head):
        """Return the head itself or, if the model has fewer or its layer no attention, the nearest one."""
        return min(self.layers, key=lambda other: abs(other - layer)), min(head, len(self.kv_groups) - 1)


@checked(
    model=made_by("LoadedModel", "nbhelpers.load_model"),
    text=such_that(lambda text: isinstance(text, str), "text"),
    progress=None,
)
def read_text(model, text, protocol=PAPER, *, length=256, progress=None, stop=None):
    """Run a model over a text and measure all its heads.

    A text longer than `length` tokens or the model's positions is cut, and `note` says so. `progress` is
    called with the share done, in [0, 1]; once `stop`, asked between layers, returns True, :class:`Stopped`
    is raised. ValueError for text that is empty or too short for the protocol's wavelet and scaled variants,
    and for a protocol whose signal must stream.
    """
    if (signal := protocol.signal) not in SIGNALS:
        known = ", ".join(SIGNALS)
        raise ValueError(f"the inspector measures {known}; {signal=} needs analyze(model, ids, protocol)")
    ids, note = _tokens_of(model, text, protocol, length)
    runs = len(protocol.factors) + 3  # the text and its variants, its queries and keys, its loss
    with watched(model, runs=runs, progress=progress, stop=stop):
        observation = observe(model, ids, protocol, corpus="typed text", progress=False)
        kept = cache_attention(model, ids)
        try:
            losses, no_loss = token_losses(model, ids)[0], ""
        except ValueError as error:  # an encoder has no loss, but everything else
            losses, no_loss = None, str(error)
    with model.lock:
        rotations, no_kernel = _rotations(model, kept, ids.shape[1])
        scores = _scores(observation.profiles, kept, ids)
    tokens = [model.tokenizer.decode([token]) for token in ids[0].tolist()]
    known = observation, kept, losses, no_loss, rotations, no_kernel, scores
    return Reading(model, text, ids, tokens, note, protocol, *known).under(protocol)


@contextlib.contextmanager
def watched(model, *, runs=1, progress=None, stop=None):
    """Report and stop forward passes, `runs` of them, as :func:`read_text` says; other threads wait."""
    modules, calls = attention_modules(model), itertools.count(1)

    def pause(module, args):
        if stop is not None and stop():
            raise Stopped
        if progress is not None:
            progress(min(1.0, next(calls) / (runs * len(modules))))

    with model.lock, contextlib.ExitStack() as undo:
        for module in modules:
            undo.callback(module.register_forward_pre_hook(pause).remove)
        yield


def shortest_text(protocol):
    """Return the fewest tokens that give every variant one wavelet level."""
    shortest = ((length, max(1, protocol.shortest(length))) for length in itertools.count(2))
    return next(length for length, own in shortest if wavelets.dwt_max_level(own, protocol.wavelet) >= 1)


def _scores(profiles, kept, ids):
    """Return the scores of all heads and of uniform attention; none where queries and keys are not kept."""
    if not kept.nbytes:
        return {}
    values = []  # (layer, score, head)
    for layer in kept.layers:
        rows = kept.first_rows(layer, SCORED)  # (head, query, key)
        values.append(read_by_rule(rows, ids).T.cpu().numpy())
    ahead = 0 if profiles.coordinates["lag_profile"][0] == 0 else rows.shape[-1]  # tokens that a query sees
    uniform = torch.ones(rows.shape[1:]).tril(ahead)
    null = read_by_rule(uniform / uniform.sum(-1, keepdim=True), ids).tolist()
    return dict(zip(SCORES, zip(np.stack(values, 1), null, strict=True), strict=True))


def _rotations(model, kept, length):
    """Return the rotation of each layer, or none and the reason."""
    if not kept.nbytes or length <= EARLY:
        return [], f"no kernel: queries and keys of {model.description.family} models cannot be seen"
    try:
        return rotations_of(model, length), ""
    except ValueError as error:
        return [], str(error)


def _tokens_of(model, text, protocol, length):
    """Return ids (1, position) and a note, or say why the text cannot be read."""
    name = model.description.name
    if model.tokenizer is None:
        raise ValueError(f"{name} came without a tokenizer, so it cannot read text")
    if not text.strip():
        raise ValueError("the text is empty; type at least a sentence")
    found = model.tokenizer(text, verbose=False)["input_ids"]
    most = min(length, model.description.max_positions or length)
    ids, note = found[:most], ""
    if len(found) > most:
        more = "raise the limit to read more" if most == length else f"{name} has {most:,} positions"
        note = f"The first {most:,} of {len(found):,} tokens are read; {more}."
    least = shortest_text(protocol)
    if len(ids) < least:
        short = f"the text has {len(ids)} token{'s' if len(ids) > 1 else ''}; at least {least} are needed"
        variant = f"the {min(protocol.factors, default=1):g}x variant has a level of {protocol.wavelet}"
        raise ValueError(f"{short}, so that {variant}")
    return torch.tensor([ids]), note

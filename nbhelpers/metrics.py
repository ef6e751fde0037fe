"""From a model and sequences to a table of head metrics, under a stated protocol: the pipeline, in one page.

text → sequences → capture → profiles → signals (protocol) → metrics (kernels) → HeadTable. The dear part,
:func:`observe`, runs the model; the cheap part, :func:`measure`, reads what was observed under any protocol.
To add a metric, write a function of a :class:`Signals` and put it into :data:`METRICS`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from nbhelpers.hooks.capture import capture
from nbhelpers.hooks.reductions import KeyProfile, LagProfile, LastQuery, LocalMass, MatrixMetrics, RowMetrics
from nbhelpers.inputs import text as corpora
from nbhelpers.kernels import entropy, rows, spectra, wavelets
from nbhelpers.profiles import Profiles
from nbhelpers.protocol import PAPER
from nbhelpers.table import AVERAGED, COLUMNS, HeadTable

SIGNALS = {"key_profile": KeyProfile, "last_query": LastQuery, "lag_profile": LagProfile}
STREAMED = ("rows", "flattened")  # signals too large to keep, measured while attention streams by


@dataclass(frozen=True)
class Observation:
    """What was seen of a model's attention: profiles of some sequences and of their scaled variants.

    Attributes
    ----------
    profiles : Profiles
        With key_profile, last_query, lag_profile and local_mass.
    scaled : dict of float to Profiles
        Those of the scaled variants x_α (eq. 10), by α.
    scaled_variant : str
        How x_α was drawn from x.
    """

    profiles: Profiles
    scaled: dict
    scaled_variant: str = PAPER.scaled_variant

    def map(self, function):
        """Return the observation with `function`, Profiles to Profiles, applied to every part."""
        scaled = {factor: function(part) for factor, part in self.scaled.items()}
        return Observation(function(self.profiles), scaled, self.scaled_variant)


@dataclass(frozen=True)
class Signals:
    """One signal per head and what the protocol says about it; what the metrics are computed from.

    Attributes
    ----------
    signal : torch.Tensor, shape (sequence, layer, head, position)
        Non-negative, sums to 1; float64.
    scaled : dict of float to torch.Tensor
        The signals of the scaled variants x_α (eq. 10), by α.
    protocol : Protocol
    origin : int
        Where key 0, or lag 0, stands in the signal: lags of bidirectional attention start below zero.
    """

    signal: torch.Tensor
    scaled: dict
    protocol: object
    origin: int = 0

    @cached_property
    def psd(self):
        """Power spectrum (eq. 1), (sequence, layer, head, freq)."""
        return spectra.psd(self.signal, **self.protocol.spectrum_options)

    @cached_property
    def frequency(self):
        """Frequency of each bin, cycles/token."""
        options = self.protocol.spectrum_options
        return spectra.frequencies(self.signal.shape[-1], pad=options["pad"], sided=options["sided"])

    def level(self, signal):
        """Wavelet level of a signal: what the shortest variant allows, or the signal itself."""
        shortest = min([self.signal, *self.scaled.values()], key=lambda s: s.shape[-1])
        chosen = shortest if self.protocol.level == "shortest" else signal
        level = wavelets.dwt_max_level(chosen.shape[-1], self.protocol.wavelet)
        if level < 1:
            raise ValueError(
                f"The shortest variant has {chosen.shape[-1]} tokens, too few for one level of "
                f"{self.protocol.wavelet}; use longer sequences (these have {self.signal.shape[-1]}) or "
                f"other factors than {self.protocol.factors}."
            )
        return level

    def coefficients(self, signal):
        """Wavelet coefficients of a signal (eq. 4), from coarse to fine."""
        return wavelets.wavedec(
            signal, wavelet=self.protocol.wavelet, mode=self.protocol.mode, level=self.level(signal)
        )


def spectral_metrics(signals):
    """Spectral entropy, selectivity and band shares (eqs. 7, 3, 2)."""
    protocol = signals.protocol
    shares = spectra.band_shares(signals.psd, edges=protocol.edges, frequency=signals.frequency)
    return {
        "spectral_entropy": spectra.spectral_entropy(signals.psd, base=protocol.log_base),
        "frequency_selectivity": spectra.frequency_selectivity(signals.psd),
        **dict(zip(protocol.band_names, shares.unbind(-1), strict=True)),
    }


def position_metrics(signals):
    """Positional entropy (eq. 6), effective support, mass of key 0 (or lag 0) and window entropies (Table
    2)."""
    signal, protocol = signals.signal, signals.protocol
    windows = [w for w in protocol.entropy_windows if w <= signal.shape[-1]]
    first = "self_mass" if protocol.signal == "lag_profile" else "sink_mass"
    return {
        "positional_entropy": entropy.positional_entropy(signal, base=protocol.log_base),
        "effective_support": entropy.effective_support(signal),
        **({first: signal[..., signals.origin]} if protocol.sink == "keep" else {}),
        **{f"window_entropy_{w}": entropy.window_entropy(signal, w) for w in windows},
    }


def wavelet_metrics(signals):
    """Wavelet entropy per level (eq. 5), scale sensitivity (eq. 10) and reconstruction error (eq. 11)."""
    protocol = signals.protocol
    coefficients = signals.coefficients(signals.signal)
    entropies = wavelets.wavelet_entropy(coefficients, base=protocol.log_base)
    names = wavelets.level_names(len(coefficients) - 1)
    metrics = {f"wavelet_entropy_{name}": entropies[..., k] for k, name in enumerate(names)}
    for factor, scaled in signals.scaled.items():
        metrics[f"scale_sensitivity_{factor:g}"] = wavelets.scale_sensitivity(
            coefficients, signals.coefficients(scaled), alignment=protocol.alignment
        )
    metrics["reconstruction_error"] = wavelets.reconstruction_error(
        signals.signal.float(),
        wavelet=protocol.wavelet,
        mode=protocol.mode,
        level=signals.level(signals.signal),
    )
    return metrics


METRICS = [spectral_metrics, position_metrics, wavelet_metrics]


def analyze(model, token_ids, protocol=PAPER, *, corpus=None, seed=0, **options):
    """Measure every head of a model on some sequences under a protocol.

    Parameters
    ----------
    model : LoadedModel or transformers.PreTrainedModel
    token_ids : torch.LongTensor, shape (sequence, position)
        Sequences of one length, without padding.
    protocol : Protocol
        :data:`nbhelpers.PAPER` is the literal reading of the paper.
    corpus : str, optional
        What the sequences are, for the provenance.
    seed : int
        Draws the random scaled variants.
    **options
        `batch_size`, `chunk`, `cache`, `stream`, `progress` of :func:`nbhelpers.capture`.

    Returns
    -------
    HeadTable

    Raises
    ------
    ValueError
        For sequences too short for the protocol, and all that :func:`nbhelpers.capture` refuses.
    """
    _require_measurable(protocol)
    if protocol.signal in STREAMED:
        return _analyze_streamed(model, token_ids, protocol, corpus=corpus, seed=seed, **options)
    return measure(observe(model, token_ids, protocol, corpus=corpus, seed=seed, **options), protocol)


def observe(model, token_ids, protocol=PAPER, *, corpus=None, seed=0, **options):
    """Run a model over sequences and their scaled variants, and keep what :func:`measure` needs.

    One observation serves every protocol with the same `factors`, `scaled_variant` and `local_distance`
    whose signal is a key profile, a last query or a lag profile.

    Parameters
    ----------
    model, token_ids, corpus, seed, **options
        As in :func:`analyze`. With ``cache=`` the same call finds the profiles again.
    protocol : Protocol
        Says which scaled variants are drawn, and the distance that counts as local.

    Returns
    -------
    Observation
    """
    if options.get("attention_mask") is not None:
        raise ValueError("observe takes sequences of one length without padding; call it once per length.")
    token_ids = torch.as_tensor(token_ids)
    kept = [*(reduction() for reduction in SIGNALS.values()), LocalMass((protocol.local_distance,))]

    def profiles_of(ids):
        return capture(model, ids, kept, **options).with_provenance(corpus=corpus, seed=seed)

    variants = {
        factor: corpora.scaled_variant(token_ids, factor, how=protocol.scaled_variant, seed=seed)
        for factor in protocol.factors
    }
    scaled = {factor: profiles_of(ids) for factor, ids in variants.items()}
    return Observation(profiles_of(token_ids), scaled, protocol.scaled_variant)


def measure(observation, protocol=PAPER):
    """Measure what was observed under a protocol; the model is not needed.

    Parameters
    ----------
    observation : Observation
        From :func:`observe`, or a null made of one.
    protocol : Protocol

    Returns
    -------
    HeadTable

    Raises
    ------
    ValueError
        If the protocol needs scaled variants, a distance or a signal that were not observed, or longer
        sequences.
    """
    signals = signals_of(observation, protocol)
    profiles, averaged = observation.profiles, protocol.order == "mean then metric"
    measured = measure_signals(signals)
    local = _local_mass(profiles, protocol)
    measured[f"local_mass_{protocol.local_distance}"] = _averages(local) if averaged else local
    return _table(measured, profiles, protocol, AVERAGED if averaged else 0)


def signals_of(observation, protocol=PAPER):
    """Return the signal of every head under a protocol: what :func:`measure` computes its metrics from.

    Parameters
    ----------
    observation : Observation
    protocol : Protocol

    Returns
    -------
    Signals

    Raises
    ------
    ValueError
        As :func:`measure`.
    """
    _require_measurable(protocol)
    _require_observed(observation, protocol)
    profiles = observation.profiles
    prepare = _averages if protocol.order == "mean then metric" else torch.Tensor.double
    signal = prepare(_signal(profiles[protocol.signal], protocol))
    scaled = {a: prepare(_signal(observation.scaled[a][protocol.signal], protocol)) for a in protocol.factors}
    origin = profiles.coordinates[protocol.signal].index(0) if protocol.sink == "keep" else 0
    return Signals(signal, scaled, protocol, origin)


def _require_measurable(protocol):
    if protocol.signal in STREAMED and protocol.order == "mean then metric":
        raise ValueError(
            f"signal={protocol.signal!r} is measured while attention streams by, so order='mean then metric' "
            f"cannot be had; use order='metric then mean', or one of the signals {', '.join(SIGNALS)}."
        )
    if protocol.signal == "lag_profile" and protocol.sink != "keep":
        raise ValueError(
            f"signal='lag_profile' has lags, not keys, so sink={protocol.sink!r} cannot drop key 0 from it; "
            "use sink='keep', or one of the signals key_profile, last_query, rows, flattened."
        )


def _require_observed(observation, protocol):
    if protocol.signal in STREAMED:
        raise ValueError(
            f"signal={protocol.signal!r} is measured while attention streams by; call analyze(model, ids, "
            f"protocol) for it. An observation holds {', '.join(SIGNALS)}."
        )
    missing = [factor for factor in protocol.factors if factor not in observation.scaled]
    drawn = observation.scaled_variant
    if missing or (protocol.factors and protocol.scaled_variant != drawn):
        raise ValueError(
            f"The protocol compares with {protocol.scaled_variant} variants at {list(protocol.factors)}; "
            f"observed were {drawn} variants at {list(observation.scaled)}. Call observe with this protocol."
        )
    distances = observation.profiles.coordinates["local_mass"]
    if protocol.local_distance not in distances:
        raise ValueError(
            f"local_distance={protocol.local_distance} was not observed, only {distances}; call observe with "
            "this protocol."
        )


def _analyze_streamed(model, token_ids, protocol, *, corpus, seed, **options):
    """Measure every row, or the flattened matrix, while attention streams by."""
    if options.get("attention_mask") is not None:
        raise ValueError("analyze takes sequences of one length without padding; call it once per length.")
    if protocol.signal == "rows":
        reduction = RowMetrics(protocol)
    else:
        reduction = MatrixMetrics(protocol, lambda attn: _measure_flattened(attn, protocol))
    local = LocalMass((protocol.local_distance,))
    profiles = capture(model, torch.as_tensor(token_ids), [reduction, local], **options)
    profiles = profiles.with_provenance(corpus=corpus, seed=seed)
    metrics = profiles[reduction.name].double().unbind(-1)
    measured = dict(zip(profiles.coordinates[reduction.name], metrics, strict=True))
    measured[f"local_mass_{protocol.local_distance}"] = _local_mass(profiles, protocol)
    return _table(measured, profiles, protocol, 0)


def _local_mass(profiles, protocol):
    at = profiles.coordinates["local_mass"].index(protocol.local_distance)
    return profiles.local_mass[..., at].double()  # (sequence, layer, head)


def _table(measured, profiles, protocol, first_sequence):
    provenance = profiles.provenance | {"protocol": protocol.to_dict(), "protocol_hash": protocol.hash}
    return HeadTable(_frame(measured, profiles.kv_groups, first_sequence), provenance)


def _measure_flattened(attn, protocol):
    """Metrics of (batch, head, query, key) read row by row as one signal that sums to 1."""
    attn = rows.drop_sink(attn) if protocol.sink != "keep" else attn
    flat = attn.flatten(-2).double()
    return measure_signals(Signals(flat / flat.sum(-1, keepdim=True), {}, protocol))


def measure_signals(signals):
    """Return all :data:`METRICS` of some signals, name → (sequence, layer, head)."""
    return {name: values for metric in METRICS for name, values in metric(signals).items()}


def _signal(profile, protocol):
    """Return a captured profile as the protocol's signal, in float64."""
    return rows.drop_sink(profile.double()) if protocol.sink != "keep" else profile.double()


def _averages(per_sequence):
    """Return the mean over sequences and, after it, the means with one sequence left out each."""
    n, total = len(per_sequence), per_sequence.double().sum(0, keepdim=True)
    left_out = [(total - per_sequence) / (n - 1)] if n > 1 else []
    return torch.cat([total / n, *left_out])


def _frame(measured, kv_groups, first_sequence):
    """Return the tidy frame of name → (sequence, layer, head)."""
    shape = next(iter(measured.values())).shape
    sequence, layer, head = (index.ravel() for index in np.indices(shape))
    outer = {"sequence": sequence + first_sequence, "layer": layer, "head": head}
    outer["kv_group"] = np.asarray(kv_groups)[head]
    parts = [
        pd.DataFrame({**outer, "metric": name, "value": v.double().numpy().ravel()})
        for name, v in measured.items()
    ]
    return pd.concat(parts, ignore_index=True)[COLUMNS]

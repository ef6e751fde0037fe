"""The metrics of a head in one registry, :data:`METRICS`, which tables, figures, sweeps and the zoo read."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch

from nbhelpers.arguments import checked, text
from nbhelpers.kernels import entropy, spectra, wavelets
from nbhelpers.protocol import PAPER, Protocol


@dataclass(frozen=True)
class Metric:
    """A number of a head, or a family of numbers with ``*`` in name and label, such as the window entropies.

    The function takes :class:`Signals` and returns (sequence, layer, head), a dict of these by member, or
    None where the protocol does not define the metric; without one, the metric is not measured from signals.
    """

    name: str
    unit: str
    label: str
    function: Callable | None = None


@dataclass(frozen=True)
class Signals:
    """One signal per head and what the protocol says about it; what the metrics are computed from."""

    signal: torch.Tensor  # (sequence, layer, head, position), non-negative, sums to 1; float64
    scaled: dict  # the signals of the scaled variants x_α (eq. 10), by α
    protocol: Protocol
    origin: int = 0  # where key 0, or lag 0, stands: lags of bidirectional attention start below zero
    local_mass: dict = field(default_factory=dict)  # (sequence, layer, head), by distance in tokens

    @cached_property
    def psd(self):
        """Power spectrum (eq. 1), (sequence, layer, head, freq)."""
        return spectra.psd(self.signal, **self.protocol.spectrum_options)

    @cached_property
    def frequency(self):
        """Frequency of each bin, cycles/token."""
        return spectra.frequencies(self.signal.shape[-1], pad=self.protocol.pad, sided=self.protocol.sided)

    @cached_property
    def bands(self):
        """Relative band power (eq. 2) by the protocol's name of the band."""
        shares = spectra.band_shares(self.psd, edges=self.protocol.edges, frequency=self.frequency)
        return dict(zip(self.protocol.band_names, shares.unbind(-1), strict=True))

    @cached_property
    def coefficients(self):
        """Wavelet coefficients of the signal (eq. 4), from coarse to fine."""
        return self.transform(self.signal)

    def transform(self, signal):
        """Return the wavelet coefficients of a signal at the protocol's level."""
        options = {"wavelet": self.protocol.wavelet, "mode": self.protocol.mode}
        return wavelets.wavedec(signal, level=self.level(signal), **options)

    def level(self, signal):
        """Return the wavelet level of a signal: what the shortest variant allows, or the signal itself."""
        n = min(s.shape[-1] for s in (self.signal, *self.scaled.values()))
        n = n if self.protocol.level == "shortest" else signal.shape[-1]
        level = wavelets.dwt_max_level(n, self.protocol.wavelet)
        if level < 1:
            told = f"The shortest variant has {n} tokens, too few for one level of"
            way_out = f"use longer sequences (these have {self.signal.shape[-1]}) or other factors than"
            raise ValueError(f"{told} {self.protocol.wavelet}; {way_out} {self.protocol.factors}.")
        return level

    def first_mass(self, first):
        """Return the attention to key 0 or to lag 0, whichever the signal begins with; None for the other."""
        starts_with = "lag 0" if self.protocol.signal == "lag_profile" else "key 0"
        kept = self.protocol.sink == "keep" and first == starts_with
        return self.signal[..., self.origin] if kept else None


def _wavelet_entropies(signals):
    entropies = wavelets.wavelet_entropy(signals.coefficients, base=signals.protocol.log_base)
    return dict(zip(wavelets.level_names(len(signals.coefficients) - 1), entropies.unbind(-1), strict=True))


def _scale_sensitivities(signals):
    full, options = signals.coefficients, {"alignment": signals.protocol.alignment}
    parts = {f"{factor:g}": signals.transform(scaled) for factor, scaled in signals.scaled.items()}
    return {name: wavelets.scale_sensitivity(full, part, **options) for name, part in parts.items()}


BAND = "relative band power"

METRICS = [
    Metric("spectral_entropy", "nats", "spectral entropy",
           lambda s: spectra.spectral_entropy(s.psd, base=s.protocol.log_base)),  # eq. 7
    Metric("frequency_selectivity", "ratio", "frequency selectivity",
           lambda s: spectra.frequency_selectivity(s.psd)),  # eq. 3
    Metric("low_band", BAND, "low band", lambda s: s.bands.get("low_band")),  # eq. 2
    Metric("mid_band", BAND, "mid band", lambda s: s.bands.get("mid_band")),
    Metric("high_band", BAND, "high band", lambda s: s.bands.get("high_band")),
    Metric("band_*", BAND, "band * of Nyquist",
           lambda s: {n.removeprefix("band_"): v for n, v in s.bands.items() if n.startswith("band_")}),
    Metric("positional_entropy", "nats", "positional entropy",
           lambda s: entropy.positional_entropy(s.signal, base=s.protocol.log_base)),  # eq. 6
    Metric("effective_support", "tokens", "effective support", lambda s: entropy.effective_support(s.signal)),
    Metric("sink_mass", "share", "attention to key 0", lambda s: s.first_mass("key 0")),
    Metric("self_mass", "share", "attention to lag 0", lambda s: s.first_mass("lag 0")),
    Metric("window_entropy_*", "share of its maximum", "window entropy, * tokens",  # Table 2
           lambda s: {str(window): entropy.window_entropy(s.signal, window)
                      for window in s.protocol.entropy_windows if window <= s.signal.shape[-1]}),
    Metric("wavelet_entropy_*", "nats", "wavelet entropy *", _wavelet_entropies),  # eq. 5, per level
    Metric("scale_sensitivity_*", "", "scale sensitivity S(*)", _scale_sensitivities),  # eq. 10, per variant
    Metric("reconstruction_error", "relative", "reconstruction error",  # eq. 11, in float32
           lambda s: wavelets.reconstruction_error(
               s.signal.float(), wavelet=s.protocol.wavelet, mode=s.protocol.mode, level=s.level(s.signal))),
    Metric("local_mass_*", "share", "attention within * tokens", lambda s: s.local_mass),  # Fig. 1
    Metric("position_spectrum_correlation", "", "position-spectrum correlation"),  # eq. 9: stats, RowMetrics
    Metric("induction_score", "share", "induction score"),  # these of the zoo
    Metric("previous_token_score", "share", "previous token"),
    Metric("duplicate_token_score", "share", "duplicate token"),
    Metric("validation_loss", "nats/token", "validation loss"),
]  # fmt: skip


@checked(name=text)
def find_metric(name, protocol=PAPER):
    """Return the metric of a name under a protocol, a family's with its member; one unknown has no unit."""
    for metric in METRICS:
        start = metric.name.removesuffix("*")
        if name == metric.name or (start != metric.name and name.startswith(start)):
            member = name.removeprefix(start).replace("_", "–")
            unit = protocol.entropy_unit if metric.unit == PAPER.entropy_unit else metric.unit
            return dataclasses.replace(metric, name=name, label=metric.label.replace("*", member), unit=unit)
    return Metric(name, "", name if "$" in name else name.replace("_", " "))


@checked(name=text)
def metric_label(name, *protocols):
    """Return a metric's name in words with its unit, or units of several protocols, as an axis shows it."""
    found = [find_metric(name, protocol) for protocol in protocols or [PAPER]]
    units = " or ".join(dict.fromkeys(metric.unit for metric in found))
    return f"{found[0].label} ({units})" if units else found[0].label


def measure_signals(signals):
    """Return all :data:`METRICS` of some signals, name → (sequence, layer, head)."""
    measured = {}
    for metric in METRICS:
        values = metric.function(signals) if metric.function else None
        if isinstance(values, dict):
            measured |= {metric.name.replace("*", str(member)): array for member, array in values.items()}
        elif values is not None:
            measured[metric.name] = values
    return measured

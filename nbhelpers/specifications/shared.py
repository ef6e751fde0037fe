"""The metrics of one signal under many specifications; what they share is computed once.

The definitions are those of :mod:`nbhelpers.kernels`, to which the tests hold every number: a spectrum with
its two sides, and one without its zero-frequency bin, have the sums of the one-sided spectrum; a transform
passes through those with fewer levels.
"""

import dataclasses

import pywt
import torch

from nbhelpers.analysis import signals_of
from nbhelpers.kernels import entropy, spectra, wavelets
from nbhelpers.protocol import BANDS, PAPER


class Shared:
    """The signals of one (signal, sink, order), by scaled variant, and the last spectrum and transforms."""

    def __init__(self, world, protocol):
        self._world, self._protocol = world, protocol
        self._signals, self._spectrum, self._transforms = {}, (None, None), (None, {})

    def signals(self, how):
        """Return the :class:`nbhelpers.metrics.Signals` of a variant; averaged ones as one sequence."""
        if how not in self._world:
            raise ValueError(f"the grid asks for {how} variants; observed were {', '.join(self._world)}")
        if how not in self._signals:
            made = signals_of(self._world[how], self._protocol.replace(scaled_variant=how))
            if self._protocol.order != PAPER.order:  # without those that leave a sequence out
                scaled = {factor: signal[:1] for factor, signal in made.scaled.items()}
                made = dataclasses.replace(made, signal=made.signal[:1], scaled=scaled)
            self._signals[how] = made
        return self._signals[how]

    def of_spectra(self, protocol):
        """Return entropies, selectivity and bands of a specification, name → (sequence, layer, head)."""
        signal = self.signals(next(iter(self._world))).signal
        asked = protocol.window, protocol.pad, protocol.detrend
        if self._spectrum[0] != asked:
            sums = _sums(signal, protocol), entropy.positional_entropy(signal)
            self._spectrum = asked, sums
        sums, positional = self._spectrum[1]
        return _numbers(*sums, protocol.sided, protocol.dc) | {"positional_entropy": positional.numpy()}

    def of_wavelets(self, protocol):
        """Return the scale sensitivities of a specification, name → (sequence, layer, head)."""
        signals = dataclasses.replace(self.signals(protocol.scaled_variant), protocol=protocol)
        full, found = self._coefficients(signals, "whole", signals.signal), {}
        for factor, scaled in signals.scaled.items():
            other = self._coefficients(signals, (protocol.scaled_variant, factor), scaled)
            u, v = wavelets.align(full, other, alignment=protocol.alignment)
            norms = torch.linalg.vector_norm(u, dim=-1) * torch.linalg.vector_norm(v, dim=-1)
            found[f"scale_sensitivity_{factor:g}"] = (1 - torch.linalg.vecdot(u, v) / norms).numpy()
        return found

    def _coefficients(self, signals, name, signal):
        """Return what `wavedec` does, of the deepest transform so far."""
        asked, level = (signals.protocol.wavelet, signals.protocol.mode), signals.level(signal)
        if self._transforms[0] != asked:
            self._transforms = asked, {}
        steps = self._transforms[1].setdefault(name, [])  # (approximation, detail) of each level
        while len(steps) < level:
            before = steps[-1][0] if steps else signal
            pair = pywt.dwt(before.numpy(), asked[0], mode=asked[1], axis=-1)
            steps.append(tuple(map(torch.from_numpy, pair)))
        return [steps[level - 1][0], *(detail for _, detail in steps[level - 1 :: -1])]


def _sums(signal, protocol):
    """Return what the numbers of a spectrum are made of, each (sequence, layer, head, …).

    That is the power of every band without its ends, of the zero-frequency and the Nyquist bin (0 where there
    is none); of the same three parts −Σ p log p; and the largest power but for the zero-frequency bin.
    """
    options = {"window": protocol.window, "pad": protocol.pad, "detrend": protocol.detrend}
    power = spectra.psd(signal, check=False, **options)  # (..., freq)
    frequency = spectra.frequencies(signal.shape[-1], pad=protocol.pad)
    band = torch.bucketize(frequency, 0.5 * torch.tensor(protocol.edges, dtype=torch.float64), right=True)
    inner = (frequency > 0) & (frequency < 0.5)
    parts = [inner & (band == number) for number in range(len(BANDS))]
    parts = torch.stack([*parts, frequency == 0, frequency == 0.5], -1).double()  # (freq, part)
    surprise = torch.special.entr(power) @ torch.stack([inner.double(), *parts.T[-2:]], -1)
    return power @ parts, surprise, power[..., 1:].amax(-1)


def _numbers(power, surprise, peak, sided, dc):
    """Return entropy, selectivity and bands from the sums of :func:`_sums`."""
    twice, once = (2.0 if sided == "two" else 1.0), (1.0 if dc == "keep" else 0.0)
    low, mid, high, zero, nyquist = power.unbind(-1)
    low, mid, high = twice * low + once * zero, twice * mid, twice * high + nyquist
    total = low + mid + high
    spread = twice * surprise[..., 0] + once * surprise[..., 1] + surprise[..., 2]
    without = total - peak  # of the zero-frequency bin alone, a difference would lose the digits
    if dc == "keep":
        rest = twice * power[..., :3].sum(-1) + nyquist
        without, peak = torch.where(zero > peak, rest, without), torch.maximum(peak, zero)
    found = {"spectral_entropy": total.log() + spread / total, "frequency_selectivity": peak / without}
    found |= dict(zip(BANDS, (low / total, mid / total, high / total), strict=True))
    return {name: values.numpy() for name, values in found.items()}

"""The metrics of one signal under many specifications; what they share is computed once.

A spectrum with two sides, or without its zero-frequency bin, has the sums of the one-sided one; a transform
passes through those with fewer levels. The tests hold every number to :mod:`nbhelpers.kernels`.
"""

import dataclasses
from functools import cached_property, partial

import numpy as np
import pywt
import torch

from nbhelpers.analysis import signals_of
from nbhelpers.kernels import entropy, spectra, wavelets
from nbhelpers.protocol import BANDS, PAPER

_products = partial(np.einsum, "...c,...c")  # of two arrays, summed over the last axis, with no third array


class Shared:
    """The signals of one (signal, sink, order), and what the numbers of several protocols are made of."""

    def __init__(self, world, protocols):
        self._world, self._protocol = world, protocols[0]
        self._ways = {(protocol.pad, protocol.sided, protocol.dc) for protocol in protocols}
        self._signals, self._spectra, self._transforms, self._compared = {}, {}, (None, {}), (None, {})

    def signals(self, how):
        """Return the :class:`nbhelpers.metrics.Signals` of a variant; averaged ones as one sequence."""
        if how not in self._world:
            raise ValueError(f"the grid asks for {how} variants; observed were {', '.join(self._world)}")
        if how not in self._signals:
            made = signals_of(self._world[how], self._protocol.replace(scaled_variant=how))
            kept = slice(None if self._protocol.order == PAPER.order else 1)  # no sequence is left out
            scaled = {factor: signal[kept] for factor, signal in made.scaled.items()}
            self._signals[how] = dataclasses.replace(made, signal=made.signal[kept], scaled=scaled)
        return self._signals[how]

    @cached_property
    def _whole(self):
        return self.signals(next(iter(self._world)))

    @cached_property
    def _scaled(self):
        each = [self.signals(how).scaled for how in self._world]
        return {a: torch.stack([scaled[a] for scaled in each]) for a in each[0]}  # (variant, sequence, ...)

    def of_spectra(self, protocol):
        """Return entropies, selectivity and bands of a specification, name → (sequence, layer, head)."""
        asked = protocol.window, protocol.detrend
        if asked not in self._spectra:
            sums = _sums(self._whole.signal, protocol, {pad for pad, *_ in self._ways})
            known = {"positional_entropy": entropy.positional_entropy(self._whole.signal).numpy()}
            self._spectra[asked] = {(p, *w): known | _numbers(*sums[p], *w) for p, *w in self._ways}
        return self._spectra[asked][protocol.pad, protocol.sided, protocol.dc]

    def of_wavelets(self, protocol):
        """Return the scale sensitivities of a specification, name → (sequence, layer, head)."""
        self.signals(protocol.scaled_variant)  # it must be there
        asked = protocol.wavelet, protocol.mode, protocol.level, protocol.alignment
        if self._compared[0] != asked:
            signals, found = dataclasses.replace(self._whole, protocol=protocol), {}
            full, row = self._coefficients(signals, "whole", signals.signal)
            for factor, scaled in self._scaled.items():
                other, v = self._coefficients(signals, factor, scaled)
                u = row[..., : v.shape[-1]]  # the shorter signal stays whole in every alignment
                if protocol.alignment != PAPER.alignment:
                    one = [values[0, 0, 0, 0] for values in other]  # its lengths are those of all
                    u = wavelets.align(full, one, alignment=protocol.alignment)[0].numpy()
                norms = np.sqrt(_products(u, u)) * np.sqrt(_products(v, v))
                norms[norms == 0] = np.nan  # a zero profile has no cosine, as in `measure`
                found[f"scale_sensitivity_{factor:g}"] = 1 - _products(u, v) / norms
            self._compared = asked, found
        variant = list(self._world).index(protocol.scaled_variant)
        return {name: values[variant] for name, values in self._compared[1].items()}

    def _coefficients(self, signals, name, signal):
        """Return what `wavedec` does, of the deepest transform so far, and the levels in a row."""
        asked = signals.protocol.wavelet, signals.protocol.mode
        if self._transforms[0] != asked:
            self._transforms = asked, {}
        level, known = signals.level(signal), self._transforms[1]
        steps = known.setdefault(name, [])  # (approximation, detail) of each level
        while len(steps) < level:
            before = steps[-1][0] if steps else signal
            pair = pywt.dwt(before.numpy(), asked[0], mode=asked[1], axis=-1)
            steps.append(tuple(map(torch.from_numpy, pair)))
        if (name, level) not in known:
            levels = [steps[level - 1][0], *(detail for _, detail in steps[level - 1 :: -1])]
            known[name, level] = levels, torch.cat(levels, -1).numpy()
        return known[name, level]


def _sums(signal, protocol, pads):
    """Return what the numbers of a spectrum are made of, by padding; each (sequence, layer, head, …).

    The power of every band without its ends, of the zero-frequency and the Nyquist bin; of the same three
    parts −Σ p log p; and the largest power but for the zero-frequency bin.
    """
    options = {"window": protocol.window, "detrend": protocol.detrend, "check": False}
    sizes = {pad: len(spectra.frequencies(signal.shape[-1], pad=pad, sided="two")) for pad in pads}
    found, known = {}, {}  # known: transformed length → power and its surprise, (..., freq)
    for pad in sorted(pads, key=sizes.get, reverse=True):
        # The bins of a length are every k-th of a k times longer one.
        n = next((n for n in known if n % sizes[pad] == 0), sizes[pad])
        if n not in known:
            power = spectra.psd(signal, pad=pad, **options)
            known[n] = power, torch.special.entr(power)
        power, surprise = (values[..., :: n // sizes[pad]] for values in known[n])
        frequency = spectra.frequencies(signal.shape[-1], pad=pad)
        band = torch.bucketize(frequency, 0.5 * torch.tensor(protocol.edges, dtype=torch.float64), right=True)
        inner = (frequency > 0) & (frequency < 0.5)
        parts = [*(inner & (band == at) for at in range(len(BANDS))), frequency == 0, frequency == 0.5, inner]
        parts = torch.stack(parts, -1).double()  # (freq, part)
        found[pad] = power @ parts[:, :-1], surprise @ parts[:, [-1, -3, -2]], power[..., 1:].amax(-1)
    return found


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

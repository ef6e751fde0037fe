"""A number under each specification of a grid, which choices move it, and whether chance does the same.

A specification is a protocol in what decides a number: of spectra, or of wavelet coefficients.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from functools import cached_property, lru_cache, partial
from importlib import resources
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd
import pywt
import torch

from nbhelpers.analysis import Observation, observe, signals_of
from nbhelpers.arguments import checked, mapping, such_that
from nbhelpers.claims import statistics as criteria
from nbhelpers.kernels import entropy, spectra, wavelets
from nbhelpers.protocol import BANDS, PAPER
from nbhelpers.sweeps.grid import read_small_yaml
from nbhelpers.table import HeadTable

SHIPPED = resources.files("nbhelpers.data").joinpath("specifications.yaml")
OF_ALL = ("signal", "sink", "order")
CHOICES = {
    "spectra": (*OF_ALL, *PAPER.spectrum_options, "log_base"),
    "wavelets": (*OF_ALL, "wavelet", "mode", "level", "alignment", "scaled_variant"),
}
_products = partial(np.einsum, "...c,...c")  # of two arrays, summed over the last axis, with no third array
JOINED = (("signal", "sink"), ("level", "alignment"))  # not every pair of these can be measured


def _mean(metric):
    return criteria.Statistic(lambda table, *_: table.values(metric).mean((1, 2)))


STATISTICS = {
    "spectra": {
        "spectral entropy": _mean("spectral_entropy"),
        "selectivity": _mean("frequency_selectivity"),
        "low band": criteria.STATISTICS["C2_low"],
        "mid band": criteria.STATISTICS["C2_mid"],
        "high band": criteria.STATISTICS["C2_high"],
        "low band over depth": criteria.STATISTICS["C3_low_change"],
        "position-spectrum correlation": criteria.STATISTICS["C6_rho"],
    },
    "wavelets": {
        "S(0.5)": criteria.STATISTICS["C5_half"],
        "S(0.25)": _mean("scale_sensitivity_0.25"),
        "S(0.25) / S(0.5)": criteria.STATISTICS["C5_ratio"],
    },
}

_world = such_that(lambda w: isinstance(w, (Observation, Mapping)) and w, "an Observation, or one by variant")


def load_choices(given=None):
    """Return a grid, field of Protocol → options, of a YAML file or a dict; the package's own if None.

    A field that is not given keeps the paper's choice. What Protocol does not take is a ValueError.
    """
    name, raw = "the grid", given
    if not isinstance(given, Mapping):
        file = SHIPPED if given is None else Path(given)
        name, raw = file.name, read_small_yaml(file)
    known = dict.fromkeys(itertools.chain(*CHOICES.values()))
    if not isinstance(raw, Mapping) or not raw:
        raise ValueError(f"{name} holds no fields of a protocol with their options")
    grid = {}
    for field, options in raw.items():
        if field not in known:
            told = f"{name}: {field!r} is not a choice of a specification"
            raise ValueError(f"{told}; those are {', '.join(known)}")
        grid[field] = tuple(options) if isinstance(options, (list, tuple)) else (options,)
        try:
            grid[field] = tuple(getattr(PAPER.replace(**{field: option}), field) for option in grid[field])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    whole = {field: tuple(dict.fromkeys(grid.get(field, (getattr(PAPER, field),)))) for field in known}
    for kind in CHOICES:
        if not specifications(whole, kind):
            raise ValueError(f"no specification of {kind} is left: {whole} has no pair that can be measured")
    return whole


def specifications(grid, kind):
    """Return the protocols of a grid that differ in what `kind`, spectra or wavelets, depends on."""
    return _specifications(tuple((field, tuple(grid[field])) for field in CHOICES[kind]))


@lru_cache(maxsize=8)
def _specifications(options):
    fields, options = zip(*options, strict=True)
    made = (PAPER.replace(**dict(zip(fields, o, strict=True))) for o in itertools.product(*options))
    made = (p for p in made if p.signal != "lag_profile" or p.sink == "keep")
    return [p for p in made if p.level != "own" or p.alignment == PAPER.alignment]


@checked(model=None, protocol=None)
def observe_variants(model, token_ids, grid, **options):
    """Observe a model once for each scaled variant of a grid, variant → Observation, as `observe` does."""
    world, options = {}, options | {"whole": None}
    for how in grid["scaled_variant"]:
        world[how] = observe(model, token_ids, PAPER.replace(scaled_variant=how), **options)
        options["whole"] = world[how].profiles
    return world


def map_variants(world, function):
    """Return observations by variant with a null made of each; the whole texts are made once."""
    profiles = function(next(iter(world.values())).profiles)
    scaled = {how: {a: function(part) for a, part in seen.scaled.items()} for how, seen in world.items()}
    return {how: Observation(profiles, parts, how) for how, parts in scaled.items()}


@checked(observation=_world, grid=mapping)
def specification_curve(observation, grid, kind="spectra", statistics=None):
    """Return statistics under every specification of a grid: a row for each, a column per statistic.

    The numbers are those of `measure` to 12 digits. `observation` is an Observation, or one by
    `scaled_variant` where the grid, of :func:`load_choices`, has several; `kind` is "spectra" or "wavelets".
    `statistics`, by name, take the table of metrics alone; those of :data:`STATISTICS` if not given.
    """
    world = {observation.scaled_variant: observation} if isinstance(observation, Observation) else observation
    statistics = STATISTICS[kind] if statistics is None else statistics
    groups, rows, parts = next(iter(world.values())).profiles.kv_groups, [], []
    for _, protocols in itertools.groupby(specifications(grid, kind), attrgetter(*OF_ALL)):
        protocols = list(protocols)
        shared, every = Shared(world, protocols), []
        for protocol in protocols:
            arrays = getattr(shared, f"of_{kind}")(protocol)
            scale = 1.0 if protocol.log_base is None else math.log(protocol.log_base)
            every.append(arrays | {n: a / scale for n, a in arrays.items() if n.endswith("entropy")})
            rows.append(tuple(_shown(getattr(protocol, field)) for field in CHOICES[kind]))
        # The sequences of all protocols in a row: a statistic is computed once for all of them.
        table = HeadTable({name: np.concatenate([a[name] for a in every]) for name in every[0]}, groups)
        numbers = {name: criteria.values_of(s, table, len(every)) for name, s in statistics.items()}
        parts.append(pd.DataFrame(numbers))
    return pd.concat(parts).set_axis(pd.MultiIndex.from_tuples(rows, names=CHOICES[kind]))


def _shown(option):
    """Return an option as the index holds it: bases of logarithms as "e", "2", "10"."""
    return "e" if option is None else f"{option:g}" if isinstance(option, float) else option


def distinct(curve, length):
    """Return how many rows of a curve differ by more than rounding, for signals of a length."""
    rows = curve.index.to_frame(index=False)
    if "dc" in rows:
        # Without its mean and a window a signal has no zero-frequency bin; paddings may give one length.
        rows.loc[(rows.detrend == "mean") & (rows.window == "boxcar"), "dc"] = "keep"
        given = zip(length - (rows.sink != "keep"), rows["pad"], strict=True)
        rows["pad"] = [len(spectra.frequencies(n, pad=pad, sided="two")) for n, pad in given]
    return len(rows.drop_duplicates())


def shapley_shares(values):
    """Return each choice's share of the variance of a number over specifications, summing to 1.

    Exact Shapley values (Owen, 2014, SIAM/ASA J. Uncertainty Quantification 2): what a choice adds to the
    variance of the mean over all others, averaged over every order in which choices may become known. Choices
    of which not every pair can be measured count as one. `values` are of a whole product.
    """
    choices = {name: values.index.get_level_values(name) for name in values.index.names}
    for pair in JOINED:
        if set(pair) <= set(choices):
            choices[" and ".join(pair)] = pd.Index(zip(*map(choices.pop, pair), strict=True))
    codes = {name: pd.factorize(column)[0] for name, column in choices.items()}
    shape = [code.max() + 1 for code in codes.values()]
    if math.prod(shape) != len(values) or not np.isfinite(values).all():
        told = f"shares of variance need a finite number for each of the {math.prod(shape)} specifications"
        raise ValueError(f"{told} of a whole grid; {np.isfinite(values).sum()} of {len(values)} are there")
    cube = np.empty(shape)
    cube[tuple(codes.values())] = values
    n, every = len(shape), range(len(shape))
    sets = itertools.chain(*(itertools.combinations(every, size) for size in range(n + 1)))
    known = {chosen: cube.mean(axis=tuple(set(every) - set(chosen))).var() for chosen in sets}
    shares = np.zeros(n)
    for chosen, variance in known.items():
        weight = 1 / (n * math.comb(n - 1, len(chosen))) if len(chosen) < n else 0
        for other in set(every) - set(chosen):
            shares[other] += weight * (known[tuple(sorted((*chosen, other)))] - variance)
    shares = pd.Series(shares / known[tuple(every)] if known[tuple(every)] > 0 else shares, list(codes))
    return shares.sort_values(ascending=False)


def joint_inference(curve, draws, *, above, level=0.05):
    """Return in how many specifications a number lies beyond permuted data, and how often those do so too.

    `draws` have a column per draw of what `curve` (specification,) is. By name: share of the specifications
    in which the model is among the most extreme `level` of all; usual, that of the middle draw; p_value,
    exact; floor, its least.
    """
    every = np.column_stack([curve, draws]) * (1 if above else -1)  # (specification, 1 + draw)
    every = every[np.isfinite(every).all(1)]
    n = every.shape[1]
    most = max(1, int(level * n + 1e-9))
    beyond = (every >= np.sort(every, 1)[:, [n - most]]).mean(0)  # (1 + draw,)
    shares = {"share": beyond[0], "usual": np.median(beyond[1:])}
    return shares | {"p_value": (beyond >= beyond[0]).sum() / n, "floor": 1 / n}


class Shared:
    """The signals of one (signal, sink, order); what the numbers of several protocols share is computed once.

    A spectrum with two sides, or without its zero-frequency bin, has the sums of the one-sided one; a
    transform passes through those with fewer levels. The tests hold every number to `nbhelpers.kernels`.
    """

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

"""Kinds of banks of heads whose truth is known by construction: their kernels, and which claims hold.

Makers return kernels (head, lag) of one layer: the weight of a key so many tokens back, non-negative. A row
of attention is non-negative and cannot be a wavelet; what is planted is the nearest thing. All periods are at
least :data:`SHORTEST` tokens; a head whose kernel does not fit into half of the sequence looks evenly.
"""

from functools import partial
from importlib import resources
from typing import NamedTuple

import torch
import yaml

SHORTEST = 2.2  # tokens, the shortest period of a bank


class Kind(NamedTuple):
    """A kind of bank: how its heads are made, and which claims hold for it by construction."""

    maker: object  # from (n_heads, lag, generator) and the options to kernels (head, lag)
    options: dict
    holds: tuple  # claims that are true of the bank
    why: str
    open: tuple = ()  # claims that can be argued either way, or whose null this kind is; not counted
    shortest: int = 128  # tokens, the shortest sequence that holds the bank
    key: object = None  # what tokens draw whatever the distance: from (shape, generator) to log weights
    sink: object = None  # from (layer, head) to the weight of key 0, relative to all else
    spread: float = 0.0  # sd of log attention over entries, beside the noise


def _scales(n_heads, ratio, first):
    return first * ratio ** torch.arange(n_heads, dtype=torch.float64)[:, None]  # (head, 1)


def _scattered_steps(n_heads, generator):
    """One number at random in each of as many equal parts of 0 to 1 as there are heads, (head, 1)."""
    return (torch.arange(n_heads)[:, None] + torch.rand(n_heads, 1, generator=generator).double()) / n_heads


def _that_fit(made, reach, lag):
    """Heads whose kernel does not fit into half of the sequence look evenly."""
    return torch.where(reach <= len(lag) / 2 - 1, made, 1.0)


def _morlet(n_heads, lag, generator, *, ratio=2**0.5, place=4.0, period=1.0, hats=False):
    """Gaussian envelope of sd s at place · s, times 1 + cos of period · s; s grows by `ratio`, 0 at random.

    With `hats`, the crests are Mexican hats, lifted until they are nowhere negative.
    """
    scale = _scales(n_heads, ratio or 1.0, SHORTEST / period)
    if not ratio:
        widest = (len(lag) / 2 - 1) / (place + 2)
        scale = scale * (widest / scale) ** _scattered_steps(n_heads, generator)
    x = (lag - place * scale) / scale
    wave = 1 + torch.cos(2 * torch.pi * x / period)
    if hats:
        u = 3.4 * (torch.remainder(x / period + 0.5, 1) - 0.5)
        wave = (1 - u**2) * torch.exp(-0.5 * u**2) + 2 * torch.tensor(-1.5).exp()
    return _that_fit(torch.exp(-0.5 * x**2) * wave, (place + 2) * scale, lag)


def _gabor(n_heads, lag, generator, *, width=1 / 16, place=2.0, at_random=False):
    """One Gaussian window, modulated by frequencies in equal steps up to Nyquist, or at random."""
    frequency = 0.5 * torch.arange(1, n_heads + 1, dtype=torch.float64)[:, None] / n_heads
    if at_random:
        frequency = 0.05 + 0.45 * torch.rand(n_heads, 1, generator=generator, dtype=torch.float64)
    x = lag - place * width * len(lag)
    return torch.exp(-0.5 * (x / (width * len(lag))) ** 2) * (1 + torch.cos(2 * torch.pi * frequency * x))


def _damped(n_heads, lag, generator, *, ratio=2**0.5, cycles=0.0, decay=0.0):
    """1 + cos, falling with distance: e^-1 after `cycles` periods, or after `decay` of the sequence."""
    period = _scales(n_heads, ratio, SHORTEST)
    made = torch.exp(-lag / (cycles * period if cycles else decay * len(lag)))
    made = made * (1 + torch.cos(2 * torch.pi * lag / period))
    return _that_fit(made, (2 * cycles * period) if cycles else period, lag)


def _periodic(n_heads, lag, generator, *, ratio=2**0.5, sharpness=0.0):
    """cos over all lags, the same far and near; or a comb of its peaks."""
    wave = torch.cos(2 * torch.pi * lag / _scales(n_heads, ratio, SHORTEST))
    return (sharpness * wave).exp() if sharpness else 1 + wave


def _fading(n_heads, lag, generator, *, shape, ratio=2.0, first=1.5):
    """A shape of lag over scale; scales grow by `ratio`, or are drawn where it is 0."""
    scale = _scales(n_heads, ratio or 1.0, first)
    if not ratio:
        scale = first * (len(lag) / 8 / first) ** _scattered_steps(n_heads, generator)
    return _that_fit(SHAPES[shape](lag / scale), 2 * scale, lag)


SHAPES = {  # of x = lag / scale
    "exponential": lambda x: torch.exp(-x),
    "half Gaussian": lambda x: torch.exp(-0.5 * x**2),
    "box": lambda x: (x < 2).double(),
    "triangle": lambda x: (1 - x / 2).clamp_min(0),
    "ring": lambda x: ((x >= 1) & (x < 2)).double(),
    "bump": lambda x: torch.exp(-0.5 * ((x - 1) / 0.15) ** 2),
    "peak": lambda x: torch.exp(-6 * (x - 1).abs()),
    "gamma": lambda x: x**2 * torch.exp(-3 * x),
    "power law": lambda x: (1 + x) ** -4,
}


def _power_laws(n_heads, lag, generator, *, steepest=3.0):
    exponent = torch.linspace(0.5, steepest, n_heads, dtype=torch.float64)[:, None]
    return (1 + lag) ** -exponent


def _windows(n_heads, lag, generator, *, width, ratio=1.5, soft=False):
    """Windows of one width at distances that grow by `ratio`."""
    x = (lag - _scales(n_heads, ratio, width * 1.5).clamp_max(len(lag) / 3)) / width
    return torch.exp(-2 * x**2) if soft else (x.abs() < 0.5).double()


def _widening(n_heads, lag, generator, *, ratio=1.6):
    """Bumps of growing width around one distance."""
    return torch.exp(-0.5 * ((lag - len(lag) / 5) / _scales(n_heads, ratio, 1.0)) ** 2)


def _scattered(n_heads, lag, generator, *, ratio=1.8):
    """Lags drawn at random, more and more of them from head to head."""
    count = _scales(n_heads, ratio, 3.0)
    order = torch.rand(n_heads, len(lag), generator=generator).argsort(-1).double()
    return (order < count * 2).double()


def _flat(n_heads, lag, generator):
    return torch.ones(n_heads, len(lag), dtype=torch.float64)


def _shuffled(n_heads, lag, generator, *, of):
    """The lags of each head in random order, within the half that all late queries see."""
    (maker, options), half = of, len(lag) // 2
    made = maker(n_heads, lag, generator, **options)
    order = torch.rand(n_heads, half, generator=generator).argsort(-1)
    return torch.cat([made[:, :half].gather(1, order), made[:, half:]], 1)


def _half(n_heads, lag, generator, *, of, other=(_flat, {})):
    """Half of the heads of one kind, half of another: each (maker, options)."""
    parts = zip((of, other), (n_heads - n_heads // 2, n_heads // 2), strict=True)
    return torch.cat([maker(n, lag, generator, **options) for (maker, options), n in parts])


def _token_weights(given, shape, generator):
    """Log weights of keys for all queries alike: 1/f noise, or noise of a strength that takes a course."""
    if isinstance(given, dict):
        return given["gain"] * _pink(shape, generator, given["exponent"])
    strength = COURSES[given](torch.linspace(0, 1, shape[0]))[:, None, None]  # (layer, 1, 1)
    return 2.5 * strength * torch.randn(shape, generator=generator)


def _sink_weights(spread, n_layers, n_heads):
    """Weight of key 0: close to a half of all in the first layer, none or nearly all in the last."""
    logit = spread * torch.linspace(0, 1, n_layers).sqrt()  # (layer,)
    side = torch.arange(n_heads) % 2 * 2 - 1  # (head,)
    return (logit[:, None] * side).exp()


def _pink(shape, generator, exponent):
    """Gaussian noise along the last axis whose power falls as 1/f^exponent, of variance 1."""
    noise = torch.fft.rfft(torch.randn(shape, generator=generator))
    frequency = torch.arange(noise.shape[-1]).clamp_min(1)
    pink = torch.fft.irfft(noise * frequency ** (-exponent / 2), n=shape[-1])
    pink = pink - pink.mean(-1, keepdim=True)
    return pink / pink.square().mean(-1, keepdim=True).sqrt()


COURSES = {  # of the strength of token noise over depth, 0 to 1
    "rising": lambda depth: depth,
    "late": lambda depth: depth**1.5,
    "a little": lambda depth: 0.2 + 0.6 * depth,
    "middle": lambda depth: 4 * depth * (1 - depth),
    "falling": lambda depth: 1 - depth,
    "early fall": lambda depth: (1 - depth).square(),
    "both ends": lambda depth: (1 - 2 * depth).square(),
}


def _made(given):
    """Return the maker that a mapping names, a function above without its underscore, and its options."""
    options = {name: _made(value) if isinstance(value, dict) else value for name, value in given.items()}
    return globals()[f"_{options.pop('maker')}"], options


def _kind(given):
    fields = {name: given.pop(name) for name in Kind._fields[2:] if name in given}
    fields |= {name: tuple(fields.get(name, ())) for name in ("holds", "open")}
    weights = {"key": _token_weights, "sink": _sink_weights}
    fields |= {name: partial(make, fields[name]) for name, make in weights.items() if name in fields}
    return Kind(*_made(given), **fields)


_BANKS = yaml.safe_load((resources.files("nbhelpers.data") / "banks.yaml").read_text(encoding="utf-8"))
DESIGN, TEST = ({name: _kind(of) for name, of in _BANKS[part].items()} for part in ("design", "test"))
KINDS = DESIGN | TEST

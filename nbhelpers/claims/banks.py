"""Kinds of banks of heads whose truth is known by construction: their kernels, and which claims hold.

Makers return kernels (head, lag) of one layer: the weight of a key so many tokens back, non-negative. A row
of attention is non-negative and cannot be a wavelet; what is planted is the nearest thing. All periods are at
least :data:`SHORTEST` tokens; a head whose kernel does not fit into half of the sequence looks evenly.
"""

from typing import NamedTuple

import torch

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


def _shuffled(n_heads, lag, generator, *, of, **options):
    """The lags of each head in random order, within the half that all late queries see."""
    made, half = of(n_heads, lag, generator, **options), len(lag) // 2
    order = torch.rand(n_heads, half, generator=generator).argsort(-1)
    return torch.cat([made[:, :half].gather(1, order), made[:, half:]], 1)


def _half(n_heads, lag, generator, *, of, other=(_flat, {})):
    """Half of the heads of one kind, half of another: each (maker, options)."""
    parts = zip((of, other), (n_heads - n_heads // 2, n_heads // 2), strict=True)
    return torch.cat([maker(n, lag, generator, **options) for (maker, options), n in parts])


def _tokens(exponent, gain):
    """Log weights of keys as noise whose power falls as f^-exponent, for all queries alike."""
    return lambda shape, generator: gain * _pink(shape, generator, exponent)


def _sinks(spread):
    """Weight of key 0: close to a half of all in the first layer, none or nearly all in the last."""

    def weight(n_layers, n_heads):
        logit = spread * torch.linspace(0, 1, n_layers).sqrt()  # (layer,)
        side = torch.arange(n_heads) % 2 * 2 - 1  # (head,)
        return (logit[:, None] * side).exp()

    return weight


def _pink(shape, generator, exponent):
    """Gaussian noise along the last axis whose power falls as 1/f^exponent, of variance 1."""
    n = shape[-1]
    noise = torch.fft.rfft(torch.randn(shape, generator=generator))
    frequency = torch.arange(noise.shape[-1]).clamp_min(1)
    pink = torch.fft.irfft(noise * frequency ** (-exponent / 2), n=n)
    pink = pink - pink.mean(-1, keepdim=True)
    return pink / pink.square().mean(-1, keepdim=True).sqrt()


def _by_depth(course):
    """Log weights of keys whose strength takes a course over the layers: from (0 … 1) to a factor."""

    def weight(shape, generator):
        strength = course(torch.linspace(0, 1, shape[0]))[:, None, None]  # (layer, 1, 1)
        return 2.5 * strength * torch.randn(shape, generator=generator)

    return weight


_FRAME = ("C4", "C5", "C6", "C14")
_DILATED = ("C5", "C6")
_WAVES = "dilated copies of one band-pass shape that hardly overlap, each with a period of its own"
_GABOR = "each head has a frequency of its own, but all have one window"
_PERIOD = "each head has a period of its own and no place"
_LOW = "dilated copies of one shape, wide ones with narrow spectra; none has a period"
_ONE = "all heads have one width"
_NONE = "no head has a kernel of its own"
_EXP = "dilated copies of one shape without a period; the exponential is the null of C6"
_SHAPES = "each head has another shape"
_TWO = "two families at once, whose envelopes are alike"
_SHUFFLED = "lags in random order"
_SCATTER = "heads of all widths, and all of them with flat spectra"
_WIDER = "wide bumps have narrow spectra; all lie at one distance"
_POLAR = "half and half in the first layer, first token or near tokens in the last"
_TAPER = "noise of tokens moves power out of the low band, more so in deep layers"


def _fade(shape, ratio=2.0, first=1.5):
    return _fading, {"shape": shape, "ratio": ratio, "first": first}


def _kind(maker, holds=(), why="", *, open=(), shortest=128, key=None, sink=None, spread=0.0, **options):
    maker, options = (maker[0], maker[1] | options) if isinstance(maker, tuple) else (maker, options)
    return Kind(maker, options, holds, why, open, shortest, key, sink, spread)


DESIGN = {  # what rules may be tuned on
    "Morlet, half octaves": _kind(_morlet, _FRAME, _WAVES),
    "Morlet, octaves": _kind(_morlet, _FRAME, _WAVES, ratio=2.0, place=3.0, shortest=256),
    "Mexican hats, octaves": _kind(_morlet, _FRAME, _WAVES, ratio=2.0, hats=True, shortest=256),
    "Gabor": _kind(_gabor, ("C4",), _GABOR),
    "Gabor, narrow": _kind(_gabor, ("C4",), _GABOR, width=1 / 24, place=4.0),
    "exponentials, octaves (ALiBi)": _kind(_fade("exponential"), ("C5",), _EXP, open=("C6",)),
    "exponentials of one scale": _kind(_fade("exponential", 1.0, 8.0), (), _ONE),
    "boxes, octaves": _kind(_fade("box"), _DILATED, _LOW),
    "rings, octaves": _kind(_fade("ring"), _DILATED, _LOW),
    "bumps, half octaves": _kind(_fade("bump", 2**0.5, 4.0), _DILATED, _LOW),
    "power laws": _kind(_power_laws, (), _SHAPES, open=("C6",)),
    "periodic": _kind(_periodic, ("C4",), _PERIOD),
    "damped waves of one width": _kind(_damped, ("C4",), _GABOR, decay=1 / 8),
    "shuffled Morlet": _kind(_shuffled, (), _SHUFFLED, of=_morlet),
    "recency and sink": _kind(_fade("exponential", 1.0, 4.0), (), _ONE, sink=_sinks(0.0)),
    "polar with depth": _kind(_fade("exponential", 1.0, 4.0), ("C1",), _POLAR, sink=_sinks(6.0)),
    "independent entries": _kind(_flat, (), _NONE, spread=1.0),
    "tokens, 1/f noise": _kind(_flat, (), _NONE, key=_tokens(0.2, 0.9)),
    "half Morlet, half flat": _kind(_half, _FRAME, _WAVES, of=(_morlet, {"ratio": 2.0, "place": 3.0})),
    "half Morlet, half Gabor": _kind(_half, ("C4",), _TWO, open=("C5", "C6", "C14"), of=(_morlet, {}),
        other=(_gabor, {})),
    "windows of one width": _kind(_windows, (), _ONE, width=6.0),
    "scattered lags": _kind(_scattered, (), _SCATTER),
    "widening bumps": _kind(_widening, ("C6",), _WIDER),
    "token noise rises with depth": _kind(_flat, ("C3",), _TAPER, key=_by_depth(lambda depth: depth)),
    "token noise in the middle": _kind(_flat, (), "up and down", key=_by_depth(lambda d: 4 * d * (1 - d))),
    "Morlet, narrow": _kind(_morlet, _FRAME, _WAVES, ratio=1.6, place=5.0, period=0.7, shortest=192),
    "Morlet, random scales": _kind(_morlet, _FRAME, _WAVES, ratio=0, place=5.0, period=0.8, shortest=256),
    "Mexican hats, steps of 1.7": _kind(_morlet, _FRAME, _WAVES, ratio=1.7, period=0.8, hats=True),
    "boxes of one width": _kind(_fade("box", 1.0, 7.0), (), _ONE),
    "gamma bumps, steps of 1.7": _kind(_fade("gamma", 1.7, 4.0), _DILATED, _LOW),
    "steep power law of all scales": _kind(_fade("power law", 1.8), ("C5",), _LOW, open=("C6",)),
    "combs": _kind(_periodic, ("C4",), _PERIOD, sharpness=1.5),
    "polar with depth, windows": _kind(_fade("box", 1.0, 4.0), ("C1",), _POLAR, sink=_sinks(7.0)),
    "half Morlet, half one exponential": _kind(_half, ("C4",), _TWO, open=("C6", "C14"),
        of=(_morlet, {"place": 4.5, "period": 0.8}), other=_fade("exponential", 1.0, 8.0)),
    "half ALiBi, half flat": _kind(_half, ("C5",), _EXP, open=("C6",), of=_fade("exponential")),
    "one token at growing distances": _kind(_windows, (), _ONE, width=1.2, ratio=1.8),
    "token noise falls with depth": _kind(_flat, (), "the wrong way", key=_by_depth(lambda depth: 1 - depth)),
}  # fmt: skip
TEST = {  # what they are tested on, once
    "Morlet, steps of 1.55": _kind(_morlet, _FRAME, _WAVES, ratio=1.55, place=4.8, period=0.75, shortest=192),
    "Morlet, steps of 2.2": _kind(_morlet, _FRAME, _WAVES, ratio=2.2, place=3.2, period=1.05, shortest=256),
    "Morlet, scattered scales": _kind(_morlet, _FRAME, _WAVES, ratio=0, place=4.5, period=0.9, shortest=256),
    "Mexican hats, far": _kind(_morlet, _FRAME, _WAVES, ratio=1.5, place=4.5, hats=True, shortest=192),
    "Mexican hats, steps of 1.8": _kind(_morlet, _FRAME, _WAVES, ratio=1.8, period=0.9, hats=True,
        shortest=192),
    "half Mexican hats, half flat": _kind(_half, _FRAME, _WAVES, shortest=192,
        of=(_morlet, {"hats": True, "ratio": 1.8, "place": 4.2})),
    "half Morlet, steps of 1.75, half flat": _kind(_half, _FRAME, _WAVES, shortest=192,
        of=(_morlet, {"ratio": 1.75, "place": 4.5, "period": 0.9})),
    "Gabor, random frequencies": _kind(_gabor, ("C4",), _GABOR, at_random=True, width=1 / 18, place=3.0),
    "Gabor, wide": _kind(_gabor, ("C4",), _GABOR, width=1 / 13),
    "half Gabor, half flat": _kind(_half, ("C4",), _GABOR, of=(_gabor, {"width": 1 / 20, "place": 3.5})),
    "combs, steps of 1.6": _kind(_periodic, ("C4",), _PERIOD, sharpness=1.0, ratio=1.6),
    "damped waves, short": _kind(_damped, ("C4",), _GABOR, decay=1 / 11, ratio=1.35),
    "exponentials, steps of 1.6": _kind(_fade("exponential", 1.6, 1.4), ("C5",), _EXP, open=("C6",)),
    "exponentials, scattered scales": _kind(_fade("exponential", 0, 1.8), ("C5",), _EXP, open=("C6",)),
    "long exponentials of one scale": _kind(_fade("exponential", 1.0, 11.0), (), _ONE),
    "boxes, steps of 1.45": _kind(_fade("box", 1.45, 2.0), _DILATED, _LOW),
    "half boxes, half flat": _kind(_half, _DILATED, _LOW, of=_fade("box", 2.0, 1.5)),
    "boxes of 10 tokens": _kind(_fade("box", 1.0, 5.0), (), _ONE),
    "half Gaussians, steps of 1.7": _kind(_fade("half Gaussian", 1.7, 2.0), _DILATED, _LOW),
    "two-sided exponentials, steps of 1.7": _kind(_fade("peak", 1.7, 3.5), _DILATED, _LOW),
    "rings, steps of 1.7": _kind(_fade("ring", 1.7, 2.0), _DILATED, _LOW),
    "flatter power laws": _kind(_power_laws, (), _SHAPES, open=("C6",), steepest=2.5),
    "shuffled Mexican hats": _kind(_shuffled, (), _SHUFFLED, of=_morlet, hats=True, ratio=1.6),
    "shuffled boxes": _kind(_shuffled, (), _SHUFFLED, of=_fading, shape="box", ratio=1.7),
    "window and sink": _kind(_fade("box", 1.0, 3.0), (), _ONE, sink=_sinks(0.0)),
    "polar with depth, near": _kind(_fade("exponential", 1.0, 2.0), ("C1",), _POLAR, sink=_sinks(7.5)),
    "polar with depth, window of 6": _kind(_fade("box", 1.0, 3.0), ("C1",), _POLAR, sink=_sinks(6.5)),
    "strong independent entries": _kind(_flat, (), _NONE, spread=1.4),
    "tokens, white noise": _kind(_flat, (), _NONE, key=_tokens(0.0, 0.9)),
    "uniform": _kind(_flat, (), _NONE),
    "bumps of one width": _kind(_windows, (), _ONE, width=8.0, soft=True),
    "many scattered lags": _kind(_scattered, (), _SCATTER, ratio=1.65),
    "bumps that widen fast": _kind(_widening, ("C6",), _WIDER, ratio=1.75),
    "token noise rises late": _kind(_flat, ("C3",), _TAPER, key=_by_depth(lambda depth: depth**1.5)),
    "token noise rises a little": _kind(_flat, ("C3",), _TAPER, key=_by_depth(lambda d: 0.2 + 0.6 * d)),
    "token noise falls early": _kind(_flat, (), "the wrong way", key=_by_depth(lambda d: (1 - d).square())),
    "token noise at both ends": _kind(_flat, (), "down, up", key=_by_depth(lambda d: (1 - 2 * d).square())),
}  # fmt: skip
KINDS = DESIGN | TEST

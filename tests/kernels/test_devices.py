"""Every public kernel on a GPU gives what it gives on the CPU, and stays on the device of its input.

Without a GPU the same calls run on `meta`: shapes and devices hold, and the host reads nothing from there.
That every public name has its call is tested too.
"""

import functools
import inspect
import math

import pytest
import torch
from device_traffic import needs_gpus, traffic
from draws import DTYPES, attention, uniform
from tolerances import assert_close

from nbhelpers.arguments import OPTIONS
from nbhelpers.kernels import checks, entropy, frames, rope, rows, spectra, wavelets

MODULES = (checks, entropy, frames, rope, rows, spectra, wavelets)
HEADS, LENGTH = 5, 130
FREQUENCY = spectra.frequencies(LENGTH)
TWO_SIDED = spectra.frequencies(LENGTH, sided="two")
RUNS = rows.band_runs(TWO_SIDED, (0.25, 0.75))

SIGNAL = uniform(2, HEADS, LENGTH)
ATTN = attention(2, LENGTH, LENGTH, causal=True, scale=2)
LEVELS = wavelets.wavedec(SIGNAL, level=3)
SHORT = wavelets.wavedec(SIGNAL[..., :65], level=3)
TABLE = uniform(32, 3)
TURNED = uniform(2, 40, 16), torch.arange(40), rope.inverse_frequencies(16)
PLAIN = {"window": "hann", "pad": 1, "detrend": "none", "sided": "one", "dc": "keep"}
OTHER = {"window": "boxcar", "pad": 2, "detrend": "mean", "sided": "two", "dc": "drop"}
SPECTRA = (PLAIN, OTHER, PLAIN | {"detrend": "mean"})


def levels(on, parts=LEVELS):
    return [on(part) for part in parts]


# name: calls that give a tensor or tensors, of a function that puts a tensor on a device
CALLS = {
    "positional_entropy": [lambda on: entropy.positional_entropy(on(ATTN), check=False)],
    "window_entropy": [lambda on: entropy.window_entropy(on(ATTN), 16, check=False)],
    "entropic_slack": [lambda on: entropy.entropic_slack(on(SIGNAL), check=False)],
    "frame_bounds": [
        lambda on: frames.frame_bounds(on(SIGNAL), check=False),
        lambda on: frames.frame_bounds(on(SIGNAL), normalize=True, check=False).ratio,
    ],
    "head_similarity": [
        lambda on: frames.head_similarity(on(SIGNAL), check=False),
        lambda on: frames.head_similarity(on(SIGNAL), center=True, check=False),
    ],
    "spikes": [lambda on: spectra.spikes(on(SIGNAL), check=False)],
    "as_real": [lambda on: checks.as_real(on(torch.arange(9)))],
    "as_signal": [lambda on: checks.as_signal(on(torch.arange(9)), check=False)],
    "wavelengths": [lambda on: rope.wavelengths(on(rope.inverse_frequencies(16)))],
    "rotate": [
        lambda on, layout=layout: rope.rotate(*map(on, TURNED), interleaved=layout)
        for layout in (False, True)
    ],
    "lag_kernel": [lambda on: rope.lag_kernel(on(rope.inverse_frequencies(16)), on(torch.arange(40)))],
    "t5_bucket": [lambda on: rope.t5_bucket(on(torch.arange(-300, 300)))],
    "t5_bias": [lambda on: rope.t5_bias(on(TABLE), 300), lambda on: rope.t5_bias(on(TABLE), 9)],
    "row_psd": [lambda on, options=options: rows.row_psd(on(SIGNAL), 150, **options) for options in SPECTRA],
    "row_spectral_metrics": [
        lambda on, base=base: rows.row_spectral_metrics(on(SIGNAL), RUNS, base=base) for base in (None, 2)
    ],
    "row_wavelet_entropies": [
        lambda on, mode=mode: rows.row_wavelet_entropies(on(SIGNAL), 150, wavelet="db2", mode=mode, level=2)
        for mode in OPTIONS["mode"]
    ],
    "band_shares": [lambda on: spectra.band_shares(on(SIGNAL))],
    "psd": [
        lambda on: spectra.psd(on(SIGNAL), check=False),
        lambda on: spectra.psd(on(SIGNAL), window="boxcar", pad=2, detrend="mean", sided="two", check=False),
    ],
    "wavedec": [
        lambda on, mode=mode: wavelets.wavedec(on(SIGNAL), mode=mode, check=False) for mode in OPTIONS["mode"]
    ],
    "waverec": [
        lambda on, mode=mode: wavelets.waverec(levels(on), mode=mode) for mode in ("symmetric", "zero")
    ]
    + [lambda on: wavelets.waverec(levels(on)[-1:] * 2, mode="periodization")],
    "weighted_sum": [lambda on: wavelets.weighted_sum(on(SIGNAL).unbind(), [0.3, -2.0])],
    "wavelet_entropy": [
        lambda on, flag=flag: wavelets.wavelet_entropy(levels(on), normalize=flag) for flag in (False, True)
    ],
    "level_energies": [lambda on: wavelets.level_energies(levels(on))],
    "align": [
        lambda on, how=how: wavelets.align(levels(on), levels(on, SHORT), alignment=how, check=False)
        for how in OPTIONS["alignment"]
    ],
    "scale_sensitivity": [lambda on: wavelets.scale_sensitivity(levels(on), levels(on, SHORT))],
}
# These need numbers on the host: to raise an error, to choose entries, or for an axis made there.
READING = {
    "constant_q_slope": [
        lambda on: frames.constant_q_slope(on(SIGNAL[..., :66]), FREQUENCY),
        lambda on: frames.constant_q_slope(on(SIGNAL[..., :66]), on(FREQUENCY)),
    ],
    "mean_off_diagonal": [lambda on: frames.mean_off_diagonal(on(frames.head_similarity(SIGNAL)))],
    "softmax_of_support": [lambda on: frames.softmax_of_support(on(SIGNAL), 9.0)],
    "band_shares": [
        lambda on: spectra.band_shares(on(SIGNAL), frequency=TWO_SIDED),
        lambda on: spectra.band_shares(on(SIGNAL), frequency=on(TWO_SIDED)),
    ],
    "window": [lambda on: spectra.window("hann", 9, device=on(SIGNAL).device)],
    "positional_entropy": [lambda on: entropy.positional_entropy(on(ATTN))],
    "psd": [lambda on: spectra.psd(on(SIGNAL))],
    "wavedec": [lambda on: wavelets.wavedec(on(SIGNAL))],
}
# The answer of the first is rounding, of the others an error or nothing: see the last tests.
APART = {"reconstruction_error", "require_finite", "require_distribution"}
INNER = ("row_", "drop_sink", "negative", "weighted")  # are handed what was upcast before
# Made on the CPU, whatever is given: axes, names, draws, and what holds no tensor.
ON_THE_CPU = {
    "ConstantQ", "FrameBounds", "alibi_bias", "alibi_slopes", "band_runs", "dwt_max_level", "frequencies",
    "inverse_frequencies", "level_names", "log_base", "random_frame_bounds",
    "sinusoidal_embedding",
}  # fmt: skip

# Every other public function takes attention and needs nothing else.
LISTED = {*CALLS, *READING, *APART, *ON_THE_CPU}
others = [getattr(module, name) for module in MODULES for name in module.__all__ if name not in LISTED]
for function in others:
    options = {"check": False} if "check" in inspect.signature(function).parameters else {}
    CALLS[function.__name__] = [functools.partial(lambda on, f, o: f(on(ATTN), **o), f=function, o=options)]


def each(table):
    pairs = [(f"{name}-{k}", call) for name, calls in table.items() for k, call in enumerate(calls)]
    return [pytest.param(call, id=name) for name, call in pairs]


def flat(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)


def test_every_public_name_is_here():
    public = {name for module in MODULES for name in module.__all__}
    assert LISTED < public == {*CALLS, *READING, *APART, *ON_THE_CPU}
    assert not ({*CALLS, *READING} & (APART | ON_THE_CPU))


@pytest.mark.parametrize("call", each(CALLS))
def test_without_a_gpu_shapes_and_devices_hold_and_nothing_is_read(call):
    expected = flat(call(lambda x: x))
    with traffic() as seen:
        got = flat(call(lambda x: torch.empty_like(x, device="meta")))
    assert [entry for entry in seen if entry != "read from cpu"] == []
    assert [tensor.shape for tensor in got] == [tensor.shape for tensor in expected]
    assert {tensor.device.type for tensor in got} == {"meta"}


@pytest.mark.parametrize("call", [one for one in each(CALLS) + each(READING) if not one.id.startswith(INNER)])
def test_half_precision_is_upcast_and_the_input_is_left_alone(call):
    given = []

    def half(x, dtype=torch.float16):
        x = x.half().to(dtype) if x.is_floating_point() else x
        given.append((x, x.clone()))
        return x

    got, wanted = flat(call(half)), flat(call(functools.partial(half, dtype=torch.float32)))
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == theirs.dtype != torch.float16
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    assert all(torch.equal(x, before) for x, before in given)


def test_arrays_are_taken():
    assert torch.equal(spectra.psd(SIGNAL.numpy()), spectra.psd(SIGNAL))
    assert torch.equal(wavelets.wavedec(SIGNAL.numpy())[0], wavelets.wavedec(SIGNAL)[0])


@needs_gpus()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", each(CALLS) + each(READING))
def test_a_gpu_gives_what_the_cpu_gives(call, dtype):
    def on_cpu(x):
        return x.to(dtype) if x.dtype == torch.float64 else x

    got, expected = flat(call(lambda x: on_cpu(x).cuda())), flat(call(on_cpu))
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.is_cuda
        assert ours.dtype == theirs.dtype
        assert_close(ours, theirs, dtype=dtype)


@needs_gpus()
@pytest.mark.parametrize("dtype", DTYPES)
def test_reconstruction_on_a_gpu_misses_rounding_alone(dtype):
    error = wavelets.reconstruction_error(SIGNAL.to("cuda", dtype))
    assert error.is_cuda
    assert error.max() < 10 * torch.finfo(dtype).eps


@needs_gpus()
def test_what_is_wrong_on_a_gpu_is_said():
    with pytest.raises(ValueError, match="do not, the worst at index"):
        entropy.require_distribution(0.5 * ATTN.cuda())
    broken = SIGNAL.cuda()
    broken[1, 2, 3] = math.nan
    with pytest.raises(ValueError, match=r"1 of 1300 entries .* at index \(1, 2, 3\)"):
        checks.require_finite(broken, "signal")


def test_input_is_looked_at_unless_that_is_switched_off():
    functions = [getattr(module, name) for module in MODULES for name in module.__all__]
    checks = [inspect.signature(f).parameters.get("check") for f in functions if callable(f)]
    defaults = [check.default for check in checks if check]
    assert len(defaults) > 8
    assert all(default is True for default in defaults)

"""Every public kernel on a GPU gives what it gives on the CPU, and stays on the device of its input.

Without a GPU the same calls run on `meta`: shapes and devices hold, and the host reads nothing from there.
That every public name has its call is tested too.
"""

import functools
import inspect
import math

import pytest
import torch
import torch.utils._pytree as pytree
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
RATES = rope.inverse_frequencies(16)
TURNED = uniform(2, 40, 16), torch.arange(40), RATES
MODES = OPTIONS["mode"]
PLAIN = {"window": "hann", "pad": 1, "detrend": "none", "sided": "one", "dc": "keep"}
OTHER = {"window": "boxcar", "pad": 2, "detrend": "mean", "sided": "two", "dc": "drop"}
SPECTRA = (PLAIN, OTHER, PLAIN | {"detrend": "mean"})


def of(*args, **options):
    """Return the arguments of a call; their tensors are put on the device, numpy's arrays are not."""
    return args, options


# name: calls that give a tensor or tensors
CALLS = {
    "positional_entropy": [of(ATTN, check=False)],
    "window_entropy": [of(ATTN, 16, check=False)],
    "entropic_slack": [of(SIGNAL, check=False)],
    "frame_bounds": [of(SIGNAL, check=False), of(SIGNAL, normalize=True, check=False)],
    "head_similarity": [of(SIGNAL, check=False), of(SIGNAL, center=True, check=False)],
    "spikes": [of(SIGNAL, check=False)],
    "as_real": [of(torch.arange(9))],
    "as_signal": [of(torch.arange(9), check=False)],
    "wavelengths": [of(RATES)],
    "rotate": [of(*TURNED, interleaved=layout) for layout in (False, True)],
    "lag_kernel": [of(RATES, torch.arange(40))],
    "t5_bucket": [of(torch.arange(-300, 300))],
    "t5_bias": [of(TABLE, 300), of(TABLE, 9)],
    "row_psd": [of(SIGNAL, 150, **options) for options in SPECTRA],
    "row_spectral_metrics": [of(SIGNAL, RUNS, base=base) for base in (None, 2)],
    "row_wavelet_entropies": [of(SIGNAL, 150, wavelet="db2", mode=mode, level=2) for mode in MODES],
    "band_shares": [of(SIGNAL)],
    "psd": [of(SIGNAL, check=False), of(SIGNAL, **OTHER | {"dc": "keep"}, check=False)],
    "wavedec": [of(SIGNAL, mode=mode, check=False) for mode in MODES],
    "waverec": [of(LEVELS), of(LEVELS, mode="zero"), of(LEVELS[-1:] * 2, mode="periodization")],
    "weighted_sum": [of(SIGNAL.unbind(), [0.3, -2.0])],
    "wavelet_entropy": [of(LEVELS, normalize=flag) for flag in (False, True)],
    "level_energies": [of(LEVELS)],
    "align": [of(LEVELS, SHORT, alignment=how) for how in OPTIONS["alignment"]],
    "scale_sensitivity": [of(LEVELS, SHORT)],
}
# These need numbers on the host: to raise an error, to choose entries, or for an axis made there.
READING = {
    "constant_q_slope": [of(SIGNAL[..., :66], at) for at in (FREQUENCY, FREQUENCY.numpy())],
    "mean_off_diagonal": [of(uniform(2, HEADS, HEADS))],
    "softmax_of_support": [of(SIGNAL, 9.0)],
    "band_shares": [of(SIGNAL, frequency=at) for at in (TWO_SIDED, TWO_SIDED.numpy())],
    "positional_entropy": [of(ATTN)],
    "psd": [of(SIGNAL)],
    "wavedec": [of(SIGNAL)],
}
# The answer of the first is rounding, of the others an error, nothing, or on a device: see the last tests.
APART = {"reconstruction_error", "require_finite", "require_distribution", "window"}
INNER = ("row_", "drop_sink", "negative", "weighted")  # are handed what was upcast before
# Made on the CPU, whatever is given: axes, names, draws, and what holds no tensor.
ON_THE_CPU = {
    "ConstantQ", "FrameBounds", "alibi_bias", "alibi_slopes", "band_runs", "dwt_max_level", "frequencies",
    "inverse_frequencies", "level_names", "log_base", "random_frame_bounds",
    "sinusoidal_embedding",
}  # fmt: skip

# Every other public function takes attention and needs nothing else.
FUNCTIONS = {name: getattr(module, name) for module in MODULES for name in module.__all__}
LISTED = {*CALLS, *READING, *APART, *ON_THE_CPU}
for name in FUNCTIONS.keys() - LISTED:
    unchecked = "check" in inspect.signature(FUNCTIONS[name]).parameters
    CALLS[name] = [of(ATTN, check=False) if unchecked else of(ATTN)]


def each(table):
    """Return calls with a function that puts a tensor on a device."""

    def call(on, name, args, options):
        args, options = pytree.tree_map_only(torch.Tensor, on, (args, options))
        return FUNCTIONS[name](*args, **options)

    every = [(name, k, *one) for name, calls in sorted(table.items()) for k, one in enumerate(calls)]
    made = [(f"{n}-{k}", functools.partial(call, name=n, args=a, options=o)) for n, k, a, o in every]
    return [pytest.param(one, id=name) for name, one in made]


def flat(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)


def test_every_public_name_is_here():
    assert LISTED < FUNCTIONS.keys() == {*CALLS, *READING, *APART, *ON_THE_CPU}
    assert not ({*CALLS, *READING} & (APART | ON_THE_CPU))


@pytest.mark.parametrize("call", each(CALLS))
def test_without_a_gpu_shapes_and_devices_hold_and_nothing_is_read(call):
    expected = flat(call(torch.clone))
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
def test_what_is_wrong_on_a_gpu_is_said_and_windows_are_made_there():
    assert_close(spectra.window("hann", 9, device="cuda"), spectra.window("hann", 9))
    with pytest.raises(ValueError, match="do not, the worst at index"):
        entropy.require_distribution(0.5 * ATTN.cuda())
    broken = SIGNAL.cuda()
    broken[1, 2, 3] = math.nan
    with pytest.raises(ValueError, match=r"1 of 1300 entries .* at index \(1, 2, 3\)"):
        checks.require_finite(broken, "signal")


def test_input_is_looked_at_unless_that_is_switched_off():
    checks = [inspect.signature(f).parameters.get("check") for f in FUNCTIONS.values() if callable(f)]
    defaults = [check.default for check in checks if check]
    assert len(defaults) > 8
    assert all(default is True for default in defaults)

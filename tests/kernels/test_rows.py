import itertools

import numpy as np
import pytest
import pywt
import torch
from tolerances import assert_close, assert_metric

from nbhelpers.arguments import OPTIONS
from nbhelpers.kernels import rows, spectra, wavelets

SPECTRA = [
    dict(zip(("window", "pad", "detrend", "sided", "dc"), options, strict=True))
    for options in itertools.product(*map(OPTIONS.get, ("window", "pad", "detrend", "sided", "dc")))
]
LENGTHS = [(1, 1), (1, 2), (2, 2), (3, 8), (8, 8), (5, 17), (17, 17), (40, 64), (64, 64), (31, 101), (89, 97)]


def attention_rows(n_given, *, leading=(2, 3), seed=0, flattest=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(*leading, n_given, generator=generator, dtype=torch.float64)
    sharpness = torch.linspace(flattest, 8, leading[-1], dtype=torch.float64)[:, None]
    return torch.softmax(scores * sharpness, -1).to(dtype)


def whole(given, length):
    tail = [(0, 0)] * (given.ndim - 1) + [(0, length - given.shape[-1])]
    return np.pad(given.double().numpy(), tail)


def oracle_psd(signal, *, window, pad, detrend, sided, dc):
    n = signal.shape[-1]
    n_bins = {"next_pow2": 2 ** int(np.ceil(np.log2(n)))}.get(pad) or pad * n
    if detrend == "mean":
        signal = signal - signal.mean(-1, keepdims=True)
    signal = signal * (np.hanning(n) if window == "hann" else np.ones(n))
    power = abs((np.fft.rfft if sided == "one" else np.fft.fft)(signal, n_bins)) ** 2
    return power * (np.arange(power.shape[-1]) > 0) if dc == "drop" else power


def oracle_wavelet_entropies(signal, *, wavelet, mode, level):
    coefficients = [signal] if level == 0 else pywt.wavedec(signal, wavelet, mode=mode, level=level, axis=-1)
    energies = [c**2 for c in coefficients]
    return np.stack([-(e * np.log(np.where(e > 0, e, 1.0))).sum(-1) for e in energies], -1)


@pytest.mark.parametrize("options", SPECTRA, ids=lambda o: "-".join(map(str, o.values())))
def test_row_psd_is_that_of_the_whole_signal(options):
    for n_given, length in LENGTHS:
        given = attention_rows(n_given)
        before = given.clone()
        expected = oracle_psd(whole(given, length), **options)
        assert_close(rows.row_psd(given, length, **options), expected, dtype=torch.float32)
        assert_close(rows.row_psd(given.double(), length, **options), expected, dtype=torch.float64)
        assert torch.equal(given, before)
    assert not rows.row_psd(torch.zeros(2, 3), 8, relative=True, **options).any(), "no power, and no NaN"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 34, 509, 512, 517, 1023, 2047])
def test_a_transform_is_the_same_by_either_library(length, dtype):
    given = attention_rows(length, leading=(3,), dtype=dtype)
    found, expected = rows.real_fft(given), np.fft.rfft(given.double().numpy())
    assert found.dtype == torch.view_as_complex(torch.zeros(2, dtype=dtype)).dtype
    assert_close(torch.view_as_real(found), np.stack([expected.real, expected.imag], -1), dtype=dtype)
    flowing = given.clone().requires_grad_()
    rows.real_fft(flowing).abs().sum().backward()
    assert flowing.grad.isfinite().all()


@pytest.mark.parametrize("spread", [1, 10, 20])
def test_what_a_window_leaves_beside_a_sink_keeps_its_digits(spread):
    # Scores of up to this standard deviation, and key 0 above them all: the rest is about 1e-23 at 20.
    scores = spread * torch.randn(200, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    scores[:, 0] = scores.amax(-1) + 2 * spread
    attn, runs = torch.softmax(scores, -1), rows.band_runs(spectra.frequencies(64), (0.25, 0.75))
    options = {"window": "hann", "pad": 1, "detrend": "none", "sided": "one", "dc": "keep"}
    exact = torch.from_numpy(oracle_psd(attn.numpy(), **options))
    expected, _ = rows.row_spectral_metrics(exact, runs)
    power = rows.row_psd(attn.float(), 64, relative=True, **options)
    metrics, valid = rows.row_spectral_metrics(power, runs)
    assert valid.all()
    assert_metric(metrics, expected)
    largest = (attn * spectra.window("hann", 64)).amax(-1, keepdim=True)
    assert_close(power, exact / largest**2, dtype=torch.float32)


@pytest.mark.parametrize("edges", [(0.25, 0.75), (0.5,), (0.1, 0.2, 0.7)])
@pytest.mark.parametrize("options", SPECTRA, ids=lambda o: "-".join(map(str, o.values())))
def test_spectral_metrics(options, edges):
    for n_given, length in [(n, length) for n, length in LENGTHS if length >= 8]:
        # Uneven rows: the spectrum of a flat one may be a single line, and then all else in it is rounding.
        power = torch.from_numpy(oracle_psd(whole(attention_rows(n_given, flattest=1), length), **options))
        frequency = spectra.frequencies(length, pad=options["pad"], sided=options["sided"])
        got, valid = rows.row_spectral_metrics(power.float(), rows.band_runs(frequency, edges), base=2)
        has_power = power.sum(-1) > 0
        assert torch.equal(valid, has_power)
        power = power[has_power]
        share = power / power.sum(-1, keepdim=True)  # (row, freq)
        band = torch.from_numpy(np.digitize(abs(frequency.numpy()), 0.5 * np.asarray(edges)))
        expected = [
            -torch.xlogy(share, share).sum(-1) / np.log(2),
            share.amax(-1) / share.sort(-1).values[..., :-1].sum(-1),
            *[share[..., band == b].sum(-1) for b in range(len(edges) + 1)],
        ]
        assert_metric(got[has_power], torch.stack(expected, -1))
        assert not got[~has_power].any()


def test_the_selectivity_of_a_sharp_spectrum_keeps_its_digits():
    # A peak of 1 and 100 bins of 1e-7 each: the sum minus the peak has one digit in float32.
    power = torch.full((1, 101), 1e-7)
    power[0, 3] = 1.0
    metrics, _ = rows.row_spectral_metrics(power, [[slice(0, 101)]])
    assert metrics[0, 1].item() == pytest.approx(1e5, rel=5e-5)


@pytest.mark.parametrize("sided", ["one", "two"])
@pytest.mark.parametrize("length", [7, 8, 64, 101])
def test_every_bin_is_in_one_band(length, sided):
    frequency = spectra.frequencies(length, sided=sided)
    runs = rows.band_runs(frequency, (0.25, 0.75))
    bins = np.arange(len(frequency))
    assert sorted(k for band in runs for run in band for k in bins[run]) == bins.tolist()
    assert len(runs[1]) == (1 if sided == "one" else 2), "positive and negative frequencies lie apart"
    assert rows.band_runs(spectra.frequencies(1), (0.25, 0.75)) == [[slice(0, 1)], [], []]


@pytest.mark.parametrize("mode", OPTIONS["mode"])
@pytest.mark.parametrize("wavelet", ["haar", "db2", "sym4"])
def test_wavelet_entropies_with_zero_tails(wavelet, mode):
    for length in (8, 17, 64, 101, 200, 700):
        top = wavelets.dwt_max_level(length, wavelet)
        for n_given in sorted({1, 2, length // 3 + 1, length - 1, length}):
            for level in range(top + 1):
                given = attention_rows(n_given)
                options = {"wavelet": wavelet, "mode": mode, "level": level}
                got = rows.row_wavelet_entropies(given, length, **options)
                assert_metric(got, oracle_wavelet_entropies(whole(given, length), **options))


def test_rows_of_zeros_and_rows_that_are_a_view_of_a_larger_block():
    view = attention_rows(64, leading=(2, 4, 6))[:, :, 1:5, 1:]
    options = {"wavelet": "db2", "mode": "symmetric", "level": 2}
    assert not view.is_contiguous()
    got = rows.row_wavelet_entropies(view, 63, **options)
    assert_metric(got, oracle_wavelet_entropies(view.double().numpy(), **options))
    assert not rows.row_wavelet_entropies(torch.zeros(2, 5), 64, **options).any()


def test_drop_sink():
    attn = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.0, 0.2, 0.8]])
    assert_close(rows.drop_sink(attn), torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.2, 0.8]]))
    assert rows.drop_sink(attn[:, :1]).shape == (3, 0)

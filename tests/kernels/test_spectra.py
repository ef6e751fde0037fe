import math

import numpy as np
import pytest
import scipy.fft
import scipy.stats
import torch
from draws import DTYPES, uniform
from refusals import refusals
from tolerances import assert_close

from nbhelpers.arguments import OPTIONS
from nbhelpers.kernels import spectra


def slow_psd(signal, weights, n):
    waves = np.exp(-2j * math.pi * np.outer(np.arange(n), np.arange(len(signal))) / n)
    return abs(waves @ (signal * weights)) ** 2


@pytest.mark.parametrize("length", [1, 2, 3, 8, 9, 64])
def test_hann_is_numpys(length):
    assert_close(spectra.window("hann", length), np.hanning(length))


@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_frequencies_are_scipys(length):
    assert_close(spectra.frequencies(length), scipy.fft.rfftfreq(length))
    assert_close(spectra.frequencies(length, sided="two"), scipy.fft.fftfreq(length))
    assert_close(spectra.frequencies(length, pad=2), scipy.fft.rfftfreq(2 * length))
    padded = 2 ** math.ceil(math.log2(length))
    assert_close(spectra.frequencies(length, pad="next_pow2"), scipy.fft.rfftfreq(padded))


class TestPsd:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("length", [1, 2, 7, 8, 33])
    @pytest.mark.parametrize("window", OPTIONS["window"])
    @pytest.mark.parametrize("pad", OPTIONS["pad"])
    def test_is_the_squared_dft(self, dtype, length, window, pad):
        signal = uniform(length, dtype=dtype)
        n = {"next_pow2": 2 ** math.ceil(math.log2(length))}.get(pad) or pad * length
        weights = np.hanning(length) if window == "hann" else np.ones(length)
        expected = slow_psd(signal.double().numpy(), weights, n)
        two = spectra.psd(signal, window=window, pad=pad, sided="two")
        one = spectra.psd(signal, window=window, pad=pad)
        assert two.dtype == one.dtype == dtype
        assert_close(two, expected)
        assert_close(one, expected[: n // 2 + 1])
        dropped = spectra.psd(signal, window=window, pad=pad, dc="drop")
        assert torch.equal(dropped[1:], one[1:])
        assert dropped[0] == 0
        assert len(one) == len(spectra.frequencies(length, pad=pad))

    def test_mean_is_removed_before_the_window(self):
        signal = uniform(32)
        assert_close(spectra.psd(signal, detrend="mean"), spectra.psd(signal - signal.mean()))
        assert spectra.psd(signal, window="boxcar", detrend="mean")[0] < 1e-25


class TestBandShares:
    def test_edges_belong_to_the_upper_band_and_dc_to_the_low(self):
        # 9 bins from 0 to Nyquist: bin 2 lies at 0.25 of Nyquist, bin 6 at 0.75.
        bands = torch.tensor([0, 0, 1, 1, 1, 1, 2, 2, 2])
        assert torch.equal(spectra.band_shares(3 * torch.eye(9)), torch.eye(3)[bands])

    @pytest.mark.parametrize("n", [40, 100, 120, 360])
    def test_bins_at_an_edge_are_found_at_any_length(self, n):
        power, k = torch.ones(n // 2 + 1, dtype=torch.float64), 20 * np.arange(n // 2 + 1)
        bands = (k < 2 * n, (k >= 2 * n) & (k < 6 * n), k >= 6 * n)
        assert_close(spectra.band_shares(power, edges=(0.2, 0.6)), np.mean(bands, axis=1))

    @pytest.mark.parametrize("length", [31, 32])
    def test_two_sided_equals_doubled_one_sided(self, length):
        signal = uniform(4, length)
        two = spectra.psd(signal, sided="two")
        shares = spectra.band_shares(two, frequency=spectra.frequencies(length, sided="two"))
        one = spectra.psd(signal)
        one[..., 1 : (length + 1) // 2] *= 2
        assert_close(shares, spectra.band_shares(one, frequency=spectra.frequencies(length)))

    def test_any_number_of_edges(self):
        power = uniform(5, 33)
        shares = spectra.band_shares(power, edges=(0.1, 0.2, 0.5, 0.9))
        assert shares.shape == (5, 5)
        assert_close(shares.sum(-1), torch.ones(5, dtype=torch.float64))
        assert spectra.band_shares(power, edges=()).tolist() == [[1.0]] * 5
        assert spectra.band_shares(torch.zeros(2, 9)).isnan().all(), "no power"


class TestFrequencySelectivity:
    def test_closed_forms_and_that_sharp_spectra_keep_their_digits(self):
        assert_close(spectra.frequency_selectivity(torch.ones(11, dtype=torch.float64)), np.array(0.1))
        power = torch.tensor([[1.0, 5.0, 3.0, 1.0], [2.0, 2.0, 0.0, 0.0], [0.0, 4.0, 0.0, 0.0], [0.0] * 4])
        assert_close(spectra.frequency_selectivity(power), [1.0, 1.0, math.inf, math.nan])
        power = torch.full((101,), 1e-9)
        power[7] = 1.0
        assert float(spectra.frequency_selectivity(power)) == pytest.approx(1e7, rel=1e-5)


class TestSpectralEntropy:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("base", [None, 2, 10])
    def test_is_scipys(self, dtype, base):
        power = uniform(3, 33, dtype=dtype)
        power[0, 5] = 0
        expected = scipy.stats.entropy(power.double().numpy(), axis=-1, base=base)
        assert_close(spectra.spectral_entropy(power, base=base), expected, dtype=dtype)

    def test_bounds_are_met_scale_does_not_matter_and_no_power_is_nan(self):
        assert_close(spectra.spectral_entropy(torch.ones(17, dtype=torch.float64)), np.array(math.log(17)))
        assert spectra.spectral_entropy(torch.tensor([0.0, 2.0, 0.0])) == 0.0
        power = uniform(2, 33)
        assert_close(spectra.spectral_entropy(1e-30 * power), spectra.spectral_entropy(power))
        assert spectra.spectral_entropy(torch.zeros(4)).isnan()

    def test_gradient_reaches_the_signal_past_empty_bins(self):
        signal = torch.ones(8, dtype=torch.float64)
        signal[::2] = -1  # all power at Nyquist, every other bin exactly empty
        signal.requires_grad_()
        spectra.spectral_entropy(spectra.psd(signal, window="boxcar")).backward()
        assert signal.grad.isfinite().all()


def test_spikes_are_the_entries_of_largest_windowed_energy():
    signal = torch.tensor([[9.0, 0, 3, 0, 4, 0, 0, 0, 9], [0, 0, 1, 1, 1, 1, 1, 0, 0]])
    index, share = spectra.spikes(signal, 1)  # Hann hides both ends; it is 1/2 at entry 2 and 1 at entry 4
    assert index.tolist() == [[4], [4]]
    weights = np.hanning(9)[2:7] ** 2
    assert_close(share, np.array([16 / (16 + 9 * weights[0]), 1 / weights.sum()]), dtype=torch.float32)
    assert spectra.spikes(signal, 9, window="boxcar")[1].tolist() == pytest.approx([1, 1])
    assert spectra.spikes(signal, 2, window="boxcar")[0][0].sort().values.tolist() == [0, 8]


@pytest.mark.parametrize(
    "function", [spectra.psd, spectra.band_shares, spectra.frequency_selectivity, spectra.spectral_entropy]
)
def test_gradients(function):
    assert torch.autograd.gradcheck(function, uniform(2, 9).requires_grad_())


test_bad_input_is_refused = refusals(
    (lambda: spectra.psd(torch.ones(8), pad=3), "pad of psd must be one of 1, 2, 4, 'next_pow2'; got 3"),
    (lambda: spectra.psd(torch.ones(3, 0)), r"\(3, 0\)"),
    (lambda: spectra.psd(torch.tensor([1.0, math.nan])), "1 of 2 entries"),
    (lambda: spectra.spikes(torch.ones(8), 9), "8 entries has no 9 largest"),
    (lambda: spectra.band_shares(torch.ones(9), frequency=torch.arange(8)), r"\(8,\)"),
    (lambda: spectra.band_shares(torch.ones(9), edges=(0.75, 0.25)), "edges of band_shares"),
)

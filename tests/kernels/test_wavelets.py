import math

import numpy as np
import pytest
import pywt
import torch
from device_traffic import gpu_marks
from draws import DTYPES, uniform
from refusals import refusals
from tolerances import assert_close

from nbhelpers.arguments import OPTIONS
from nbhelpers.kernels import wavelets

DAUBECHIES = [f"db{order}" for order in range(1, 9)]
ON_DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu_marks())])


class TestDwt:
    @ON_DEVICES
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("mode", OPTIONS["mode"])
    @pytest.mark.parametrize("wavelet", DAUBECHIES)
    def test_both_paths_are_pywts_at_every_level(self, wavelet, mode, dtype, device):
        for length in (16, 31, 32, 33, 61, 130):
            signal = uniform(2, length, dtype=dtype)
            tracked = signal.to(device, copy=True).requires_grad_()
            for level in range(pywt.dwt_max_level(length, wavelet) + 1):
                expected = pywt.wavedec(signal.double().numpy(), wavelet, mode=mode, level=level)
                for given in (signal.to(device), tracked):  # through pywt on the CPU, and through torch
                    found = wavelets.wavedec(given, wavelet=wavelet, mode=mode, level=level)
                    assert len(found) == level + 1
                    for ours, theirs in zip(found, expected, strict=True):
                        assert (ours.dtype, ours.device) == (dtype, given.device)
                        assert_close(ours, theirs)

    def test_level_zero_and_short_signals_come_back(self):
        for signal in (uniform(2, 3), torch.tensor([0.5])):
            assert wavelets.dwt_max_level(signal.shape[-1]) == 0
            (only,) = wavelets.wavedec(signal)
            assert torch.equal(only, signal)
        (only,) = wavelets.wavedec(uniform(64), level=0)
        assert torch.equal(only, uniform(64))
        shapes = [tuple(c.shape) for c in wavelets.wavedec(torch.zeros(0, 16), level=2)]
        assert shapes == [(0, 6), (0, 6), (0, 9)], "an empty batch"

    def test_batched_equals_pywts_loop(self):
        signal = uniform(2, 3, 45)
        batched = wavelets.wavedec(signal.transpose(0, 1).contiguous().transpose(0, 1))
        for i, j in np.ndindex(2, 3):
            # db2, symmetric, at the largest level unless told otherwise
            for whole, theirs in zip(batched, pywt.wavedec(signal[i, j].numpy(), "db2"), strict=True):
                assert_close(whole[i, j], theirs)

    @ON_DEVICES
    @pytest.mark.parametrize("mode", OPTIONS["mode"])
    def test_gradients_there_and_back(self, mode, device):
        signal = uniform(2, 13).to(device).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: wavelets.wavedec(x, mode=mode, level=2), signal)
        coefficients = [c.detach().requires_grad_() for c in wavelets.wavedec(signal, level=2, mode=mode)]
        assert torch.autograd.gradcheck(lambda *c: wavelets.waverec(c, mode=mode), coefficients)


class TestInverse:
    @ON_DEVICES
    @pytest.mark.parametrize("mode", OPTIONS["mode"])
    @pytest.mark.parametrize("wavelet", DAUBECHIES)
    def test_perfect_reconstruction_on_both_paths(self, wavelet, mode, device):
        for length in (1, 2, 15, 16, 31, 61, 130):
            signal = uniform(2, length)
            for level in range(wavelets.dwt_max_level(length, wavelet) + 1):
                options = {"wavelet": wavelet, "mode": mode}
                coefficients = wavelets.wavedec(signal, level=level, **options)
                tracked = [c.to(device, copy=True).requires_grad_() for c in coefficients]
                expected = pywt.waverec([c.numpy() for c in coefficients], **options)
                for given in ([c.to(device) for c in coefficients], tracked):
                    assert_close(wavelets.waverec(given, **options), expected)
                    # The filters of PyWavelets are printed to about 1e-12, so that is what comes back.
                    back = wavelets.waverec(given, length=length, **options)
                    assert back.device == given[0].device
                    assert (back.cpu() - signal).abs().max() < 1e-10

    @pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-11)])
    def test_reconstruction_error_is_rounding_relative_to_each_signal(self, dtype, bound):
        signal = uniform(2, 40, dtype=dtype) * torch.tensor([[1.0], [2.0**40]], dtype=dtype)
        back = wavelets.waverec(wavelets.wavedec(signal))
        expected = np.linalg.norm(signal - back, axis=-1) / np.linalg.norm(signal, axis=-1)
        assert wavelets.reconstruction_error(signal).numpy() == pytest.approx(expected, rel=1e-5, abs=0)
        for x in (signal, signal.clone().requires_grad_()):
            assert 0 < wavelets.reconstruction_error(x).max() < bound
        assert wavelets.reconstruction_error(torch.zeros(16)).isnan()


class TestWaveletEntropy:
    @pytest.mark.parametrize("normalize", [False, True])
    @pytest.mark.parametrize("base", [None, 2])
    def test_is_the_slow_sum(self, normalize, base):
        coefficients = wavelets.wavedec(uniform(2, 3, 40))
        measured = wavelets.wavelet_entropy(coefficients, normalize=normalize, base=base)
        assert measured.shape == (2, 3, len(coefficients))
        for level, values in enumerate(coefficients):
            energy = values[1, 2].numpy() ** 2
            energy = energy / energy.sum() if normalize else energy
            expected = -sum(e * math.log(e) for e in energy) / math.log(base or math.e)
            assert float(measured[1, 2, level]) == pytest.approx(expected, rel=1e-12)

    def test_closed_forms(self):
        entropy = wavelets.wavelet_entropy([torch.tensor([math.sqrt(math.e)]), torch.zeros(4)])
        assert entropy.tolist() == pytest.approx([-math.e, 0.0], rel=1e-6)
        one_hot, flat = torch.tensor([0.0, -2.0, 0.0]), torch.full((8,), 0.3)
        normalized = wavelets.wavelet_entropy([one_hot, flat, torch.zeros(4)], normalize=True)
        assert_close(normalized, np.array([0.0, math.log(8), math.nan]), dtype=torch.float32)

    @pytest.mark.parametrize("normalize", [False, True])
    def test_gradient_reaches_the_signal(self, normalize):
        signal = torch.zeros(16, dtype=torch.float64)
        signal[5] = 1.0  # most coefficients are exactly zero
        signal.requires_grad_()
        entropy = wavelets.wavelet_entropy(wavelets.wavedec(signal, level=1), normalize=normalize)
        entropy.sum().backward()
        assert signal.grad.isfinite().all()
        assert signal.grad.abs().max() > 0


def test_level_energies():
    coefficients = [torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0, 0.0, 0.0])]
    assert_close(wavelets.level_energies(coefficients), np.array([25, 5]) / 30)
    assert wavelets.level_energies([torch.zeros(3)]).isnan().all()


class TestAlign:
    full = (torch.arange(4.0), torch.arange(10.0, 15.0), torch.arange(20.0, 30.0))
    scaled = (torch.arange(4.0) + 100, torch.arange(103.0, 106.0), torch.arange(106.0, 111.0))

    def test_truncated_in_a_row_and_per_level(self):
        u, v = wavelets.align(self.full, self.scaled)
        assert u.tolist() == [0, 1, 2, 3, 10, 11, 12, 13, 14, 20, 21, 22]
        assert v.tolist() == [100, 101, 102, 103, 103, 104, 105, 106, 107, 108, 109, 110]
        u, v = wavelets.align(self.full, self.scaled, alignment="per-level")
        assert u.tolist() == [0, 1, 2, 3, 10, 11, 12, 20, 21, 22, 23, 24]
        assert v.tolist() == torch.cat(self.scaled).tolist()

    def test_interpolate_is_numpys(self):
        full = wavelets.wavedec(uniform(2, 3, 100), level=3)
        scaled = wavelets.wavedec(uniform(2, 3, 37), level=3)
        u, v = wavelets.align(full, scaled, alignment="interpolate")
        assert_close(v, torch.cat(scaled, -1))
        expected = []
        for a, b in zip(full, scaled, strict=True):
            at, given = np.linspace(0, 1, b.shape[-1]), np.linspace(0, 1, a.shape[-1])
            expected.append(np.interp(at, given, a[1, 2].numpy()))
        assert_close(u[1, 2], np.concatenate(expected))
        long, short = [uniform(3, 5)], [uniform(3, 3)]
        u, _ = wavelets.align(long, short, alignment="interpolate")
        assert_close(u, long[0][:, [0, 2, 4]])


class TestScaleSensitivity:
    @pytest.mark.parametrize("alignment", OPTIONS["alignment"])
    def test_is_one_minus_cosine(self, alignment):
        full, scaled = (wavelets.wavedec(uniform(4, n), level=3) for n in (90, 45))
        u, v = wavelets.align(full, scaled, alignment=alignment)
        cosine = (u * v).sum(-1) / (u.norm(dim=-1) * v.norm(dim=-1))
        assert_close(wavelets.scale_sensitivity(full, scaled, alignment=alignment), 1 - cosine)

    def test_bounds_exact_zero_and_small_values(self):
        coefficients = wavelets.wavedec(uniform(8, 60, dtype=torch.float32))
        negated = [-c for c in coefficients]
        assert (wavelets.scale_sensitivity(coefficients, coefficients) == 0).all()
        assert_close(wavelets.scale_sensitivity(coefficients, negated), torch.full((8,), 2.0))
        zero = [torch.zeros_like(c) for c in coefficients]
        assert wavelets.scale_sensitivity(coefficients, zero).isnan().all()
        # 1 − cos = 5e-9 is below the rounding of a float32 cosine
        near = wavelets.scale_sensitivity([torch.tensor([1.0, 0.0])], [torch.tensor([1.0, 1e-4])])
        assert float(near) == pytest.approx(5e-9, rel=1e-4)


bad_input = refusals(
    (lambda: wavelets.wavedec(uniform(16), level=3), "level 3 .* 0 to 2"),
    (lambda: wavelets.wavedec(uniform(16), wavelet="db99"), "db99"),
    (lambda: wavelets.wavedec(torch.zeros(2, 0)), r"\(2, 0\)"),
    (lambda: wavelets.wavedec(torch.tensor([1.0, math.nan])), "1 of 2"),
    (lambda: wavelets.waverec([uniform(10), uniform(10)], length=15), "not 15"),
    (lambda: wavelets.waverec([uniform(10), uniform(17)]), "17 detail coefficients"),
    (lambda: wavelets.waverec(uniform(2, 10)), "a list of tensors"),
    (lambda: wavelets.align(TestAlign.full, TestAlign.scaled[:2], alignment="per-level"), "3 and 2"),
)
test_bad_input_is_refused_without_a_warning = pytest.mark.filterwarnings("error")(bad_input)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "db4"])
@pytest.mark.parametrize("mode", ["zero", "periodization"])
def test_every_position_of_the_image_shows_the_coefficient_whose_window_it_is_nearest_to(wavelet, mode):
    n, depth, taps = 128, 3, pywt.Wavelet(wavelet).dec_len
    options = {"wavelet": wavelet, "mode": mode, "level": depth}
    coefficients = pywt.wavedec(np.random.default_rng(0).normal(size=n), **options)
    image = wavelets.level_image(coefficients, n, taps=taps, **{"periodic": True} if mode != "zero" else {})
    impulses = zip(*(pywt.wavedec(impulse, **options) for impulse in np.eye(n)), strict=True)
    for row, values, answers, level in zip(image, coefficients, impulses, (3, 3, 2, 1), strict=True):
        windows = [np.flatnonzero(np.abs(window) > 1e-12) for window in np.stack(answers, 1)]
        whole = (2**level - 1) * (taps - 1) + 1  # length of a window that no end cuts
        ends = {k: (w[0] + w[-1]) / 2 for k, w in enumerate(windows) if len(w) == whole == w[-1] - w[0] + 1}
        apart = np.abs(np.array(list(ends.values()))[:, None] - np.arange(n))  # (coefficient, position)
        for at in np.flatnonzero(apart.min(0) <= 2 ** (level - 1)):
            nearest = np.array(list(ends))[apart[:, at] <= apart[:, at].min() + 1e-9]
            assert row[at] in np.abs(values[nearest])

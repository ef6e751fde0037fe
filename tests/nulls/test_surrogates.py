import math

import numpy as np
import pytest
import torch
from scipy import signal as scipy_signal
from tolerances import assert_close

from nbhelpers.kernels import spectra
from nbhelpers.nulls import surrogates

N = 96


@pytest.fixture(scope="module")
def profiles():
    """Signals that sum to 1, (kind, position): flat and spiky ones, one with a sink, one that decays."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, N, generator=generator, dtype=torch.float64)
    z = torch.stack([0.1 * z[0], z[1], 3 * z[2], z[3], z[4].cumsum(-1), z[5]])
    z[3, 0] += 6
    z[5] -= torch.arange(N) / 20
    return z.softmax(-1)


def test_random_order_puts_every_value_anywhere_equally_often():
    ramp = torch.arange(8.0).expand(4000, 8)
    mean = surrogates.random_order(ramp, seed=0).mean(0)
    assert (mean - 3.5).abs().max() < 4 * ramp[0].std() / math.sqrt(4000)


def slow_matrix(s, n, causal):
    """exp(s·|i − j|) over the visible keys, row by row with the largest exponent taken out."""
    matrix = np.zeros((n, n))
    for i in range(n):
        keys = range(i + 1 if causal else n)
        exponents = np.array([s * abs(i - j) for j in keys])
        weights = np.exp(exponents - exponents.max())
        matrix[i, : len(weights)] = weights / weights.sum()
    return matrix


DECAYS = (-30.0, -2.0, -0.1, -1e-3, 0.0, 1e-3, 0.2, 3.0, 30.0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("s", DECAYS)
def test_exponential_attention_its_mean_distance_and_its_profiles(s, causal):
    n = 21
    expected = slow_matrix(s, n, causal)
    assert_close(surrogates.exponential_attention(s, n, causal=causal), torch.from_numpy(expected))
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    found = surrogates._mean_distance(torch.tensor(s, dtype=torch.float64), n, causal)
    assert float(found) == pytest.approx((expected * apart).sum() / n, rel=1e-11)
    if causal:
        made = surrogates.exponential_profiles(torch.full((2, 3), s, dtype=torch.float64), n)
        lags = np.array([expected.trace(offset=-lag) / n for lag in range(n)])
        rows = {"key_profile": expected.mean(0), "last_query": expected[-1], "lag_profile": lags}
        late = range(n - n // 2, n)
        rows["stationary_profile"] = [np.mean([expected[i, i - d] for i in late]) for d in range(n // 2)]
        for name, row in rows.items():
            assert_close(made[name], torch.as_tensor(row).expand(2, 3, -1))


@pytest.mark.parametrize("causal", [True, False])
def test_exponential_decay_is_solved(causal):
    n = 50
    farthest = (n - 1) / 2 if causal else float(np.maximum(range(n), range(n)[::-1]).mean())
    target = torch.linspace(1e-6, farthest - 1e-6, 30, dtype=torch.float64)
    s = surrogates.exponential_decay(target, n, causal=causal)
    found = surrogates._mean_distance(s, n, causal)
    assert (found - target).abs().max() < 1e-9
    alibi = slow_matrix(-(2.0**-3), n, causal)
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    slope = surrogates.exponential_decay((alibi * apart).sum() / n, n, causal=causal)
    assert float(slope) == pytest.approx(-0.125, rel=1e-9)
    uniform = (n - 1) / 4 if causal else (n**2 - 1) / (3 * n)
    assert abs(float(surrogates.exponential_decay(uniform, n, causal=causal))) < 1e-9
    with pytest.raises(ValueError, match=f"over {n} tokens has 0 to {farthest:.6g}"):
        surrogates.exponential_decay([1.0, farthest + 0.01], n, causal=causal)


def spectral_miss(made, given):
    a, b = (torch.fft.rfft(x)[..., 1:].abs() for x in (given, made))
    return (a - b).norm(dim=-1) / a.norm(dim=-1)


def test_iaaft_keeps_values_exactly_and_the_spectrum_closely(profiles):
    made = surrogates.iaaft(profiles, seed=2)
    assert torch.equal(made.sort(-1).values, profiles.sort(-1).values)
    miss, shuffled = spectral_miss(made, profiles), spectral_miss(surrogates.random_order(profiles), profiles)
    assert miss[[0, 1, 3, 4]].max() < 0.1, "the spectrum of a surrogate is another"
    assert miss.max() < 0.5  # the spiky one and the steep one leave few orders to choose from
    assert (miss < 0.85 * shuffled).all(), "no nearer to the spectrum than any order"
    moved = (made - profiles).norm(dim=-1) / (profiles - profiles.mean(-1, keepdim=True)).norm(dim=-1)
    assert (moved > 0.3).all(), "the surrogate is the signal"
    wave = 1 + torch.sin(2 * torch.pi * 5 * torch.arange(N, dtype=torch.float64) / N) / 2
    assert spectral_miss(surrogates.iaaft(wave, seed=1), wave) < 0.02


def test_iaaft_row_by_row_is_the_batch(profiles, monkeypatch):
    whole = surrogates.iaaft(profiles.view(2, 3, N), seed=5)
    monkeypatch.setattr(surrogates, "ROWS_AT_ONCE", 1)
    assert torch.equal(surrogates.iaaft(profiles.view(2, 3, N), seed=5), whole)


@pytest.mark.parametrize("chi", [-1.0, 0.0, 1.3, 3.0])
def test_power_law_is_fitted_exactly(chi):
    frequency = spectra.frequencies(64)
    psd = torch.where(frequency > 0, 7 * frequency.double().clamp_min(1e-9) ** -chi, 1e6)
    psd = torch.stack([psd, 2 * psd])
    psd[1, 5] = 0  # a bin without power is left out
    assert surrogates.power_law_exponent(psd, frequency) == pytest.approx([chi, chi], abs=1e-5)


def test_power_law_fit_is_that_of_polyfit(profiles):
    frequency = spectra.frequencies(N)
    psd = spectra.psd(profiles, detrend="mean")
    found = surrogates.power_law_exponent(psd, frequency)
    log_f = np.log(frequency.numpy()[1:])
    expected = [-np.polyfit(log_f, np.log(row[1:]), 1)[0] for row in psd.numpy()]
    assert_close(found, torch.tensor(expected, dtype=torch.float64), dtype=torch.float32)
    assert surrogates.power_law_exponent(torch.zeros(3), torch.tensor([0.0, 0.2, 0.4])).isnan()
    with pytest.raises(ValueError, match="4 tokens or more"):
        surrogates.power_law_exponent(torch.ones(2), torch.tensor([0.0, 0.5]))


@pytest.mark.parametrize("chi", [0.0, 1.0, 2.0])
def test_power_law_order_has_the_exponent_and_the_values(chi):
    generator = np.random.default_rng(0)
    frequency = np.fft.rfftfreq(512)
    amplitude = np.r_[0, frequency[1:] ** (-chi / 2)]
    noise = np.fft.irfft(amplitude * np.exp(2j * np.pi * generator.random((40, 257))), axis=-1)
    given = torch.from_numpy(noise - noise.min(-1, keepdims=True))
    made = surrogates.power_law_order(given, seed=4)
    assert torch.equal(made.sort(-1).values, given.sort(-1).values)
    f, psd = scipy_signal.periodogram(made.numpy(), window="hann", axis=-1)
    found = -np.polyfit(np.log(f[2:]), np.log(psd[:, 2:]).mean(0), 1)[0]
    assert found == pytest.approx(chi, abs=0.1 + chi / 10)  # placing the ranks whitens a little
    flat = torch.full((2, 16), 1 / 16, dtype=torch.float64)
    assert torch.equal(surrogates.power_law_order(flat), flat)

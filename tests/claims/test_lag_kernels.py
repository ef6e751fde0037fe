import numpy as np
import pytest
import torch

from nbhelpers.claims import lag_kernels as lk
from nbhelpers.claims.paper import claim
from nbhelpers.claims.planted import planted_stationary
from nbhelpers.stats import jackknife_interval

KIND, SIZES = "Morlet, half octaves", {"n_sequences": 4, "n_layers": 2, "n_heads": 6, "length": 128}


@pytest.fixture(scope="module")
def profile():
    return planted_stationary(KIND, **SIZES, noise=0.8, key_noise=0.8, seed=3)


def of_all(kernels):
    return {name: float(statistic(kernels)[0]) for name, (statistic, _) in lk.STATISTICS.items()}


def slow(profile):
    s, n_layers, n_heads, m = profile.shape
    window = np.hanning(2 * m)[m:]
    found = {"kernel": [], "resolved": [], "quantiles": [], "power": []}
    for layer in range(n_layers):
        for head in range(n_heads):
            k = profile[:, layer, head].double().numpy()
            line = np.fft.rfft(k * window, 2 * m)
            pairs = [(line[a] * line[b].conj()).real for a in range(s) for b in range(s) if a != b]
            found["power"].append(np.mean(pairs, 0))
            k = np.exp(np.mean(np.log(k / k.sum(1, keepdims=True) + lk.FLOOR / m), 0))
            k = k / k.sum()
            over = np.clip(k - np.sort(k)[(m - 1) // 2], 0, None)
            kernel = over / over.sum()
            far = np.interp(0.9, np.cumsum(kernel), np.arange(m))
            found["kernel"].append(kernel)
            found["resolved"].append(over.sum() >= 0.5 and np.ceil(far) <= 0.75 * m)
            edges = np.concatenate([[0], np.cumsum(kernel)])
            found["quantiles"].append(np.log2(np.interp(np.arange(1, 10) / 10, edges, np.arange(m + 1))))
    return {name: np.reshape(v, (n_layers, n_heads, *np.shape(v)[1:])) for name, v in found.items()}


def test_kernels_and_cross_power_are_those_of_a_slow_loop_with_every_sequence_left_out(profile):
    made = lk.lag_kernels(profile)
    for draw, kept in enumerate([[0, 1, 2, 3], [1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]):
        for name, expected in slow(profile[kept]).items():
            found = getattr(made, name)[draw].numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9, err_msg=name)


def test_statistics_are_those_of_a_slow_loop(profile):
    of = slow(profile)
    mask = of["resolved"]
    assert (mask.sum(1) >= 3).all()
    assert not mask.all(), "one head does not fit"
    place = of["quantiles"].mean(-1)
    width = -(of["kernel"] * np.log2(np.where(of["kernel"] > 0, of["kernel"], 1))).sum(-1)
    layers = list(enumerate(mask))
    within = [np.concatenate([v[at][m] - v[at][m].mean() for at, m in layers]) for v in (place, width)]
    freedom = mask.sum() - len(mask)
    cosines = []
    for at, m in enumerate(mask):
        cosines += list(np.abs(np.corrcoef(of["kernel"][at][m]))[np.triu_indices(m.sum(), 1)])
    expected = {
        "resolved_share": mask.mean(),
        "place_spread": np.sqrt((within[0] ** 2).sum() / freedom),
        "width_spread": np.sqrt((within[1] ** 2).sum() / freedom),
        "width_slope": np.polyfit(*within, 1)[0],
        "width_fit": np.corrcoef(*within)[0, 1] ** 2,
        "overlap": np.mean(cosines),
    }
    found = of_all(lk.lag_kernels(profile))
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_dilated_copies_have_the_numbers_of_dilated_copies():
    lag = torch.arange(512.0)
    scale = 8 * 2 ** torch.arange(6.0)[:, None] / 4
    bumps = torch.exp(-0.5 * ((lag + 0.5 - 4 * scale) / scale) ** 2)
    made = lk.lag_kernels(bumps.expand(3, 1, 6, 512))
    found = of_all(made)
    assert found["width_slope"] == pytest.approx(1, abs=0.07)
    assert found["exchange_rate"] == pytest.approx(-1, abs=0.1)
    assert found["place_spread"] == pytest.approx(np.std(np.arange(6), ddof=1), rel=0.05)
    assert abs(found["shape_drift"]) < 0.03
    assert found["tuned_share"] == 0
    flat = lk.lag_kernels(torch.full((3, 2, 4, 64), 1 / 64))
    found = of_all(flat)
    assert (found["resolved_share"], found["tuned_share"], found["overlap"]) == (0, 0, 1)
    assert all(np.isfinite(value) for value in found.values())


def test_a_wave_is_found_at_its_period():
    lag = torch.arange(128.0)
    made = lk.lag_kernels((1 + torch.cos(2 * torch.pi * lag / 8)).expand(3, 1, 1, 128))
    assert of_all(made)["tuned_share"] == 1
    assert float(lk._peaks(made)[0]) == pytest.approx(1 / 8, abs=1 / 256)


def test_records_are_jackknife_intervals_of_the_second_criteria(profile):
    records = lk.measure_second(profile, claim("C14"))
    assert list(records) == [criterion.name for criterion in claim("C14").second]
    value, *left_out = lk.STATISTICS["width_slope"][0](lk.lag_kernels(profile)).tolist()
    assert records["C14_width_slope"][:3] == jackknife_interval(value, left_out)[:3]
    assert records["C14_width_fit"].high <= 1
    with pytest.raises(ValueError, match="at least 3 sequences, got 2"):
        lk.lag_kernels(profile[:2])


def test_the_null_of_a_number_is_the_one_that_comes_closest_to_the_claim(profile):
    nulls = [torch.full_like(profile, 1 / 64), planted_stationary("boxes, octaves", **SIZES)]
    c14, chosen = claim("C14"), set()
    alone = [lk.measure_second(null, c14) for null in nulls]
    for c in c14.second:
        found = lk.measure_second(profile, c14, nulls=nulls)[c.name]
        least, most = c.claimed
        outside = [max(least - of[c.name].value, of[c.name].value - most, 0) for of in alone]
        k = next(k for k, of in enumerate(alone) if of[c.name].value == found.null)
        assert outside[k] == min(outside)
        assert (found.null_low, found.null_high) == alone[k][c.name][1:3]
        assert found[:3] == lk.measure_second(profile, c14)[c.name][:3]
        chosen.add(k)
    assert chosen == {0, 1}

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats as scipy_stats
from tolerances import TOL

from nbhelpers.stats import (
    bootstrap_interval,
    distribution_over_heads,
    position_spectrum_correlation,
)
from nbhelpers.table import HeadTable

CLOSE = TOL[torch.float64]


def make_table(position, spectrum, *, first=0):
    """A HeadTable of two (sequence, layer, head) arrays."""
    sequence, layer, head = (index.ravel() for index in np.indices(position.shape))
    keys = {"sequence": sequence + first, "layer": layer, "head": head, "kv_group": head // 2}
    values = {"positional_entropy": position, "spectral_entropy": spectrum}
    parts = [pd.DataFrame({**keys, "metric": name, "value": v.ravel()}) for name, v in values.items()]
    return HeadTable(pd.concat(parts, ignore_index=True))


@pytest.fixture
def entropies():
    generator = np.random.default_rng(1)
    position = generator.normal(size=(7, 3, 4)) + 3
    return position, 2 - 0.5 * position + generator.normal(size=position.shape)


def slow_correlation(position, spectrum, over):
    """The definition, in loops and numpy.corrcoef."""
    n_sequences, n_layers, n_heads = position.shape
    correlations = []
    if over == "heads":
        for s in range(n_sequences):
            correlations.append(np.corrcoef(position[s].ravel(), spectrum[s].ravel())[0, 1])
    elif over == "heads of a layer":
        for s, layer in itertools.product(range(n_sequences), range(n_layers)):
            correlations.append(np.corrcoef(position[s, layer], spectrum[s, layer])[0, 1])
    else:
        for layer, head in itertools.product(range(n_layers), range(n_heads)):
            correlations.append(np.corrcoef(position[:, layer, head], spectrum[:, layer, head])[0, 1])
    return np.mean(correlations)


def test_interval_of_the_mean_is_that_of_every_resample():
    values = np.array([1.0, 2.0, 4.0, 4.5, 7.0])
    every = [
        np.mean(draw) for draw in itertools.product(values, repeat=5)
    ]  # the exact distribution: 3125 draws
    interval = bootstrap_interval(values, n_boot=20_000)
    assert interval.value == pytest.approx(3.7, rel=CLOSE)
    assert interval.low == pytest.approx(np.quantile(every, 0.025), abs=0.1)
    assert interval.high == pytest.approx(np.quantile(every, 0.975), abs=0.1)
    assert interval.n_sequences == 5


def test_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(5)
    samples = generator.normal(size=(40, 300))  # 300 experiments of 40 sequences
    interval = bootstrap_interval(samples)
    covered = np.mean((interval.low <= 0) & (interval.high >= 0))
    assert 0.90 < covered < 0.98


def test_interval_is_that_of_scipy():
    values = np.random.default_rng(6).gamma(2.0, size=(9, 4))  # (sequence, layer)
    expected = scipy_stats.bootstrap((values,), np.mean, n_resamples=500, method="percentile", rng=11)
    interval = bootstrap_interval(values, n_boot=500, seed=11)
    np.testing.assert_allclose(interval.low, expected.confidence_interval.low, rtol=CLOSE)
    np.testing.assert_allclose(interval.high, expected.confidence_interval.high, rtol=CLOSE)
    np.testing.assert_allclose(interval.value, values.mean(0), rtol=CLOSE)


def test_distribution_over_heads_is_that_of_the_heads_means(entropies):
    table = make_table(*entropies)
    intervals = distribution_over_heads(table, "spectral_entropy", n_boot=200)
    heads = entropies[1].mean(0).ravel()
    assert intervals["mean"].value == pytest.approx(heads.mean(), rel=CLOSE)
    assert intervals["std"].value == pytest.approx(np.std(heads, ddof=1), rel=CLOSE)
    assert intervals["iqr"].value == pytest.approx(scipy_stats.iqr(heads), rel=CLOSE)
    summary = table.summary(n_boot=200).loc["spectral_entropy"]
    assert intervals["mean"].low == pytest.approx(summary.low, abs=0.03)
    assert all(interval.low < interval.high for interval in intervals.values())
    with pytest.raises(ValueError, match="averaged over sequences"):
        distribution_over_heads(make_table(*entropies, first=-1), "spectral_entropy")


def test_whole_sequences_are_drawn():
    # Heads that are copies of each other: 100 of them tell no more than one.
    one = np.random.default_rng(2).normal(size=8)
    copies = np.repeat(one[:, None], 100, axis=1)
    alone, together = bootstrap_interval(one), bootstrap_interval(copies.mean(1))
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=CLOSE)
    per_head = bootstrap_interval(copies)
    assert np.ptp(per_head.low) < CLOSE
    assert np.ptp(per_head.high) < CLOSE


def test_a_wider_confidence_gives_a_wider_interval_and_the_seed_decides():
    values = np.random.default_rng(3).normal(size=12)
    narrow, wide = bootstrap_interval(values, confidence=0.8), bootstrap_interval(values, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=4) != bootstrap_interval(values, seed=5)


def test_other_statistics_and_constant_values():
    values = np.array([1.0, 2.0, 3.0, 50.0])
    median = bootstrap_interval(values, statistic=np.median)
    assert median.value == 2.5
    assert median.high <= 50
    assert bootstrap_interval(np.full(5, 0.25))[:3] == (0.25, 0.25, 0.25)


def test_input_is_left_as_it_was():
    values = np.arange(6.0)
    bootstrap_interval(values)
    assert (values == np.arange(6.0)).all()


@pytest.mark.parametrize("values", [[1.0, 2.0], [], 3.0])
def test_fewer_than_three_sequences_are_refused(values):
    with pytest.raises(ValueError, match="at least 3 of them, got"):
        bootstrap_interval(values)


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="2 of 4 values are NaN or infinite"):
        bootstrap_interval([1.0, np.nan, np.inf, 2.0])


@pytest.mark.parametrize("over", ["heads", "heads of a layer", "sequences"])
def test_correlation_is_its_definition(entropies, over):
    interval = position_spectrum_correlation(make_table(*entropies), over=over, n_boot=200)
    assert interval.value == pytest.approx(slow_correlation(*entropies, over), rel=CLOSE)
    assert interval.n_sequences == 7
    assert interval.low < interval.value < interval.high


@pytest.mark.parametrize("over", ["heads", "heads of a layer"])
def test_interval_is_the_bootstrap_of_the_sequences_own_correlations(entropies, over):
    own = [slow_correlation(p[None], s[None], over) for p, s in zip(*entropies, strict=True)]
    expected = scipy_stats.bootstrap((np.array(own),), np.mean, n_resamples=4000, method="percentile", rng=0)
    interval = position_spectrum_correlation(make_table(*entropies), over=over, n_boot=4000, seed=8)
    assert interval.low == pytest.approx(expected.confidence_interval.low, abs=0.01)
    assert interval.high == pytest.approx(expected.confidence_interval.high, abs=0.01)


def test_the_three_readings_differ_where_they_should():
    # Within a head the entropies rise together over sequences; from head to head they part.
    generator = np.random.default_rng(0)
    shift = np.arange(5.0)[:, None, None] * 0.01
    level = generator.normal(size=(1, 2, 6))
    table = make_table(5 + level + shift, 5 - level + shift)
    assert position_spectrum_correlation(table, over="sequences").value == pytest.approx(1, rel=CLOSE)
    assert position_spectrum_correlation(table, over="heads").value == pytest.approx(-1, rel=CLOSE)


def test_constant_heads_are_left_out_and_all_constant_is_refused(entropies):
    position, spectrum = (values.copy() for values in entropies)
    position[:, 0, 0] = 2.0  # the same in every sequence
    expected = [
        np.corrcoef(position[:, layer, head], spectrum[:, layer, head])[0, 1]
        for layer, head in itertools.product(range(3), range(4))
        if (layer, head) != (0, 0)
    ]
    table = make_table(position, spectrum)
    assert position_spectrum_correlation(table, over="sequences", n_boot=20).value == pytest.approx(
        np.mean(expected), rel=CLOSE
    )
    rounding = 1 + 1e-8 * np.random.default_rng(0).normal(size=position.shape)
    with pytest.raises(ValueError, match=r"over heads is not defined: .* constant"):
        position_spectrum_correlation(make_table(4.4 * rounding, spectrum))


def test_heads_without_power_are_left_out(entropies):
    position, spectrum = (values.copy() for values in entropies)
    spectrum[:, 1, 2] = np.nan
    kept = [i for i in range(12) if i != 6]
    expected = [
        np.corrcoef(p.ravel()[kept], s.ravel()[kept])[0, 1] for p, s in zip(position, spectrum, strict=True)
    ]
    interval = position_spectrum_correlation(make_table(position, spectrum), n_boot=20)
    assert interval.value == pytest.approx(np.mean(expected), rel=CLOSE)


def test_correlation_refuses_what_it_cannot_do(entropies):
    with pytest.raises(ValueError, match="unknown over='rows'; choose one of 'heads'"):
        position_spectrum_correlation(make_table(*entropies), over="rows")
    with pytest.raises(ValueError, match="at least 3 of them, got 2"):
        position_spectrum_correlation(make_table(*(values[:2] for values in entropies)))
    with pytest.raises(ValueError, match="averaged over sequences"):
        position_spectrum_correlation(make_table(*entropies, first=-1))

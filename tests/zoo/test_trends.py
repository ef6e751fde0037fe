import numpy as np
import pytest
from scipy import stats as scipy_stats

from nbhelpers.claims.paper import paper_table
from nbhelpers.zoo.trends import departures, largest_departure, trend_per_decade

SIZES = np.array([2e5, 5e5, 1.05e6, 2.2e6, 5e6])


def sized(departure=0.0, *, slope=0.3, at=2, sd=0.05, n_seeds=3, seed=0):
    """Values (size, seed) on a line over log10 size; one size is off it."""
    noise = np.random.default_rng(seed).normal(0, sd, (len(SIZES), n_seeds))
    values = slope * np.log10(SIZES)[:, None] + noise
    values[at] += departure
    return values


def test_the_slope_is_that_of_linregress():
    values = sized()
    found = trend_per_decade(SIZES, values)
    every = [scipy_stats.linregress(np.log10(SIZES), column).slope for column in values.T]
    assert found.slope.value == pytest.approx(np.mean(every))
    assert found.slope[1:3] == pytest.approx(scipy_stats.ttest_1samp(every, 0).confidence_interval(0.95)[:])
    assert found.null == pytest.approx(0, abs=1e-12)
    assert found.p_value == pytest.approx(1 / 120, abs=0.01)


def test_exchanged_sizes_without_a_trend_are_not_significant():
    p_values = [trend_per_decade(SIZES, sized(slope=0.0, seed=k)).p_value for k in range(40)]
    assert np.mean(np.array(p_values) < 0.05) <= 0.15


def test_departures_are_from_a_line_through_the_others():
    means = np.random.default_rng(3).normal(size=len(SIZES))
    for at, found in enumerate(departures(SIZES, means)):
        rest = np.delete(np.arange(len(SIZES)), at)
        line = np.polyfit(np.log10(SIZES[rest]), means[rest], 1)
        assert found == pytest.approx(means[at] - np.polyval(line, np.log10(SIZES[at])))


def test_the_paper_departs_most_at_2_8b():
    table = paper_table(6)
    sizes = table.params.map(lambda p: float(p[:-1]) * {"M": 1e6, "B": 1e9}[p[-1]])
    found = departures(sizes, table.spectral_entropy)
    assert table.params[int(np.abs(found).argmax())] == "2.8B"
    assert found.max() > 0.9


def test_a_planted_outlier_is_found_in_its_own_unit():
    found = largest_departure(SIZES, sized(0.6, sd=0.03), n_draws=500)
    assert found.at == 2
    assert found.sd == pytest.approx(np.sqrt(sized(sd=0.03).var(1, ddof=1).mean())), "pooled over sizes"
    assert found.departure.value * found.sd == pytest.approx(0.6, abs=0.12)
    assert found.departure.low > 3 > found.null
    assert found.p_value < 0.01


def test_seeds_alone_depart_as_the_null_says():
    values, nulls, p_values = [], [], []
    for k in range(60):
        found = largest_departure(SIZES, sized(seed=k), n_draws=200, seed=k)
        values.append(found.departure.value)
        nulls.append(found.null)
        p_values.append(found.p_value)
    assert np.median(values) == pytest.approx(np.median(nulls), rel=0.3)
    assert np.mean(np.array(p_values) < 0.05) <= 0.17


@pytest.mark.parametrize("function", [trend_per_decade, largest_departure])
@pytest.mark.parametrize(
    ("sizes", "values", "told"),
    [
        (SIZES[:3], sized()[:3], "at least 4 sizes"),
        (SIZES, sized()[:, :2], "at least 3 seeds"),
        (np.full(5, 1e6), sized(), "different"),
        (SIZES, np.full((5, 3), np.nan), "not finite"),
    ],
)
def test_too_little_is_refused(function, sizes, values, told):
    with pytest.raises(ValueError, match=told):
        function(sizes, values)


def test_seeds_that_agree_to_the_last_digit_have_no_unit():
    with pytest.raises(ValueError, match="do not differ"):
        largest_departure(SIZES, np.ones((5, 3)))

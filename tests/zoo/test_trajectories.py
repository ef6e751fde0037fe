import numpy as np
import pytest

from nbhelpers.stats import partial_correlation
from nbhelpers.zoo.trajectories import interior_peak, rise, unexplained


@pytest.mark.parametrize(
    ("curve", "peak", "gain"),
    [
        ([1.0, 3.0, 2.0], 1.0, 1.0),
        ([1.0, 2.0, 3.0], 0.0, 2.0),
        ([3.0, 1.0, 2.0], 0.0, -1.0),
        ([2.0, 2.0], 0.0, 0.0),
    ],
)
def test_peaks_and_rises(curve, peak, gain):
    assert interior_peak(curve) == pytest.approx(peak)
    assert rise(curve) == pytest.approx(gain)


def test_the_table_of_the_paper_has_its_peak():
    from nbhelpers.claims.paper import paper_table

    table = paper_table(5)
    assert interior_peak(table["spectral_entropy"]) == pytest.approx(3.522 - 3.010)
    assert rise(table["scale_sensitivity_0.5"]) == pytest.approx(0.740 - 0.523)


def test_curves_are_taken_along_the_last_axis():
    curves = np.random.default_rng(0).normal(size=(2, 3, 7))
    assert interior_peak(curves)[1, 2] == pytest.approx(interior_peak(curves[1, 2]))
    assert rise(curves).shape == (2, 3)


@pytest.mark.parametrize("curve", [[1.0], [1.0, np.nan, 2.0]])
def test_curves_that_are_none_are_refused(curve):
    with pytest.raises(ValueError, match="at least 2 steps"):
        interior_peak(curve)


@pytest.fixture
def scores():
    return np.random.default_rng(1).normal(size=(3, 8, 20))  # three scores of 8 heads at 20 steps


def test_what_is_linear_in_the_scores_is_explained_whole(scores):
    values = 2 + 3 * scores[0] - scores[1]
    left = unexplained(values, scores)
    assert left.explained == pytest.approx(1)
    assert left.rest == pytest.approx(np.full_like(values, values.mean()))
    assert left.curve_left == pytest.approx(0, abs=1e-12)


def test_the_rest_is_that_of_partial_correlation(scores):
    generator = np.random.default_rng(4)
    values, other = (scores.sum(0) + generator.normal(size=(8, 20)) for _ in range(2))
    rests = [unexplained(v, scores).rest.ravel() for v in (values, other)]
    expected = partial_correlation(values.ravel(), other.ravel(), [score.ravel() for score in scores])
    assert np.corrcoef(*rests)[0, 1] == pytest.approx(expected)


def test_a_phase_that_no_score_has_is_left(scores):
    bump = np.exp(-((np.arange(20) - 10.0) ** 2) / 8)
    scores = scores - scores.mean(1, keepdims=True)  # their mean curves are flat
    left = unexplained(scores[0] + 2 * bump, scores)
    assert interior_peak(left.rest.mean(0)) > 1.5
    assert left.curve_left > 0.95


def test_a_constant_score_changes_nothing(scores):
    values = np.random.default_rng(5).normal(size=(8, 20))
    with_it = unexplained(values, [scores[0], np.ones((8, 20))])
    assert with_it.rest == pytest.approx(unexplained(values, scores[:1]).rest)


def test_wrong_scores_are_refused(scores):
    with pytest.raises(ValueError, match=r"one \(head, step\)"):
        unexplained(scores[0], [scores[1][:, :5]])
    with pytest.raises(ValueError, match="1 of 320"):
        unexplained(np.where(scores[0] == scores[0, 0, 0], np.nan, scores[0]), [scores[1]])

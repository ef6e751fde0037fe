"""The numbers that 03_null_models records at smoke size: SmolLM2-135M, 3 passages of 128 tokens."""

import numpy as np
import pandas as pd
import pytest
import pywt

pytestmark = pytest.mark.notebook

LENGTH = 128
KNOWN = {32: (0.035, 0.087), 64: (0.031, 0.082), 128: (0.026, 0.073), 256: (0.023, 0.065)}


@pytest.fixture(scope="module")
def numbers(recorded):
    return recorded("03")


@pytest.fixture(scope="module")
def tables(smoke_run, numbers):
    folder = smoke_run("03").output.parents[1] / "results" / "03_null_models"
    return {path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")}


def uniform_profile(n):
    """Mean row of A[i, j] = 1/(i + 1), by a loop."""
    return np.array([sum(1 / (i + 1) for i in range(j, n)) / n for j in range(n)])


def uniform_sensitivity(n, part, mode):
    """Scale sensitivity by pywt alone: coefficients from coarse to fine, cut to the shorter."""
    level = pywt.dwt_max_level(n // 4, "db2")
    whole, scaled = (
        np.concatenate(pywt.wavedec(uniform_profile(m), "db2", mode, level)) for m in (n, n // part)
    )
    whole = whole[: len(scaled)]
    return 1 - whole @ scaled / np.linalg.norm(whole) / np.linalg.norm(scaled)


@pytest.mark.parametrize("mode", ["symmetric", "periodization", "zero"])
@pytest.mark.parametrize("n", KNOWN)
def test_uniform_attention_is_the_closed_form(numbers, n, mode):
    for alpha, part in ((0.5, 2), (0.25, 4)):
        found = numbers[f"uniform_S({alpha})_{n}_{mode}_concatenate-truncate"].value
        assert found == pytest.approx(uniform_sensitivity(n, part, mode), abs=1e-9)


def test_uniform_attention_has_the_numbers_known_before(numbers):
    for n, expected in KNOWN.items():
        names = [f"uniform_S({alpha})_{n}_symmetric_concatenate-truncate" for alpha in (0.5, 0.25)]
        assert [numbers[name].value for name in names] == pytest.approx(expected, abs=6e-4)


def test_the_table_of_the_closed_form_is_whole(tables):
    closed = tables["closed_form"]
    assert len(closed) == 4 * 3 * 3
    assert closed.groupby("n").size().to_dict() == dict.fromkeys(KNOWN, 9)


def test_metrics_of_uniform_attention_are_the_closed_form(numbers):
    profile = uniform_profile(LENGTH)
    power = np.abs(np.fft.rfft(profile * np.hanning(LENGTH))) ** 2
    share = power / power.sum()
    expected = {
        "spectral_entropy": -(share * np.log(share)).sum(),
        "frequency_selectivity": share.max() / (1 - share.max()),
        "positional_entropy": -(profile * np.log(profile)).sum(),
        "effective_support": 1 / (profile**2).sum(),
        "scale_sensitivity_0.5": uniform_sensitivity(LENGTH, 2, "symmetric"),
    }
    for metric, value in expected.items():
        assert numbers[f"{metric} | N0 uniform"].value == pytest.approx(value, rel=1e-6), metric


def test_nulls_keep_what_they_say(numbers, tables):
    metrics = tables["metrics_and_nulls"].set_index("metric")
    model = metrics["model"]
    for null in ("N2 permuted", "N5 phase surrogate", "N6 power law"):
        for metric in ("positional_entropy", "effective_support"):
            assert metrics.loc[metric, null] == pytest.approx(model[metric], rel=1e-5), null
    support = metrics.loc["effective_support"]
    assert support["N3 iid softmax"] == pytest.approx(model["effective_support"], rel=1e-3)
    assert metrics["N8 permuted heads"].to_numpy() == pytest.approx(model.to_numpy(), abs=1e-5)
    assert metrics.loc["sink_mass", "N9 without sink"] == 0
    assert numbers["n2_entropy_error"].value < 1e-5


def test_nulls_destroy_what_they_say(tables):
    metrics = tables["metrics_and_nulls"].set_index("metric")
    assert abs(metrics.loc["low_band", "N2 permuted"] - metrics.loc["low_band", "model"]) > 0.05
    assert metrics.loc["low_band", "N1 random weights"] > 0.98 > metrics.loc["low_band", "model"]
    assert metrics.loc["sink_mass", "N2 permuted"] < 0.1 < metrics.loc["sink_mass", "model"]

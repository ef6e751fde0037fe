import numpy as np
import pandas as pd
import pytest
from tiny_measurements import PARAMETERS, write_zoo

from nbhelpers.zoo.tables import SIZES


def kept(settings):
    return settings.encoding == "rope" and settings.causal and not settings.bos and settings.preset != "small"


def test_runs_are_those_of_the_sizes_and_the_papers_outlier_is_that_by_hand(numbers, shipped):
    runs = shipped.runs[shipped.runs.arm.isin(SIZES)]
    assert numbers["runs"].value == len(runs)
    assert numbers["sizes_with_seeds"].value == 4
    assert {"C7_largest_departure", "C19_scale_sensitivity_trend"} <= numbers.keys()
    sizes = np.log10([14e6, 70e6, 160e6, 410e6, 1.4e9, 6.9e9, 12e9])
    entropies = [2.279, 2.667, 3.018, 2.631, 2.655, 2.764, 2.783]
    line = np.polyfit(sizes, entropies, 1)
    expected = 3.786 - np.polyval(line, np.log10(2.8e9))
    assert numbers["paper_departure"].value == pytest.approx(expected)


# Planted: S(0.5) falls by 0.15 a decade, H_s does not change with size


def test_the_planted_trend_is_found(whole, verdict):
    numbers, _, _ = whole
    row = numbers["C19_scale_sensitivity_trend"]
    assert row.value == pytest.approx(-0.15, abs=0.01)
    assert row.low <= -0.15 <= row.high
    assert row.null == pytest.approx(0, abs=1e-9)
    assert verdict("C19", numbers) == "supported"
    assert abs(numbers["trend_of_spectral_entropy"].value) < 0.02
    row = numbers["C7_largest_departure"]
    assert row.low < row.null < row.high
    assert verdict("C7", numbers) != "supported"


def test_a_planted_outlier_stands_out(run_on, tmp_path, verdict):
    folder = write_zoo(tmp_path / "collected", kept)
    path = folder / "measurements.parquet"
    frame = pd.read_parquet(path)
    trained = frame.step > 100
    frame.loc[trained & (frame.preset == "micro") & (frame.metric == "spectral_entropy"), "value"] += 0.2
    frame.to_parquet(path)
    numbers, _, _ = run_on("13", folder, tmp_path / "out")
    row = numbers["C7_largest_departure"]
    assert row.low > 3
    assert row.value * numbers["sd_over_seeds"].value > 0.15
    assert verdict("C7", numbers) == "supported"


def test_means_and_spreads_by_size(whole):
    numbers, tables, _ = whole
    assert numbers["sizes_with_seeds"].value == len(PARAMETERS)
    for arm in ("rope", "rope-pico", "rope-micro", "rope-mini"):
        row = numbers[f"spectral_entropy_of_{arm}"]
        assert row.low < row.value < row.high
        assert row.value == pytest.approx(0.57 + 2.0 - 0.5, abs=0.02)
        assert row.null == pytest.approx(0.57, abs=0.02)
    assert len(tables["tables36"]) == 10

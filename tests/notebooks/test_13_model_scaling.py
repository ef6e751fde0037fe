import itertools

import nbformat
import numpy as np
import pandas as pd
import pytest
from tiny_measurements import PARAMETERS, write_zoo
from tiny_sweeps import leave_run

from nbhelpers.sweeps.grid import make_grid, write_plan
from nbhelpers.zoo.tables import SIZES

OUTLIER = 0.2  # nats that the spectral entropy of micro departs


@pytest.fixture(scope="module")
def whole(run_on, tmp_path_factory):
    """Four sizes: S(0.5) falls by 0.15 a decade, H_s does not change but of one size; beside a sweep."""
    folder = tmp_path_factory.mktemp("zoo")
    zoo = write_zoo(folder / "collected", lambda s: s.arm in SIZES)
    frame = pd.read_parquet(zoo / "measurements.parquet")
    departs = (frame.step > 100) & (frame.preset == "micro") & (frame.metric == "spectral_entropy")
    frame.loc[departs, "value"] += OUTLIER
    frame.to_parquet(zoo / "measurements.parquet")
    grid = make_grid({"model": "owner/mine", "corpus": "moby-dick", "n_sequences": 4, "length": 64})
    write_plan(folder / "sweep", grid)
    leave_run(folder / "sweep", grid.runs[0], {"spectral_entropy": 2.5, "scale_sensitivity_0.5": 0.1})
    return run_on("13", zoo, folder / "out", sweep=str(folder / "sweep"))


def section(text):
    cells = nbformat.reads(text, as_version=4).cells
    (at,) = [k for k, cell in enumerate(cells) if cell.source.startswith("## Runs of a sweep stand beside")]
    own = itertools.takewhile(lambda cell: cell.cell_type == "code", cells[at + 1 :])
    return [output for cell in own for output in cell.outputs]


def test_runs_are_those_of_the_sizes_and_the_papers_outlier_is_that_by_hand(
    numbers, shipped, smoke_run, verdict
):
    runs = shipped.runs[shipped.runs.arm.isin(SIZES)]
    assert numbers["runs"].value == len(runs)
    assert numbers["sizes_with_seeds"].value == 4
    assert "C19_scale_sensitivity_trend" in numbers
    assert verdict("C7", numbers) != "supported", "no size departs"
    sizes = np.log10([14e6, 70e6, 160e6, 410e6, 1.4e9, 6.9e9, 12e9])
    entropies = [2.279, 2.667, 3.018, 2.631, 2.655, 2.764, 2.783]
    line = np.polyfit(sizes, entropies, 1)
    expected = 3.786 - np.polyval(line, np.log10(2.8e9))
    assert numbers["paper_departure"].value == pytest.approx(expected)
    (output,) = section(smoke_run("13").output.read_text())
    assert "sweep pythia-sizes --out" in output.text, "without a sweep one line says how to make one"
    assert "run 13 -p sweep" in output.text


def test_the_planted_trend_and_outlier_are_found(whole, verdict):
    numbers, _, _ = whole
    row = numbers["C19_scale_sensitivity_trend"]
    assert row.value == pytest.approx(-0.15, abs=0.01)
    assert row.low <= -0.15 <= row.high
    assert row.null == pytest.approx(0, abs=1e-9)
    assert verdict("C19", numbers) == "supported"
    tilt = np.polyfit(
        np.log10([*PARAMETERS.values()]), [OUTLIER * (name == "micro") for name in PARAMETERS], 1
    )
    assert numbers["trend_of_spectral_entropy"].value == pytest.approx(tilt[0], abs=0.02)
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
        assert row.value - OUTLIER * (arm == "rope-micro") == pytest.approx(0.57 + 2.0 - 0.5, abs=0.02)
        assert row.null == pytest.approx(0.57, abs=0.02)
    assert len(tables["tables36"]) == 10


def test_sizes_stand_beside_those_of_a_sweep_and_of_the_paper(whole):
    numbers, tables, text = whole
    rows = tables["sweep"]
    swept = rows[rows.source == "sweep"].set_index("metric").value
    assert swept.to_dict() == {"spectral_entropy": 2.5, "scale_sensitivity_0.5": 0.1}
    live = rows[rows.source == "this notebook"].set_index(["model", "metric"])
    own = numbers["spectral_entropy_of_rope"].value
    assert live.value["zoo rope", "spectral_entropy"] == pytest.approx(own, abs=1e-4)
    printed = rows[(rows.source == "paper") & (rows.protocol == "Table 6")]
    printed = printed[printed.metric == "scale_sensitivity_0.5"].set_index("n_parameters").value
    assert printed[[14e6, 12e9]].tolist() == [0.142, 0.059]
    assert sum("image/png" in output.get("data", {}) for output in section(text)) == 1

import functools
import itertools

import nbformat
import pandas as pd
import pytest

from nbhelpers.claims.paper import paper_table
from nbhelpers.collection.results import load_results
from nbhelpers.collection.run import run_notebooks
from nbhelpers.sweeps.rows import COLUMNS
from nbhelpers.zoo.tables import ZooTables

JUDGED = ["verdict", "why", "C2", "C3"]  # hang on notebook 04, which one of the folders alone holds


@pytest.fixture(scope="module")
def with_sweep(small_sweep, tmp_path_factory):
    """Run a notebook at smoke size with the sweep: ``with_sweep("07")`` -> table "sweep", run."""
    out = tmp_path_factory.mktemp("with-sweep")

    @functools.cache
    def run(name):
        given = {"sweep": str(small_sweep)}
        (done,) = run_notebooks([name], size="smoke", out=out, parameters=given, progress=False)
        assert done.status == "passed", done.error
        return pd.read_parquet(out / "results" / done.name / "sweep.parquet"), done

    return run


def test_rows_of_the_sweep_are_what_the_notebook_measures(with_sweep):
    rows, _ = with_sweep("07")
    assert tuple(rows.columns) == COLUMNS
    live = rows[rows.source == "this notebook"]
    assert set(live.model) == {"smollm2-135m"}
    assert live.metric.tolist() == rows[rows.model == "zoo:prope"].metric.tolist()
    # The notebook reads at smoke size what the sweep read of its model.
    swept = rows[(rows.model == "smollm2-135m") & (rows.source == "sweep")]
    same = [name for name in COLUMNS if name not in ("source", "run")]
    pd.testing.assert_frame_equal(live[same], swept[same].set_axis(live.index), rtol=1e-5)
    printed = rows[rows.source == "paper"].set_index(["model", "metric"]).value
    (line,) = paper_table(3).query("model == 'Llama-3.2-1B'").to_dict("records")
    metrics = ("spectral_entropy", "frequency_selectivity")
    assert printed.to_dict() == {("Llama-3.2-1B", metric): line[f"{metric}_mean"] for metric in metrics}


def test_a_second_run_records_the_same_to_the_last_digit(smoke_run, with_sweep):
    """In a new kernel, without cached profiles, and beside a sweep, which changes no number."""
    name = smoke_run("07").name  # a model, controls with random weights, permuted profiles
    folders = [run.output.parents[1] for run in (smoke_run("07"), with_sweep("07")[1])]
    before, after = (frame[frame.notebook == name] for frame in map(load_results, folders))
    before, after = (frame.reset_index(drop=True) for frame in (before, after))
    assert len(before) > 10
    pd.testing.assert_frame_equal(before, after, check_exact=True)
    stored = [sorted((folder / "results" / name).glob("*.parquet")) for folder in folders]
    before, after = ({path.stem: pd.read_parquet(path) for path in paths} for paths in stored)
    assert before.keys() == after.keys()
    for key in before.keys() - {"sweep"}:
        tables = [frame.drop(columns=JUDGED, errors="ignore") for frame in (before[key], after[key])]
        pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_sizes_stand_beside_the_zoos_and_those_of_the_paper(with_sweep):
    rows, done = with_sweep("13")
    swept = rows[rows.source == "sweep"].drop_duplicates("model").set_index("model")
    assert swept.n_parameters["smollm2-135m"] == pytest.approx(134.5e6, rel=1e-3)
    live = rows[rows.source == "this notebook"].set_index(["model", "metric"])
    ends = ZooTables.read().ends("spectral_entropy", ["rope"])["rope"]
    assert live.value["zoo rope", "spectral_entropy"] == pytest.approx(ends.mean())
    printed = rows[(rows.source == "paper") & (rows.protocol == "Table 6")]
    printed = printed[printed.metric == "scale_sensitivity_0.5"].set_index("n_parameters").value
    assert printed[[14e6, 12e9]].tolist() == [0.142, 0.059]
    shown = [output.get("data", {}) for cell in section(done.output) for output in cell.outputs]
    assert sum("image/png" in data for data in shown) == 1


def section(path):
    cells = nbformat.read(path, as_version=4).cells
    (at,) = [k for k, cell in enumerate(cells) if cell.source.startswith("## Runs of a sweep stand beside")]
    return list(itertools.takewhile(lambda cell: cell.cell_type == "code", cells[at + 1 :]))


def test_without_a_sweep_one_line_says_how_to_make_one(smoke_run):
    done = smoke_run("13")
    (output,) = [output for cell in section(done.output) for output in cell.outputs]
    assert "sweep pythia-sizes --out" in output.text
    assert "run 13 -p sweep" in output.text

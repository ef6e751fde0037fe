import json

import numpy as np
import pandas as pd
import pytest
import torch

from nbhelpers.collection.results import ENDS, Results, load_provenance, load_results
from nbhelpers.stats import Estimate


@pytest.fixture
def results(tmp_path):
    return Results("05_bands", tmp_path)


def fill(folder):
    store = Results("05_bands", folder)
    share = Estimate(np.float32(0.5), 0.25, torch.tensor(0.75), n=12)
    share = share.against(Estimate(1, 0.9, 1.1), Estimate(-0.5, -0.6, -0.4))
    store.record("share_low", share, unit="1", note="β < 1")
    store.record("heads", 9)
    store.table("shares", pd.DataFrame({"layer": [0, 1], "share": [0.5, np.nan]}))
    store.provenance(model="tiny", seed=3, lengths=(64, 128), protocol={"window": "hann", "pad": None})
    return store


def test_round_trip(tmp_path):
    fill(tmp_path)
    Results("01_theory", tmp_path).record("slope", -1.5)
    numbers = load_results(tmp_path)
    assert list(numbers.columns) == ["notebook", "name", "value", *ENDS, "unit", "note"]
    assert (numbers.notebook + " " + numbers["name"]).tolist() == [
        "01_theory slope", "05_bands heads", "05_bands share_low",
    ]  # fmt: skip
    found = numbers.loc[2, "value":].dropna().tolist()
    assert found == [0.5, 0.25, 0.75, 1.0, 0.9, 1.1, -0.6, -0.4, 12, "1", "β < 1"]
    assert numbers.loc[0, ["low", "high", "null"]].isna().all()
    expected = pd.DataFrame({"layer": [0, 1], "share": [0.5, np.nan]})
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "05_bands" / "shares.parquet"), expected)
    facts = {"model": "tiny", "seed": 3, "lengths": [64, 128], "protocol": {"window": "hann", "pad": None}}
    assert load_provenance(tmp_path)["05_bands"] == facts


def test_same_input_gives_the_same_strict_json_and_a_name_is_recorded_once(tmp_path, results):
    one, other = tmp_path / "a", tmp_path / "b" / "results"
    fill(one)
    fill(other)
    assert len(load_results(tmp_path / "b")) == 2, "the folder of a run is taken too"
    files = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    assert files == ["05_bands.json", "05_bands/shares.parquet"]
    assert all((one / file).read_bytes() == (other / file).read_bytes() for file in files)
    text = (one / "05_bands.json").read_text()
    document = json.loads(text, parse_constant=pytest.fail)
    assert text == json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    results.record("first", 1.0)
    with pytest.raises(ValueError, match="'first' is already recorded"):
        results.record("first", 2.0)
    assert load_results(tmp_path)[["name", "value"]].values.tolist() == [["first", 1.0]]


def test_numbers_that_are_refused(results):
    for value, options, error, told in (
        *((value, {}, ValueError, "finite") for value in (np.float32("-inf"), torch.tensor(torch.nan))),
        *((value, {}, TypeError, "finite") for value in ("0.5", True, None, np.ones(2), torch.ones(1))),
        (1.0, {"null": float("nan")}, ValueError, "null must be a finite"),
        (Estimate(0.5, low=0.1), {}, ValueError, "high must be a finite"),
        (Estimate(0.5, low=0.9, high=0.1), {}, ValueError, "is above"),
        (0.5, {"unit": 1}, TypeError, "unit"),
    ):
        with pytest.raises(error, match=told):
            results.record("x", value, **options)
    assert results.frame.empty


def test_tables_names_and_provenance_are_checked(results):
    frame = pd.DataFrame({"a": [1]}, index=pd.Index([7], name="layer"))
    results.table("t", frame)
    assert pd.read_parquet(results.folder / "05_bands" / "t.parquet").columns.tolist() == ["layer", "a"]
    with pytest.raises(ValueError, match="already stored"):
        results.table("t", frame)
    for wrong in ({"a": [1]}, pd.DataFrame({0: [1]})):
        with pytest.raises(TypeError):
            results.table("u", wrong)
    with pytest.raises(TypeError, match=r"provenance a.b\[1\]"):
        results.provenance(a={"b": [1, {2}]})
    with pytest.raises(ValueError, match="finite"):
        results.provenance(a=float("inf"))
    with pytest.raises(ValueError, match="file name"):
        Results("../x", results.folder)


def test_new_run_starts_empty_and_a_file_that_is_not_results_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the notebooks"):
        load_results(tmp_path)
    fill(tmp_path)
    Results("05_bands", tmp_path)
    assert load_results(tmp_path).empty
    assert not list(tmp_path.rglob("*.parquet"))
    for text in ("{", "[]", '{"numbers": {}}', '{"numbers": NaN}'):
        (tmp_path / "05_bands.json").write_text(text)
        with pytest.raises(ValueError, match=r"05_bands.json is damaged"):
            load_results(tmp_path)


def test_html_shows_numbers_and_escapes(results):
    results.record("a<b", 0.123456789, note="<i>")
    shown = results._repr_html_()
    assert "0.1235" in shown
    assert "a&lt;b" in shown
    assert "<i>" not in shown

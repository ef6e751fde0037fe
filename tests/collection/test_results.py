import json

import numpy as np
import pandas as pd
import pytest
import torch

from nbhelpers.collection.results import Results, load_provenance, load_results, load_tables
from nbhelpers.stats import Estimate


@pytest.fixture
def results(tmp_path):
    return Results("05_bands", tmp_path)


def fill(folder):
    store = Results("05_bands", folder)
    store.record(
        "share_low", Estimate(np.float32(0.5), 0.25, torch.tensor(0.75)), null=1, unit="1", note="β < 1"
    )
    store.record("heads", 9)
    store.table("shares", pd.DataFrame({"layer": [0, 1], "share": [0.5, np.nan]}))
    store.provenance(model="tiny", seed=3, lengths=(64, 128), protocol={"window": "hann", "pad": None})
    return store


def test_round_trip(tmp_path):
    fill(tmp_path)
    Results("01_theory", tmp_path).record("slope", -1.5)
    numbers = load_results(tmp_path)
    assert list(numbers.columns) == ["notebook", "name", "value", "low", "high", "null", "unit", "note"]
    assert numbers[["notebook", "name"]].values.tolist() == [
        ["01_theory", "slope"],
        ["05_bands", "heads"],
        ["05_bands", "share_low"],
    ]
    assert numbers.loc[2, "value":].tolist() == [0.5, 0.25, 0.75, 1.0, "1", "β < 1"]
    assert numbers.loc[0, ["low", "high", "null"]].isna().all()
    expected = pd.DataFrame({"layer": [0, 1], "share": [0.5, np.nan]})
    pd.testing.assert_frame_equal(load_tables(tmp_path)["05_bands", "shares"], expected)
    facts = {"model": "tiny", "seed": 3, "lengths": [64, 128], "protocol": {"window": "hann", "pad": None}}
    assert load_provenance(tmp_path)["05_bands"] == facts


def test_folder_of_a_run_is_taken_too(tmp_path):
    fill(tmp_path / "results")
    assert len(load_results(tmp_path)) == 2


def test_same_input_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        fill(tmp_path / folder)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 2
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_file_is_strict_json_with_sorted_keys_and_nothing_temporary_is_left(tmp_path):
    fill(tmp_path)
    text = (tmp_path / "05_bands.json").read_text()
    document = json.loads(text, parse_constant=pytest.fail)
    assert text == json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["05_bands", "05_bands.json"]


def test_what_came_before_an_error_is_on_disk(results, tmp_path):
    results.record("first", 1.0)
    with pytest.raises(ValueError, match="finite"):
        results.record("second", float("nan"))
    assert load_results(tmp_path)["name"].tolist() == ["first"]


@pytest.mark.parametrize("value", [float("nan"), np.float32("-inf"), torch.tensor(float("nan"))])
def test_numbers_must_be_finite(results, value):
    with pytest.raises(ValueError, match="x: value must be finite"):
        results.record("x", value)
    with pytest.raises(ValueError, match="x: null must be finite"):
        results.record("x", 1.0, null=value)


@pytest.mark.parametrize("value", ["0.5", True, None, np.ones(2), torch.ones(1)])
def test_values_must_be_one_real_number(results, value):
    with pytest.raises(TypeError, match="x: value must be one real number"):
        results.record("x", value)


def test_interval_is_whole_and_ordered(results):
    with pytest.raises(ValueError, match=r"x: high must be finite"):
        results.record("x", Estimate(0.5, low=0.1))
    with pytest.raises(ValueError, match=r"low 0.9 is above high 0.1"):
        results.record("x", Estimate(0.5, low=0.9, high=0.1))


def test_names(results):
    results.record("x", 0.5)
    with pytest.raises(ValueError, match=r"'x' is already recorded by 05_bands as 0.5"):
        results.record("x", 0.5)
    with pytest.raises(TypeError, match="unit must be a string"):
        results.record("y", 0.5, unit=1)
    with pytest.raises(ValueError, match=r"cannot be a file name"):
        Results("../x", results.folder)


def test_tables_are_checked(results):
    frame = pd.DataFrame({"a": [1]}, index=pd.Index([7], name="layer"))
    results.table("t", frame)
    assert load_tables(results.folder)["05_bands", "t"].columns.tolist() == ["layer", "a"]
    with pytest.raises(ValueError, match="already stored"):
        results.table("t", frame)
    with pytest.raises(TypeError, match="expected a pandas DataFrame, got dict"):
        results.table("u", {"a": [1]})
    with pytest.raises(TypeError, match="column names must be strings"):
        results.table("u", pd.DataFrame({0: [1]}))


def test_provenance_refuses_what_is_not_plain(results):
    with pytest.raises(TypeError, match=r"provenance a.b\[1\] must be one real number, got set"):
        results.provenance(a={"b": [1, {2}]})
    with pytest.raises(ValueError, match="must be finite"):
        results.provenance(a=float("inf"))


def test_new_run_starts_empty(tmp_path):
    fill(tmp_path)
    Results("05_bands", tmp_path)
    assert load_results(tmp_path).empty
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("text", ["{", "[]", '{"numbers": {}}', '{"numbers": NaN}'])
def test_file_that_is_not_results(tmp_path, text):
    (tmp_path / "05_bands.json").write_text(text)
    with pytest.raises(ValueError, match=r"05_bands.json is not a file of results"):
        load_results(tmp_path)


def test_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the notebooks"):
        load_results(tmp_path)


def test_html_shows_numbers_and_escapes(results):
    results.record("a<b", 0.123456789, note="<i>")
    shown = results._repr_html_()
    assert "0.1235" in shown
    assert f"{len(results.frame)} numbers recorded by" in shown
    assert "a&lt;b" in shown
    assert "<i>" not in shown
    assert "NaN" not in shown

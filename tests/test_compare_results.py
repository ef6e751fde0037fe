import json

import pandas as pd
import pytest
from compare_results import differences, main


def run(folder, name, numbers, **columns):
    (folder / name).mkdir(parents=True)
    pd.DataFrame(columns).to_parquet(folder / name / "heads.parquet")
    plain = {"low": None, "high": None, "null": 0.5, "unit": ""}
    entries = {key: plain | {"value": value} for key, value in numbers.items()}
    (folder / f"{name}.json").write_text(json.dumps({"numbers": entries}))
    return folder


@pytest.fixture
def old(tmp_path):
    return run(tmp_path / "old", "05_bands", {"low": 0.1, "twin_low": 2.0, "seconds": 3.0}, low=[1.0, 2.0])


def test_equal_runs_in_another_order_with_renamed_numbers(old, tmp_path, capsys):
    numbers = {"low": 0.1, "control_low": 2.0, "seconds": 9.0}
    new = run(tmp_path / "new", "07_bands", numbers, low=[1.0, 2.0])
    assert main([str(old), str(new), "--renamed", "^twin_=control_"]) == 0
    assert capsys.readouterr().out == "no difference\n"


def test_the_last_digit_a_missing_number_and_a_table_are_seen(old, tmp_path):
    new = run(tmp_path / "new", "05_bands", {"low": 0.1, "seconds": 3.0}, low=[1.0, 2.5])
    told = ["bands: twin_low only in the old run", "bands: table heads: low differs by up to 0.5"]
    assert list(differences(old, new)) == told
    numbers = {"low": 0.1 + 2e-16, "twin_low": 2.0, "seconds": 3.0}
    new = run(tmp_path / "newer", "05_bands", numbers, low=[1.0, 2.0])
    assert len(list(differences(old, new))) == 1
    assert list(differences(old, new, rtol=1e-12)) == []

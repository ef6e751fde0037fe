import json

import pandas as pd
from compare_results import differences, main


def run(folder, numbers, **columns):
    (folder / "05_bands").mkdir(parents=True)
    pd.DataFrame(columns).to_parquet(folder / "05_bands" / "heads.parquet")
    plain = {"low": None, "high": None, "null": 0.5, "unit": ""}
    entries = {key: plain | {"value": value} for key, value in numbers.items()}
    (folder / "05_bands.json").write_text(json.dumps({"numbers": entries}))
    return folder


def test_the_last_digit_a_missing_number_and_a_table_are_seen(tmp_path, capsys):
    old = run(tmp_path / "old", {"low": 0.1, "other": 2.0, "seconds": 3.0}, low=[1.0, 2.0], of=[None, "b"])
    new = run(tmp_path / "new", {"low": 0.1, "seconds": 9.0}, low=[1.0, 2.5], of=[None, "c"])
    missing, low, of = differences(old, new)
    assert missing == "05_bands: other only in the old run"
    assert low.startswith("05_bands: table heads: low: ")
    assert low.endswith("At positional index 1, first diff: 2.0 != 2.5")
    assert of.endswith("first diff: 'b' != 'c'")
    numbers = {"low": 0.1 + 2e-16, "other": 2.0, "seconds": 3.0}
    new = run(tmp_path / "newer", numbers, low=[1.0, 2.0], of=[None, "b"])
    assert len(list(differences(old, new))) == 1
    assert main([str(old), str(new), "--rtol", "1e-12"]) == 0
    assert capsys.readouterr().out == "no difference\n"

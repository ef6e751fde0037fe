import json
import os
import subprocess
import sys

import pytest
from papermill.cli import _resolve_type
from tiny_notebooks import make_notebook

from nbhelpers.__main__ import main, parse_value
from nbhelpers.collection.results import Results
from nbhelpers.stats import Estimate


@pytest.fixture
def folder(tmp_path):
    """A folder with one notebook of one parameter, which fails where it is 0."""
    make_notebook(tmp_path / "01_tiny.ipynb", "print(1 / length)")
    return tmp_path


@pytest.mark.parametrize(
    ("own", "seen"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, None)],
)
def test_openmp_spins_for_less_long_unless_the_user_has_a_say(own, seen):
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in ours} | own
    show = "import os, sys, nbhelpers; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    told = subprocess.check_output([sys.executable, "-c", show], env=environment, text=True)
    assert told.split() == [str(seen), "False"]


def test_values_are_parsed_as_papermill_does():
    for text in ("True", "False", "None", "3", "-3", "1e-3", "0.5", "nan", "", "a b", "true", "1_0", "[1]"):
        ours, theirs = parse_value(text), _resolve_type(text)
        assert (type(ours), str(ours)) == (type(theirs), str(theirs)), text


def test_status_says_whether_a_notebook_failed(folder, capsys):
    command = ["run", "01", "--folder", str(folder), "--out", str(folder / "out")]
    assert main([*command, "-p", "length", "4"]) == 0
    assert main([*command, "-p", "length", "4"]) == 0
    assert "kept" in capsys.readouterr().out
    assert main([*command, "-p", "length", "0", "--fresh"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert json.loads((folder / "out" / "runs" / "01_tiny.json").read_text())["parameters"] == {"length": 0}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "07"], "'07' means 0 notebooks; there are: 01_tiny"),
        (["run", "-p", "lenght", "3"], "no selected notebook has a parameter 'lenght'"),
        (["run", "--size", "huge"], "unknown size 'huge'; there are: smoke, reader, full"),
        *((["run", "--cell-timeout", given], "a finite number") for given in ("-1", "0", "inf", "nan")),
        (["report"], "holds no results"),
        (["site"], "does not exist"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(folder, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(folder)
    run = ["--folder", str(folder), "--out", str(folder / "none")]
    own = run if arguments[0] == "run" else [str(folder / "none")]
    assert main(arguments + own) == 2
    assert not (folder / "none").exists(), "it is told before anything runs"
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    with pytest.raises((LookupError, ValueError, FileNotFoundError)):
        main([*arguments, *own, "--traceback"])


def test_report_prints_the_numbers(folder, capsys):
    Results("05_bands", folder).record("share", Estimate(0.123456, 0.1, 0.2), unit="1")
    assert main(["report", str(folder)]) == 0
    told = capsys.readouterr().out
    assert all(part in told for part in ("05_bands", "0.1235", "1 numbers of 1 notebooks", "C5"))
    assert "10_scale_invariance" in told.splitlines()[-1]  # the command that measures what is missing
    assert (folder / "scorecard.csv").read_text().startswith("claim,title")


def test_models_lists_the_offline_names(capsys):
    assert main(["models"]) == 0
    assert "smollm2-135m" in capsys.readouterr().out

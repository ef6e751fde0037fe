import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from papermill.cli import _resolve_type
from tiny_notebooks import make_notebook

from nbhelpers.__main__ import main, parse_value
from nbhelpers.collection import plan
from nbhelpers.collection.plan import list_notebooks
from nbhelpers.collection.results import Results
from nbhelpers.stats import Estimate

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    make_notebook(tmp_path / "01_tiny.ipynb", "print(1 / (length - 5))")
    return tmp_path


@pytest.mark.parametrize(
    ("own", "seen"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, None)]
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


def test_status_says_whether_a_notebook_failed(folder, capsys, warm_kernels):
    command = ["run", "01", "--folder", str(folder), "--out", str(folder / "out")]
    assert main([*command, "-p", "length", "4"]) == 0
    assert main([*command, "-p", "length", "4"]) == 0
    assert "kept" in capsys.readouterr().out
    assert main([*command, "-p", "length", "5", "--fresh"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert json.loads((folder / "out" / "runs" / "01_tiny.json").read_text())["parameters"] == {"length": 5}
    assert main(["models"]) == 0
    assert "smollm2-135m" in capsys.readouterr().out


def test_wrong_input_is_one_line_and_status_2(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    run = ["--folder", str(folder), "--out", str(folder / "none")]
    for arguments, told in (
        (["run", "07"], "'07' means 0 notebooks; there are: 01_tiny"),
        (["run", "-p", "lenght", "3"], "no selected notebook has a parameter 'lenght'"),
        (["run", "--size", "huge"], "one of 'smoke', 'reader', 'full'; got 'huge'"),
        *((["run", "--cell-timeout", given], "a finite number") for given in ("-1", "0", "inf", "nan")),
        (["report"], "holds no results"),
        (["site"], "does not exist"),
    ):
        own = run if arguments[0] == "run" else [str(folder / "none")]
        assert main(arguments + own) == 2
        assert not (folder / "none").exists(), "it is told before anything runs"
        error = capsys.readouterr().err
        assert (told in error, error.count("\n")) == (True, 1), error
        with pytest.raises((LookupError, ValueError, FileNotFoundError)):
            main([*arguments, *own, "--traceback"])


@pytest.mark.parametrize("command", ["run", "sweep", "site", "notebooks"])
@pytest.mark.parametrize("place", ["a file", "below a file", "read-only", "full"])
def test_an_output_that_cannot_be_written_is_one_line(folder, small_disk, capsys, command, place):
    (folder / "mine").write_text("mine")
    (folder / "executed").mkdir()
    make_notebook(folder / "executed" / "01_tiny.ipynb")
    out = folder / "mine" if place == "a file" else folder / "mine" / "deeper"
    if place in ("read-only", "full"):
        out = small_disk(read_only=place == "read-only") / "out"
    if place == "full":
        (out.parent / "rest").write_bytes(bytes(98_304))
    arguments = {
        "run": ["run", "--folder", str(folder), "--out", str(out)],
        "sweep": ["sweep", "zoo", "--out", str(out)],
        "site": ["site", str(folder), "--out", str(out)],
        "notebooks": ["notebooks", "copy", str(out)],
    }
    assert main(arguments[command]) == 2
    told = capsys.readouterr()
    reasons = {"read-only": "Read-only file system", "full": "No space left"}
    assert reasons.get(place, "is a file where a folder") in told.err
    assert "give another folder" in told.err
    assert told.err.count("\n") == 1
    assert (folder / "mine").read_text() == "mine"
    assert [file for file in out.rglob("*") if file.is_file()] == [], "nothing half-written"


def test_the_notebooks_can_be_copied_and_run_where_one_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # again: nothing differs
        assert main(["notebooks", "copy", "mine"]) == 0
    assert f"{len(list_notebooks())} notebooks in" in capsys.readouterr().out
    assert main(["notebooks"]) == 0
    assert "00_start_here.ipynb" in capsys.readouterr().out
    (tmp_path / "mine" / "sizes.toml").write_text("# my own")
    assert main(["notebooks", "copy", "mine"]) == 2
    assert "sizes.toml is another file" in capsys.readouterr().err
    assert (tmp_path / "mine" / "sizes.toml").read_text() == "# my own"
    # The package finds them as installed, and its wheel holds all there are.
    copied, shipped = ({p.name for p in folder.iterdir()} for folder in (tmp_path / "mine", plan.SHIPPED))
    assert copied <= shipped
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    assert {"*.ipynb", "*.toml"} <= set(patterns)


STOPPED = """
import os, signal, sys
from nbhelpers import __main__ as command
def interrupted(options):
    for number in signals:
        os.kill(os.getpid(), number)
signals = [getattr(signal, name) for name in sys.argv[2:]]
command._models, sys.argv = interrupted, sys.argv[:2]
status = command.main()
for number in (signal.SIGINT, signal.SIGTERM):  # while Python ends, which a signal can hang for ever
    os.kill(os.getpid(), number)
print("status", status)
"""


@pytest.mark.parametrize("signals", [["SIGINT"], ["SIGTERM"], ["SIGINT", "SIGINT", "SIGTERM"], []])
def test_one_signal_ends_a_command_and_the_next_ones_do_nothing(signals):
    settings = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), "text": True}
    told = subprocess.check_output([sys.executable, "-c", STOPPED, "models", *signals], **settings)
    assert told == f"status {130 if signals else 0}\n"


def test_report_says_the_verdicts_in_words_and_the_numbers_if_asked(folder, capsys):
    Results("05_bands", folder).record("share", Estimate(0.123456, 0.1, 0.2), unit="1")
    Results("07_frequency_bands", folder).record("C3_low_change", Estimate(0.2, 0.17, 0.24), null=0.0)
    assert main(["report", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "C3 the low band tapers with depth: contradicted" in told
    assert "changes by +20 percentage points" in told
    assert not re.search(r"C\d+_|0\.1235", told), "names are for those who ask for the numbers"
    assert "2 numbers of 2 notebooks" in told
    assert "10_scale_invariance" in told.splitlines()[-1]  # the command that measures what is missing
    assert (folder / "scorecard.csv").read_text().startswith("claim,title,group,verdict,why")
    assert main(["report", "--numbers", str(folder)]) == 0
    told = capsys.readouterr().out
    assert all(part in told for part in ("05_bands", "0.1235", "C3_low_change"))

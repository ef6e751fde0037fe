import json
import os
import signal
import subprocess
import sys
import time
from unittest.mock import Mock

import nbformat
import psutil
import pytest
from jupyter_client.launcher import launch_kernel
from jupyter_client.provisioning import local_provisioner
from papermill.cli import papermill
from tiny_sweeps import wait_for

from nbhelpers.__main__ import main
from nbhelpers.collection.results import load_results
from nbhelpers.collection.run import _Log, load_runs, run_notebooks

pytestmark = pytest.mark.usefixtures("warm_kernels")
RECORDING = """from nbhelpers.collection.results import Results
store = Results("02_good", results)
store.record("double", 2 * length)"""
# The same without the import of the package, which takes seconds.
WRITING = """import json, pathlib
pathlib.Path(results, "02_good.json").write_text(json.dumps({"double": 2 * length}))"""
GOOD_PARAMETERS = 'length = 8  # tokens\nresults = "results"  # folder of the results store'


@pytest.fixture
def collection(notebook, folder):
    notebook("01_bad", "print('before')", "raise ValueError(f'bad length {length}')")
    notebook("02_good", RECORDING, parameters=GOOD_PARAMETERS)
    return folder


def statuses(runs):
    return {run.name: run.status for run in runs}


def test_failure_does_not_stop_the_others_and_the_next_run_resumes(collection, notebook, tmp_path, capsys):
    out = tmp_path / "out"
    run = {"folder": collection, "out": out, "model": "none"}
    first = run_notebooks(**run)
    assert statuses(first) == {"01_bad": "failed", "02_good": "passed"}
    assert "bad length 8" in first[0].error
    assert first[1].error is None
    assert first[1].peak_mb > 10
    assert "before" in first[0].output.read_text()
    assert load_results(out).set_index("name").loc["double", "value"] == 16
    assert load_runs(out) == first
    told = capsys.readouterr().out
    assert "note: 02_good has no parameter 'model'" in told
    assert "2 notebooks: 1 passed, 0 kept, 1 failed" in told

    notebook("01_bad", "print('repaired')")
    second = run_notebooks(**run)
    assert statuses(second) == {"01_bad": "passed", "02_good": "kept"}
    assert second[1].seconds == first[1].seconds
    (only,) = run_notebooks(["02"], parameters={"length": 9}, **run)
    assert only.status == "passed"
    assert load_results(out)["value"].tolist() == [18]


def test_what_makes_a_notebook_run_again(collection, notebook, tmp_path, capsys):
    run = {"names": ["02"], "folder": collection, "out": tmp_path}
    notebook("02_good", WRITING, parameters=GOOD_PARAMETERS)
    run_notebooks(**run)
    (tmp_path / "runs" / "02_good.json").write_text("{")
    assert statuses(run_notebooks(**run)) == {"02_good": "passed"}
    assert "02_good.json is not a record" in capsys.readouterr().err
    (tmp_path / "results" / "02_good.json").unlink()
    assert statuses(run_notebooks(**run)) == {"02_good": "passed"}
    assert statuses(run_notebooks(**run, resume=False)) == {"02_good": "passed"}
    assert " s left)" in capsys.readouterr().out, "it knows how long the last run took"
    notebook("02_good", "raise ValueError", parameters=GOOD_PARAMETERS)
    assert statuses(run_notebooks(**run)) == {"02_good": "failed"}
    with pytest.raises(FileNotFoundError, match="no results"):  # none of an earlier run
        load_results(tmp_path)


def test_notebooks_run_again_when_the_results_they_read_change(collection, notebook, tmp_path):
    planting = WRITING.replace("02_good", "03_plants").replace("double", "planted_sensitivity_C5")
    notebook("02_good", WRITING, parameters=GOOD_PARAMETERS)
    notebook("03_plants", planting, parameters=GOOD_PARAMETERS)
    reading = (
        "# load_results(\nimport pathlib\nprint(*sorted(p.stem for p in pathlib.Path(results).glob('*')))"
    )
    notebook("04_reads", reading, parameters=GOOD_PARAMETERS)
    notebook("05_judges", "# planted_rates(results)", parameters=GOOD_PARAMETERS)
    run = {"names": ["02", "03", "04", "05"], "folder": collection, "out": tmp_path}
    run["progress"] = False
    *_, reads = run_notebooks(**run | {"names": ["02", "03", "04"]}, jobs=3)
    assert "02_good 03_plants" in reads.output.read_text(), "it waited for what it reads"
    assert list(statuses(run_notebooks(**run)).values()) == ["kept", "kept", "kept", "passed"]
    notebook("02_good", WRITING.replace("2 *", "3 *"), parameters=GOOD_PARAMETERS)
    again = statuses(run_notebooks(**run))
    assert again == {"02_good": "passed", "03_plants": "kept", "04_reads": "passed", "05_judges": "kept"}
    notebook("03_plants", planting.replace("2 *", "3 *"), parameters=GOOD_PARAMETERS)
    again = statuses(run_notebooks(**run))
    assert again == {"02_good": "kept", "03_plants": "passed", "04_reads": "passed", "05_judges": "passed"}


@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_keeps_what_is_done_and_the_next_run_resumes(notebook, folder, tmp_path, number, jobs):
    marker = tmp_path / "running"
    notebook("01_quick", "import os; os.write(1, b'noise')")
    slow = f"import pathlib, time; pathlib.Path({str(marker)!r}).touch()"
    notebook("02_slow", "print('part')", slow, "time.sleep(seconds)", parameters="seconds = 60.0  # of sleep")
    command = [sys.executable, "-m", "nbhelpers", "run", "--folder", folder, "--out", tmp_path / "out"]
    command += ["--jobs", str(jobs)]
    # A shell's background jobs, and what they start, ignore Ctrl-C; this run must not.
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), "text": True}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    told = ""
    while "01_quick: passed" not in told and (line := process.stdout.readline()):
        told += line
    wait_for(marker.exists)
    for _ in range(2):  # the second, while the command ends, does nothing
        os.kill(process.pid, number)
        time.sleep(0.1)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted in 02_slow; 1 of 2 notebooks are done" in rest
    assert "Traceback" not in errors
    assert "part" in (tmp_path / "out" / "executed" / "02_slow.ipynb").read_text()
    assert json.loads((tmp_path / "out" / "runs" / "02_slow.json").read_text())["status"] == "interrupted"
    runs = run_notebooks(folder=folder, out=tmp_path / "out", parameters={"seconds": 0.1}, progress=False)
    assert statuses(runs) == {"01_quick": "kept", "02_slow": "passed"}


def test_ctrl_c_while_an_end_is_told_keeps_it(notebook, folder, tmp_path, monkeypatch):
    notebook("01_quick", "1")
    monkeypatch.setattr(_Log, "done", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_notebooks(folder=folder, out=tmp_path / "out", progress=False)
    assert statuses(load_runs(tmp_path / "out")) == {"01_quick": "passed"}


def test_side_by_side_and_what_the_death_of_the_runner_leaves(notebook, folder, tmp_path):
    for own, other in ("ab", "ba"):  # each waits for the other, so both run at once
        mine, theirs = tmp_path / own, str(tmp_path / other)
        first = "import os, time, pathlib as p\nos.write(1, b'noise')\n"
        first += f"p.Path({str(mine)!r}).write_text(str(os.getpid()))\n"
        first += f"while not p.Path({theirs!r}).exists(): time.sleep(0.1)"
        second = "raise ValueError('b fails')" if own == "b" else "time.sleep(seconds)"
        notebook(f"01_{own}", first, second, parameters="seconds = 0.0  # of sleep")
    command = [sys.executable, "-m", "nbhelpers", "run", "--folder", folder, "--out", tmp_path / "killed"]
    # It is a shell's background job, which ignores Ctrl-C, and so does what it starts.
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN), "stdout": subprocess.PIPE}
    process = subprocess.Popen([*command, "--jobs", "2", "-p", "seconds", "60"], **options)
    for line in process.stdout:
        if b"failed" in line:  # 01_a sleeps then
            break
    kernel = psutil.Process(int((tmp_path / "a").read_text()))
    process.kill()
    process.communicate()
    (run,) = load_runs(tmp_path / "killed")
    assert (run.name, run.status, run.peak_mb > 10) == ("01_b", "failed", True)
    assert "ValueError: b fails" in run.error
    psutil.wait_procs([kernel], timeout=40)
    assert not kernel.is_running(), "its notebook went on"


@pytest.mark.parametrize("filled_by", ["the store", "the notebook itself"])
def test_a_disk_that_is_full_halfway_ends_the_run(notebook, folder, small_disk, capsys, filled_by):
    out = small_disk() / "out"
    rest, cells = str(out.parent / "rest"), ["print('x' * 200_000)"]
    if filled_by == "the store":
        fill = f"with open({rest!r}, 'wb', buffering=0) as file:\n    while file.write(bytes(4096)): pass"
        cells = [f"import contextlib\nwith contextlib.suppress(OSError):\n    exec({fill!r})", RECORDING]
    notebook("01_quick", "print('quick')")
    notebook("02_good", *cells, parameters=GOOD_PARAMETERS)
    notebook("03_late", "1")
    assert main(["run", "--folder", str(folder), "--out", str(out)]) == 2
    told = capsys.readouterr()
    assert told.err.splitlines()[-1].startswith(f"nbhelpers: {out}")
    assert "No space left on device" in told.err
    assert "03_late" not in told.out
    for file in out.rglob("*.*"):
        assert json.loads(file.read_text()), f"{file} is half-written"
    (out.parent / "rest").unlink(missing_ok=True)
    subprocess.run(["mount", "-o", "remount,size=9m", str(out.parent)], check=True)
    if filled_by == "the notebook itself":
        assert main(["run", "--folder", str(folder), "--out", str(out)]) == 0
        assert "01_quick: kept" in capsys.readouterr().out


def test_files_and_folders_are_seen_from_where_one_stands_and_read_again_once_changed(
    notebook, folder, tmp_path, monkeypatch
):
    source = "from pathlib import Path\nprint(Path(text).read_text(), sorted(Path(sweep).rglob('*.parquet')))"
    parameters = "text = 'moby-dick'  # file\nsweep = None  # folder"
    notebook("01_reads", f"{source}\nPath('left').touch()", parameters=parameters)
    given = {"text": "mine.txt", "sweep": "mine"}
    run = {"folder": folder, "out": tmp_path / "out", "parameters": given, "progress": False}
    for place, words in (("here", "the whale"), ("there", "the sea"), ("there", "the ship")):
        (tmp_path / place / "mine" / "runs").mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "mine.txt").write_text(words)
        monkeypatch.chdir(tmp_path / place)
        (ran,) = run_notebooks(**run)
        assert ran.status == "passed", "another file, or one that changed, is another text"
        assert f"{words} []" in ran.output.read_text()
        assert (tmp_path / place / "left").exists()
    assert statuses(run_notebooks(**run)) == {"01_reads": "kept"}
    (tmp_path / "there" / "mine" / "runs" / "b.parquet").touch()
    (ran,) = run_notebooks(**run)
    assert ran.status == "passed", "a sweep that went on is another one"
    assert "b.parquet" in ran.output.read_text()
    with pytest.raises(FileNotFoundError, match=r"no folder of a sweep at .*nowhere \(sweep='nowhere'\)"):
        run_notebooks(**run | {"parameters": {"sweep": "nowhere"}})


def test_papermill_alone(collection, tmp_path, monkeypatch):
    monkeypatch.setattr(local_provisioner, "launch_kernel", launch_kernel)  # which imports the package itself
    monkeypatch.chdir(collection)
    given = ["-p", "length", "5", "-p", "results", str(tmp_path / "store"), "--no-progress-bar"]
    papermill(["02_good.ipynb", str(tmp_path / "out.ipynb"), *given], standalone_mode=False)
    assert nbformat.read(tmp_path / "out.ipynb", as_version=4).metadata.papermill.exception is None
    assert load_results(tmp_path / "store")["value"].tolist() == [10]

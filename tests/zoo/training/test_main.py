import json
import shutil
from unittest.mock import Mock

import pytest

from nbhelpers.zoo.settings import PRESETS
from nbhelpers.zoo.training import __main__ as command_line
from nbhelpers.zoo.training.__main__ import main

pytestmark = pytest.mark.usefixtures("small_yardstick")


@pytest.fixture
def command(moby_dick, tmp_path):
    shutil.copytree(moby_dick.folder, tmp_path / "text")
    return ["train-all", "--out", str(tmp_path)]


def test_a_run_from_the_command_line(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(PRESETS, "nano", PRESETS["test"]._replace(n_tokens=1024))
    assert main([*command, "--only", "alibi-seed2", "rope-bos-seed1"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("run 1 of 2: alibi-seed2\nalibi-seed2: step 1/2, loss 7.6")
    run = json.loads((tmp_path / "runs" / "rope-bos-seed1" / "run.json").read_text())
    assert run["settings"] | {"bos": True, "seed": 1, "n_tokens": 1024} == run["settings"]
    assert main([*command, "--only", "rotary-seed0"]) == 2
    assert "no run 'rotary-seed0'; there are rope-seed0, prope-seed0" in capsys.readouterr().err


def test_train_all_goes_on_after_a_failure_and_says_what_failed(command, capsys, monkeypatch):
    asked = []

    def spy(settings, corpus, folder, *, device, report):
        asked.append(settings.name)
        if settings.arm == "alibi":
            raise OSError("no room")

    monkeypatch.setattr(command_line, "train", spy)
    assert main(command) == 1
    assert asked == [settings.name for settings in command_line.arms()]
    captured = capsys.readouterr()
    assert "alibi-seed1 failed: no room" in captured.out
    assert "3 runs failed: alibi-seed0, alibi-seed1, alibi-seed2" in captured.err


def test_mistakes_are_said_in_a_sentence(tmp_path, capsys):
    assert main(["collect", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "no finished run in" in error
    assert "Traceback" not in error


def test_ctrl_c_is_answered(command, capsys, monkeypatch):
    monkeypatch.setattr(command_line, "prepare", Mock(side_effect=KeyboardInterrupt))
    assert main(command) == 130
    assert "the same command goes on from the last state" in capsys.readouterr().err

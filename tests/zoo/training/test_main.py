import json
import shutil
from unittest.mock import Mock

import pytest
import torch

from nbhelpers.zoo.settings import PRESETS, Settings
from nbhelpers.zoo.training import __main__ as command_line
from nbhelpers.zoo.training.__main__ import main

pytestmark = pytest.mark.usefixtures("small_yardstick")
TEST = ["--preset", "test", "--tokens", "1024", "--precision", "float32", "--device", "cpu"]


@pytest.fixture
def out(moby_dick, tmp_path):
    shutil.copytree(moby_dick.folder, tmp_path / "text")
    return tmp_path


def test_a_run_from_the_command_line(out, capsys):
    assert main(["train", "--out", str(out), "--encoding", "alibi", "--seed", "2", "--bos", *TEST]) == 0
    assert capsys.readouterr().out.startswith("alibi-bos-test-seed2: step 2/2, loss 7.6")
    run = json.loads((out / "runs" / "alibi-bos-test-seed2" / "run.json").read_text())
    expected = Settings(preset="test", encoding="alibi", bos=True, seed=2, n_tokens=1024, precision="float32")
    assert run["settings"] == expected.to_dict()


def test_train_all_trains_what_is_asked_for_and_says_what_failed(out, capsys, monkeypatch):
    monkeypatch.setitem(PRESETS, "pico", PRESETS["test"])
    threads, asked = torch.get_num_threads(), []

    def spy(settings, corpus, folder, *, device, compiled, report):
        asked.append((settings.name, device, compiled, torch.get_num_threads()))
        if settings.seed == 1:
            raise OSError("no room")

    monkeypatch.setattr(command_line, "train", spy)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    command = ["train-all", "--out", str(out), "--presets", "pico", "--seeds", "2", "--compile"]
    try:
        assert main([*command, "--threads", "3"]) == 1
    finally:
        torch.set_num_threads(threads)
    assert asked == [(f"rope-pico-seed{seed}", "cuda", True, 3) for seed in (0, 1)]
    captured = capsys.readouterr()
    assert "rope-pico-seed1 failed: no room" in captured.out
    assert "1 of 2 runs failed: rope-pico-seed1" in captured.err


def test_mistakes_are_said_in_a_sentence(out, capsys):
    assert main(["collect", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "no finished run in" in error
    assert "Traceback" not in error


def test_ctrl_c_is_answered(out, capsys, monkeypatch):
    monkeypatch.setattr(command_line, "_corpus", Mock(side_effect=KeyboardInterrupt))
    assert main(["train", "--out", str(out), *TEST]) == 130
    assert "the same command goes on from the last state" in capsys.readouterr().err

"""The command line of the zoo: a whole small round, and how mistakes are said."""

import json
import shutil

import pytest
import torch

from nbhelpers.zoo import train as training
from nbhelpers.zoo.settings import PRESETS, Settings
from nbhelpers.zoo.training import __main__ as command_line
from nbhelpers.zoo.training.__main__ import main

pytestmark = pytest.mark.usefixtures("small_yardstick")
TEST = ["--preset", "test", "--tokens", "1024", "--precision", "float32", "--device", "cpu"]


@pytest.fixture
def out(moby_dick, tmp_path):
    """A folder in which the text is prepared."""
    shutil.copytree(moby_dick.folder, tmp_path / "text")
    return tmp_path


def test_a_run_from_the_command_line(out, capsys):
    assert main(["train", "--out", str(out), "--encoding", "alibi", "--seed", "2", "--bos", *TEST]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("alibi-bos-test-seed2: step 2/2, loss 7.6")
    assert said[-1] == str(out / "runs" / "alibi-bos-test-seed2")
    run = json.loads((out / "runs" / "alibi-bos-test-seed2" / "run.json").read_text())
    expected = Settings(preset="test", encoding="alibi", bos=True, seed=2, n_tokens=1024, precision="float32")
    assert run["settings"] == expected.to_dict()


def test_baselines(out, capsys):
    assert main(["baselines", "--out", str(out)]) == 0
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert 7 > losses[0] > losses[1] > losses[2] > 2


def test_prepare_says_what_there_is(out, capsys):
    assert main(["prepare", "--out", str(out), "--text", "moby-dick"]) == 0
    assert "tokens train 332,636, validation 21,545, measurement 26,461" in capsys.readouterr().out


def test_train_all_trains_what_is_asked_for_and_says_what_failed(out, capsys, monkeypatch):
    monkeypatch.setitem(PRESETS, "pico", PRESETS["test"])
    asked, original = [], training.train

    def spy(settings, *args, **options):
        asked.append(settings.name)
        if settings.seed == 1:
            raise OSError("no room")
        return original(settings, *args, **options)

    monkeypatch.setattr(training, "train", spy)
    command = ["train-all", "--out", str(out), "--presets", "pico", "--seeds", "2", "--tokens", "8192"]
    assert main([*command, "--precision", "float32", "--device", "cpu"]) == 1
    assert asked == ["rope-pico-seed0", "rope-pico-seed1"]
    captured = capsys.readouterr()
    assert "rope-pico-seed1 failed: no room" in captured.out
    assert "1 of 2 runs failed: rope-pico-seed1" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "--out", "new", "--text", "nowhere.txt"], "There is no text 'nowhere.txt'"),
        (["train", "--text", "mine.txt"], "holds the tokens of moby-dick, not of mine.txt"),
        (["train", "--preset", "test", "--tokens", "5"], "5 tokens are less than one step of 512"),
        (["collect"], "no finished run in"),
    ],
)
def test_mistakes_are_said_in_a_sentence(out, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(out)
    place = [] if "--out" in arguments else ["--out", "."]
    assert main([*arguments, *place]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nbhelpers.zoo: ")
    assert message in error
    assert "Traceback" not in error
    with pytest.raises((ValueError, OSError), match=message.replace(".", r"\.")):
        main([*arguments, *place, "--traceback"])


def test_unknown_words_are_refused_by_name(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--encoding", "rotary"])
    assert stopped.value.code == 2
    assert "invalid choice: 'rotary'" in capsys.readouterr().err


def test_text_too_short_to_measure_on(moby_dick, tmp_path, capsys, monkeypatch):
    from nbhelpers.zoo import measure

    monkeypatch.setattr(measure, "N_VALIDATION", 96)
    shutil.copytree(moby_dick.folder, tmp_path / "text")
    assert main(["train", "--out", str(tmp_path), *TEST]) == 2
    assert "have room for" in capsys.readouterr().err


def test_ctrl_c_is_answered(out, capsys, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "_corpus", interrupted)
    assert main(["train", "--out", str(out), *TEST]) == 130
    assert "the same command goes on from the last state" in capsys.readouterr().err


def test_device_and_threads(out, monkeypatch):
    threads = torch.get_num_threads()
    seen = []

    def spy(settings, corpus, folder, *, device, compiled, report):
        seen.append((device, compiled, torch.get_num_threads()))
        return folder

    monkeypatch.setattr(training, "train", spy)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        main(["train", "--out", str(out), "--threads", "3", "--compile"])
    finally:
        torch.set_num_threads(threads)
    assert seen == [("cuda", True, 3)]

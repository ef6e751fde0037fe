"""Runs to their end: what they leave, and what becomes of those that are killed or meet a full disk."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock, Timeout
from tiny_zoo import shrink

from nbhelpers import files
from nbhelpers.inputs.zoo import ZooForLanguageModeling
from nbhelpers.zoo.settings import Settings
from nbhelpers.zoo.train import Trainer
from nbhelpers.zoo.training import runs
from nbhelpers.zoo.training.runs import train

STEP = 512  # tokens of one update of the preset "test"
N_STEPS = 3
SETTINGS = Settings(preset="test", n_tokens=N_STEPS * STEP, precision="float32")
QUIET = [].append  # a report that nobody reads

pytestmark = pytest.mark.usefixtures("small_yardstick")


def train_and_kill(step, corpus, out):
    """Kill at the worst moment: the checkpoint is in the table, its weights are written, the state is not."""
    save = torch.save

    def save_or_die(state, file):
        if state["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        save(state, file)

    def work():
        torch.save = save_or_die
        train(SETTINGS, corpus, out, report=QUIET)

    (process := multiprocessing.get_context("fork").Process(target=work)).start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def assert_same_run(got, expected):
    (weights,), (expected_weights,) = (run.glob("weights/step*/*.safetensors") for run in (got, expected))
    assert weights.parent.name == expected_weights.parent.name
    assert weights.read_bytes() == expected_weights.read_bytes()
    frame, other_frame = (pd.read_parquet(folder / "measurements.parquet") for folder in (got, expected))
    pd.testing.assert_frame_equal(frame, other_frame, check_exact=True)
    assert (got / "run.json").exists()
    assert not (got / "state.pt").exists()


@pytest.fixture(scope="module")
def whole(moby_dick, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        return train(SETTINGS, moby_dick, tmp_path_factory.mktemp("whole"), report=QUIET)


def test_what_a_finished_run_leaves(whole, moby_dick):
    run = json.loads((whole / "run.json").read_text())
    assert run["settings"] == vars(SETTINGS)
    assert run["text"]["fingerprint"] == moby_dick.fingerprint
    frame = pd.read_parquet(whole / "measurements.parquet")
    assert sorted(frame.step.unique()) == list(range(N_STEPS + 1))
    train_loss = frame[frame.metric == "train_loss"].set_index("step").value
    trainer = Trainer(SETTINGS, moby_dick)
    losses = [trainer.update() for _ in range(N_STEPS)]
    assert np.isnan(train_loss[0])
    assert train_loss[1:].tolist() == pytest.approx(losses, rel=1e-6)  # of the updates since the one before
    final = frame[frame.step == N_STEPS].metric
    assert {"end_loss_256", "end_loss_1024"} <= {*final} - {*frame[frame.step < N_STEPS].metric}
    before = content(whole)
    train(SETTINGS, moby_dick, whole.parent, report=QUIET)
    assert before == content(whole), "left alone"


@pytest.mark.parametrize("at", [0, 2, N_STEPS])
def test_killed_at_a_checkpoint_and_gone_on_with(whole, moby_dick, tmp_path, at):
    train_and_kill(at, moby_dick, tmp_path)
    said = []
    got = train(SETTINGS, moby_dick, tmp_path, report=said.append)
    told = f"goes on from step {at - 1} of {N_STEPS}" if at else f"step 1/{N_STEPS}"
    assert said[0].startswith(f"rope-test-seed0: {told}")
    assert_same_run(got, whole)


def test_killed_between_checkpoints_and_gone_on_with(moby_dick, tmp_path, monkeypatch):
    settings = dataclasses.replace(SETTINGS, encoding="alibi", n_tokens=5 * STEP)
    monkeypatch.setattr(Settings, "checkpoints", lambda self: [0, 4, 5])
    monkeypatch.setattr(runs, "STATE_EVERY", 2)
    expected = train(settings, moby_dick, tmp_path / "whole", report=QUIET)
    update = Trainer.update

    def kill(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", kill)
        with pytest.raises(KeyboardInterrupt):
            train(settings, moby_dick, tmp_path / "killed", report=QUIET)
    said = []
    got = train(settings, moby_dick, tmp_path / "killed", report=said.append)
    assert said[0] == "alibi-test-seed0: goes on from step 2 of 5"
    assert_same_run(got, expected)  # train_loss at step 4 is the mean over updates of both processes


@pytest.fixture(scope="module")
def killed(whole, moby_dick, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        train_and_kill(2, moby_dick, out := tmp_path_factory.mktemp("half"))
    return out / SETTINGS.name


@pytest.fixture
def half(killed, tmp_path):
    return shutil.copytree(killed, tmp_path / SETTINGS.name)


def content(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("name", ["state.pt", "measurements.parquet"])
def test_a_half_written_file_is_not_gone_on_from(half, moby_dick, name):
    good = (half / name).read_bytes()
    (half / name).write_bytes(good[: len(good) // 2])
    before = content(half)
    with pytest.raises(ValueError, match=r"is damaged .* Nothing was changed"):
        train(SETTINGS, moby_dick, half.parent, report=QUIET)
    assert content(half) == before


def test_what_a_kill_left_half_written_is_passed_by(half, moby_dick, whole):
    (half / ".state.pt.123.partial").write_bytes(b"half a")
    (half / "weights" / ".step3.123.partial").mkdir(parents=True)
    (half / "weights" / "step3").mkdir()
    (half / "weights" / "step3" / "config.json").write_text("{")
    assert_same_run(train(SETTINGS, moby_dick, half.parent, report=QUIET), whole)


def test_another_run_or_text_in_the_folder_is_refused(half, moby_dick):
    before = content(half)
    longer = dataclasses.replace(SETTINGS, n_tokens=5120)
    with pytest.raises(ValueError, match=r"holds another run: settings .*1536.* not .*5120"):
        train(longer, moby_dick, half.parent, report=QUIET)
    others = dataclasses.replace(moby_dick, fingerprint="feed")
    with pytest.raises(ValueError, match=r"holds another run: text .*, not feed"):
        train(SETTINGS, others, half.parent, report=QUIET)
    assert content(half) == before


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        (runs.Path, "write_bytes", 2),
        (files, "write_parquet", 2),
        (ZooForLanguageModeling, "save_pretrained", 1),
        (runs.Path, "write_text", 1),  # run.json, at the end
    ],
)
def test_a_full_disk_loses_nothing(half, moby_dick, whole, monkeypatch, owner, name, at):
    original, n_calls = getattr(owner, name), 0

    def fail_late(*args, **options):
        nonlocal n_calls
        n_calls += 1
        if n_calls == at:
            raise OSError(28, "No space left on device")
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail_late)
        with pytest.raises(OSError, match="No space left"):
            train(SETTINGS, moby_dick, half.parent, report=QUIET)
    assert not [path for path in half.rglob("*") if path.name.endswith(".partial")]
    assert_same_run(train(SETTINGS, moby_dick, half.parent, report=QUIET), whole)


def test_two_processes_do_not_train_one_run(half, moby_dick):
    with FileLock(half / ".lock"), pytest.raises(Timeout):
        train(SETTINGS, moby_dick, half.parent, report=QUIET)

"""Runs to their end: what they leave, and what becomes of those that are killed or meet a full disk."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock, Timeout
from tiny_zoo import SMALL, shrink

from nbhelpers import files
from nbhelpers.inputs.zoo import ZooForLanguageModeling
from nbhelpers.zoo.settings import Settings
from nbhelpers.zoo.train import Trainer
from nbhelpers.zoo.training import runs
from nbhelpers.zoo.training.runs import train

STEP = 512  # tokens of one update of the preset "test"
N_STEPS = 5
SETTINGS = Settings(preset="test", n_tokens=N_STEPS * STEP, precision="float32")
QUIET = [].append  # a report that nobody reads

pytestmark = pytest.mark.usefixtures("small_yardstick")


class Killed(Exception):
    """Stands for whatever ends a process."""


def train_and_kill(step, corpus, out, patch):
    """Kill at the worst moment: the checkpoint is in the table, its weights are written, the state is not."""
    save = torch.save

    def kill(state, file):
        if state["step"] == step:
            raise Killed
        save(state, file)

    patch.setattr(torch, "save", kill)
    with pytest.raises(Killed):
        train(SETTINGS, corpus, out, report=QUIET)


def assert_same_run(got, expected):
    weights, other_weights = (folder / "weights/step5/model.safetensors" for folder in (got, expected))
    assert weights.read_bytes() == other_weights.read_bytes()
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


@pytest.mark.parametrize("at", [0, N_STEPS])
def test_killed_at_a_checkpoint_and_gone_on_with(whole, moby_dick, tmp_path, monkeypatch, at):
    with monkeypatch.context() as patch:
        train_and_kill(at, moby_dick, tmp_path, patch)
    assert_same_run(train(SETTINGS, moby_dick, tmp_path, report=QUIET), whole)


def test_killed_between_checkpoints_and_gone_on_with(moby_dick, tmp_path, monkeypatch):
    settings = dataclasses.replace(SETTINGS, encoding="alibi")
    monkeypatch.setattr(Settings, "checkpoints", lambda self: [0, 4, N_STEPS])
    monkeypatch.setattr(runs, "STATE_EVERY", 2)
    expected = train(settings, moby_dick, tmp_path / "whole", report=QUIET)
    update = Trainer.update

    def kill(self):
        if self.step == 3:
            raise Killed
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", kill)
        with pytest.raises(Killed):
            train(settings, moby_dick, tmp_path / "killed", report=QUIET)
    said = []
    got = train(settings, moby_dick, tmp_path / "killed", report=said.append)
    assert said[0] == f"alibi-test-seed0: goes on from step 2 of {N_STEPS}"
    assert_same_run(got, expected)  # train_loss at step 4 is the mean over updates of both processes


SCRIPT = """
import os, signal, sys
import torch
from nbhelpers.zoo import measure
from nbhelpers.zoo.settings import Settings
from nbhelpers.zoo.text import load_corpus
from nbhelpers.zoo.training.runs import train

save = torch.save

def kill(state, file):
    if state["step"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, file)

torch.save = kill
torch.set_num_threads({threads})
vars(measure).update({small})
settings = Settings(preset="test", n_tokens={n_tokens}, precision="float32")
train(settings, load_corpus(sys.argv[1]), sys.argv[2])
"""


def test_killed_by_the_system_and_gone_on_with(whole, moby_dick, tmp_path):
    script = SCRIPT.format(small=SMALL, n_tokens=SETTINGS.n_tokens, threads=torch.get_num_threads())
    command = [sys.executable, "-c", script, str(moby_dick.folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -9, done.stderr
    said = []
    got = train(SETTINGS, moby_dick, tmp_path, report=said.append)
    assert said[0] == f"rope-test-seed0: goes on from step 2 of {N_STEPS}"
    assert_same_run(got, whole)


@pytest.fixture
def half(moby_dick, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        train_and_kill(3, moby_dick, tmp_path, patch)
    return tmp_path / SETTINGS.name


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
    (half / "weights" / ".step5.123.partial").mkdir(parents=True)
    (half / "weights" / "step5").mkdir()
    (half / "weights" / "step5" / "config.json").write_text("{")
    assert_same_run(train(SETTINGS, moby_dick, half.parent, report=QUIET), whole)


def test_another_run_or_text_in_the_folder_is_refused(half, moby_dick):
    before = content(half)
    longer = dataclasses.replace(SETTINGS, n_tokens=5120)
    with pytest.raises(ValueError, match=r"holds another run: settings .*2560.* not .*5120"):
        train(longer, moby_dick, half.parent, report=QUIET)
    others = dataclasses.replace(moby_dick, fingerprint="feed")
    with pytest.raises(ValueError, match=r"holds another run: text .*, not feed"):
        train(SETTINGS, others, half.parent, report=QUIET)
    assert content(half) == before


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        (runs.Path, "write_bytes", 3),
        (files, "write_parquet", 3),
        (ZooForLanguageModeling, "save_pretrained", 1),
        (runs.Path, "write_text", 1),  # run.json, at the end
    ],
)
def test_a_full_disk_loses_nothing(moby_dick, whole, tmp_path, monkeypatch, owner, name, at):
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
            train(SETTINGS, moby_dick, tmp_path, report=QUIET)
    folder = tmp_path / SETTINGS.name
    assert not [path for path in folder.rglob("*") if path.name.endswith(".partial")]
    assert_same_run(train(SETTINGS, moby_dick, tmp_path, report=QUIET), whole)


def test_two_processes_do_not_train_one_run(half, moby_dick):
    with FileLock(half / ".lock"), pytest.raises(Timeout):
        train(SETTINGS, moby_dick, half.parent, report=QUIET)

"""Training: known losses, the same data for all, and runs that are killed, crowded, or meet a full disk."""

import json
import math
import shutil
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_zoo import SMALL

from nbhelpers.inputs.zoo import ENCODINGS
from nbhelpers.zoo import measure
from nbhelpers.zoo.settings import Settings
from nbhelpers.zoo.text import Corpus
from nbhelpers.zoo.train import Trainer, train
from nbhelpers.zoo.training import runs
from nbhelpers.zoo.training.runs import BusyError, RunFolder

STEP = 512  # tokens of one update of the preset "test"
N_STEPS = 5
SETTINGS = Settings(preset="test", n_tokens=N_STEPS * STEP, precision="float32")
# First losses on the bundled book with float32; a run of the same settings repeats them to rounding.
LOSSES = {
    ("rope", True): [7.622943, 7.62191, 7.625446, 7.612574, 7.573119, 7.582958, 7.556183, 7.489686],
    ("t5", False): [7.598364, 7.588231, 7.533452, 7.497921, 7.457966, 7.385063, 7.301763, 7.225638],
}

pytestmark = pytest.mark.usefixtures("small_yardstick")


class Killed(Exception):
    """Stands for whatever ends a process."""


def quiet(line):
    """Report nothing."""


def state_of(folder):
    """Return all that a finished run is: final weights, and the table without its order of writing."""
    frame = pd.read_parquet(folder / "measurements.parquet")
    return load_file(folder / "weights" / "final" / "model.safetensors"), frame


def assert_same_run(got, expected):
    (weights, frame), (other_weights, other_frame) = state_of(got), state_of(expected)
    assert weights.keys() == other_weights.keys()
    for name in weights:
        assert torch.equal(weights[name], other_weights[name]), name
    pd.testing.assert_frame_equal(frame, other_frame, check_exact=True)
    assert json.loads((got / "run.json").read_text())["finished"]
    assert not (got / "state.safetensors").exists()


@pytest.fixture(scope="module")
def whole(moby_dick, tmp_path_factory):
    """A run that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(measure, name, value)
        return train(SETTINGS, moby_dick, tmp_path_factory.mktemp("whole"), report=quiet)


# Learning


@pytest.mark.parametrize(("encoding", "causal"), LOSSES)
def test_first_losses_are_those_recorded(moby_dick, encoding, causal):
    trainer = Trainer(
        Settings(preset="test", precision="float32", encoding=encoding, causal=causal), moby_dick
    )
    losses = [trainer.update() for _ in range(8)]
    assert losses == pytest.approx(LOSSES[encoding, causal], abs=2e-4)


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="no C++ compiler: compiled training is not tested here"
)
def test_compiled_training_learns_the_same(moby_dick):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch.compile does inside
        trainer = Trainer(Settings(preset="test", precision="float32"), moby_dick, compiled=True)
        losses = [trainer.update() for _ in range(2)]
    assert losses == pytest.approx(LOSSES["rope", True][:2], abs=2e-4)
    assert trainer.snapshot().state_dict().keys() == trainer.model.state_dict().keys(), "no wrapper's names"


def test_a_text_that_repeats_is_learned():
    tokens = torch.arange(3000, dtype=torch.int32) % 50 + 2
    corpus = Corpus({"train": tokens}, {"train": torch.tensor([3000])}, None, "", [])
    trainer = Trainer(Settings(preset="test", precision="float32"), corpus)
    losses = [trainer.update() for _ in range(trainer.settings.n_steps)]
    assert losses[0] == pytest.approx(math.log(2048), abs=0.2)
    assert losses[-1] < losses[0] - 3


def test_one_update_is_that_of_adamw_written_out():
    tokens = torch.arange(3000, dtype=torch.int32) % 50 + 2
    corpus = Corpus({"train": tokens}, {"train": torch.tensor([3000])}, None, "", [])
    trainer = Trainer(SETTINGS, corpus)
    weight = trainer.model.model.layers[0].mlp_in.weight
    before = weight.detach().clone()
    gradients = []
    trainer.optimizer.register_step_pre_hook(lambda *_: gradients.append(weight.grad.detach().clone()))
    trainer.update()
    rate = SETTINGS.learning_rate(0)
    # At the first step of Adam the bias-corrected moments are g and g², so every entry moves by the rate.
    direction = gradients[0] / (gradients[0].abs() + 1e-8)
    expected = before * (1 - rate * 0.1) - rate * direction
    assert (weight - expected).abs().max() < 1e-6
    assert math.sqrt(sum(float((g**2).sum()) for g in gradients)) <= SETTINGS.clip


def test_runs_of_one_seed_see_the_same_data_in_the_same_order():
    asked = []

    class Spy:
        vocab_size = 2048

        def batch(self, n, length, *, seed, step):
            asked.append((n, length, seed, step))
            return torch.randint(2, 2048, (n, length), generator=torch.Generator().manual_seed(step))

    for encoding in ENCODINGS:
        trainer = Trainer(Settings(preset="test", encoding=encoding, seed=5, precision="float32"), Spy())
        for _ in range(3):
            trainer.update()
    assert asked == [(2, 257, 5, step) for step in range(3)] * len(ENCODINGS)


def test_a_run_that_diverges_says_so(moby_dick):
    trainer = Trainer(SETTINGS, moby_dick)
    with torch.no_grad():
        trainer.model.model.token.weight[:] = torch.inf
    with pytest.raises(RuntimeError, match=r"rope-test-seed0 diverged: loss nan.* at step 0"):
        trainer.update()


def test_what_is_kept_and_measured_has_float16_weights(moby_dick):
    trainer = Trainer(SETTINGS, moby_dick)
    model = trainer.snapshot()
    for kept, trained in zip(model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(kept, trained.half().float())
    assert not model.training
    assert trainer.model.training


# A whole run


def test_what_a_finished_run_leaves(whole, moby_dick):
    run = json.loads((whole / "run.json").read_text())
    assert run["settings"] == SETTINGS.to_dict()
    assert run["text"]["fingerprint"] == moby_dick.fingerprint
    assert run["seconds"] > 0
    frame = pd.read_parquet(whole / "measurements.parquet")
    assert sorted(frame.step.unique()) == list(range(N_STEPS + 1))
    train_loss = frame[frame.metric == "train_loss"].set_index("step").value
    trainer = Trainer(SETTINGS, moby_dick)
    losses = [trainer.update() for _ in range(N_STEPS)]
    assert np.isnan(train_loss[0])
    assert train_loss[1:].tolist() == pytest.approx(losses, rel=1e-6)  # of the updates since the one before
    final = frame[(frame.step == N_STEPS) & (frame.metric == "validation_loss")].value.item()
    assert run["final"]["validation_loss"] == pytest.approx(final)
    assert {"end_loss_256", "end_loss_1024"} <= run["final"].keys()


def test_a_finished_run_is_left_alone(whole, moby_dick):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != ".lock"}
    said = []
    train(SETTINGS, moby_dick, whole.parent, report=said.append)
    assert said == ["rope-test-seed0: finished before, nothing to do"]
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != ".lock"}


def test_progress_is_told(moby_dick, tmp_path):
    said = []
    settings = Settings(preset="test", n_tokens=STEP)
    train(settings, moby_dick, tmp_path, report=said.append)
    assert len(said) == 1
    assert said[0].startswith("rope-test-seed0: step 1/1, loss 7.6")
    assert said[0].endswith("tokens/s with measurements, 0 s left")


# Killed and gone on with


@pytest.mark.parametrize("at", [0, 3, N_STEPS])
def test_killed_at_a_checkpoint_and_gone_on_with(whole, moby_dick, tmp_path, at):
    # The worst moment: the checkpoint is in the table, its weights are written, the state is not.
    def kill(step, frame, model):
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        train(SETTINGS, moby_dick, tmp_path, report=quiet, watch=kill)
    said = []
    got = train(SETTINGS, moby_dick, tmp_path, report=said.append)
    if at:
        assert said[0] == f"rope-test-seed0: goes on from step {at - 1} of {N_STEPS}"
    assert_same_run(got, whole)


def test_killed_between_checkpoints_and_gone_on_with(moby_dick, tmp_path, monkeypatch):
    settings = Settings(preset="test", n_tokens=N_STEPS * STEP, precision="float32", encoding="alibi")
    monkeypatch.setattr(Settings, "checkpoints", lambda self: [0, 4, N_STEPS])
    monkeypatch.setattr("nbhelpers.zoo.train.STATE_EVERY", 2)
    expected = train(settings, moby_dick, tmp_path / "whole", report=quiet)
    update, made = Trainer.update, []

    def kill(self):
        if self.step == 3:
            raise Killed
        made.append(self.step)
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", kill)
        with pytest.raises(Killed):
            train(settings, moby_dick, tmp_path / "killed", report=quiet)
    assert made == [0, 1, 2]
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
from nbhelpers.zoo.train import train

def kill(step, frame, model):
    if step == 3:
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads({threads})
for name, value in {small}.items():
    setattr(measure, name, value)
settings = Settings(preset="test", n_tokens={n_tokens}, precision="float32")
train(settings, load_corpus(sys.argv[1]), sys.argv[2], watch=kill)
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


# Wrong input: a clear error, and nothing lost


@pytest.fixture(scope="module")
def killed(moby_dick, tmp_path_factory):
    """A run that was killed in the middle."""

    def kill(step, frame, model):
        if step == 3:
            raise Killed

    out = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(measure, name, value)
        with pytest.raises(Killed):
            train(SETTINGS, moby_dick, out, report=quiet, watch=kill)
    return out / SETTINGS.name


@pytest.fixture
def half(killed, tmp_path):
    """A copy of it."""
    return shutil.copytree(killed, tmp_path / SETTINGS.name)


def content(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("name", ["state.safetensors", "measurements.parquet", "run.json"])
def test_a_half_written_file_is_not_gone_on_from(half, moby_dick, whole, name):
    good = (half / name).read_bytes()
    (half / name).write_bytes(good[: len(good) // 2])
    before = content(half)
    with pytest.raises(ValueError, match=rf"{name} is damaged .* Nothing was changed.* move .* away"):
        train(SETTINGS, moby_dick, half.parent, report=quiet)
    assert content(half) == before
    (half / name).write_bytes(good)
    assert_same_run(train(SETTINGS, moby_dick, half.parent, report=quiet), whole)


def test_what_a_kill_left_half_written_is_passed_by(half, moby_dick, whole):
    (half / ".state.safetensors.123.partial").write_bytes(b"half a")
    (half / "weights" / ".final.123.partial").mkdir(parents=True)
    (half / "weights" / "final").mkdir()
    (half / "weights" / "final" / "config.json").write_text("{")
    assert_same_run(train(SETTINGS, moby_dick, half.parent, report=quiet), whole)


def test_a_state_without_its_run_is_refused(half, moby_dick):
    (half / "run.json").unlink()
    with pytest.raises(ValueError, match=r"holds a training state without run.json\. Nothing was changed"):
        train(SETTINGS, moby_dick, half.parent, report=quiet)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (SETTINGS.n_tokens * 2, r"holds another run: n_tokens 2560, asked for 5120.* another --out"),
        (None, r"holds another run: n_tokens 2560, asked for 20480"),
    ],
)
def test_other_settings_in_the_folder(half, moby_dick, other, said):
    before = content(half)
    with pytest.raises(ValueError, match=said):
        train(Settings(preset="test", n_tokens=other, precision="float32"), moby_dick, half.parent)
    assert content(half) == before


def test_another_preset_in_the_folder(half, moby_dick):
    # Runs of another preset have another name; the folder was renamed by hand.
    nano = Settings(n_tokens=8192, precision="float32")
    shutil.copytree(half, half.parent / nano.name)
    with pytest.raises(ValueError, match=r"holds another run: preset 'test', asked for 'nano'; n_tokens"):
        train(nano, moby_dick, half.parent, report=quiet)


def test_another_text_or_vocabulary_on_resume(half, moby_dick):
    others = SimpleNamespace(fingerprint="feed", vocab_size=1000, sources=["mine.txt"])
    before = content(half)
    message = (
        rf"trained on another text or vocabulary: 2048 tokens, fingerprint {moby_dick.fingerprint}; the text "
        r"given has 1000 tokens, fingerprint feed\. Give the same --text"
    )
    with pytest.raises(ValueError, match=message):
        train(SETTINGS, others, half.parent, report=quiet)
    assert content(half) == before


@pytest.mark.parametrize("what", ["state", "table", "weights", "run.json"])
def test_a_full_disk_loses_nothing(moby_dick, whole, tmp_path, monkeypatch, what):
    full = OSError(28, "No space left on device")
    n_calls = 0

    def fail_late(*args, **options):
        nonlocal n_calls
        n_calls += 1
        if n_calls == {"state": 3, "table": 3, "weights": 1, "run.json": 2}[what]:
            raise full
        return original(*args, **options)

    from nbhelpers.inputs.zoo import ZooForLanguageModeling

    owner, name = {
        "state": (runs, "save_file"),
        "table": (runs.pq, "write_table"),
        "weights": (ZooForLanguageModeling, "save_pretrained"),
        "run.json": (runs.Path, "write_text"),
    }[what]
    original = getattr(owner, name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail_late)
        with pytest.raises(OSError, match=r"Could not write .*No space left.* goes on from the last state"):
            train(SETTINGS, moby_dick, tmp_path, report=quiet)
    folder = tmp_path / SETTINGS.name
    assert not [path for path in folder.rglob("*") if path.name.endswith(".partial")]
    assert_same_run(train(SETTINGS, moby_dick, tmp_path, report=quiet), whole)


def test_a_folder_that_cannot_be_made(moby_dick, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"Could not write .*file"):
        train(SETTINGS, moby_dick, tmp_path / "file", report=quiet)


def test_two_processes_do_not_train_one_run(half, moby_dick, whole):
    said = r"Another process is training in .*; wait for it, or end it"
    with RunFolder(half, SETTINGS, moby_dick).locked(), pytest.raises(BusyError, match=said):
        train(SETTINGS, moby_dick, half.parent, report=quiet)
    assert_same_run(train(SETTINGS, moby_dick, half.parent, report=quiet), whole)

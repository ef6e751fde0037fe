import math
import re
from unittest.mock import Mock

import pytest
from tiny_sweeps import leave_run, parts_grid

from nbhelpers.__main__ import main
from nbhelpers.hooks.capture import plan
from nbhelpers.inputs import files as model_files
from nbhelpers.inputs.models import load_model, load_skeleton
from nbhelpers.sweeps import estimate
from nbhelpers.sweeps.estimate import LIBRARY_MB, Estimator
from nbhelpers.sweeps.grid import make_grid


@pytest.fixture
def no_hub(monkeypatch):
    ask = Mock(side_effect=ConnectionError("the Hub could not be reached"))
    monkeypatch.setattr(model_files, "ask_hub", ask)
    return ask


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.setattr(estimate, "matmul_speed", lambda device: 1e9)


def run_of(model, **changes):
    sizes = {"corpus": "moby-dick", "n_sequences": 4, "length": 64}
    return make_grid({"model": model} | sizes | changes).runs[0]


def test_a_skeleton_is_the_model_without_its_weights(tiny_llama_folder, tiny_llama):
    skeleton = load_skeleton(str(tiny_llama_folder))
    assert {p.device.type for p in skeleton.model.parameters()} == {"meta"}
    shapes = {name: (p.shape, p.dtype) for name, p in skeleton.model.named_parameters()}
    assert shapes == {name: (p.shape, p.dtype) for name, p in tiny_llama.model.named_parameters()}
    assert str(plan(skeleton, 4, 64)) == str(plan(tiny_llama, 4, 64))
    assert load_skeleton(f"random:{tiny_llama_folder}", dtype="bfloat16").description.dtype == "bfloat16"
    skeleton, whole = (load("minilm-l6").description for load in (load_skeleton, load_model))
    assert skeleton.n_parameters == whole.n_parameters


def test_time_and_memory_follow_weights_tokens_plan_device(tiny_llama_folder, tiny_llama, speed, tmp_path):
    model, estimator = str(tiny_llama_folder), Estimator(tmp_path, device="cpu")
    run, count = run_of(model), tiny_llama.description.n_parameters
    cost, working = estimator.cost(run), plan(tiny_llama, 4, 64).working_bytes
    assert cost.megabytes == pytest.approx(LIBRARY_MB + (4 * count + working) / 2**20)
    assert estimator.cost(run_of(model, dtype="bfloat16")).megabytes < cost.megabytes
    assert run.n_tokens == 64 * (4 + 0.75), "of the scaled variants, one sequence is run alone"
    assert cost.seconds == pytest.approx(estimate.OVERHEAD * 2 * count * 304 / 1e9)
    twice = estimator.cost(run_of(model, n_sequences=8)).seconds
    assert twice * 4.75 == pytest.approx(cost.seconds * 8.75)
    run, small = (run_of(model, n_sequences=200, batch_size=size) for size in (None, 1))
    assert estimator.cost(small).megabytes < estimator.cost(run).megabytes


def test_finished_runs_say_how_fast_a_model_is(tmp_path):
    grid = parts_grid("a", "b", "c")
    leave_run(tmp_path, grid.runs[0], {}, seconds=10, peak_mb=700.0)
    leave_run(tmp_path, grid.runs[1], {}, seconds=30, peak_mb=900.0)
    cost = Estimator(tmp_path, device="cpu").cost(grid.runs[2], others=grid.runs)
    assert (cost.seconds, cost.megabytes) == (20, 900)


def test_what_the_grid_states_serves_without_a_network(no_hub, speed, tmp_path):
    models = [{"name": f"owner/{k}", "n_parameters": 1e9} for k in range(3)] + ["owner/unknown"]
    grid = make_grid({"model": models, "corpus": "wikipedia", "n_sequences": 1, "length": 64})
    estimator = Estimator(tmp_path, device="cpu")
    told = [estimator.cost(run) for run in grid.runs]
    assert [cost.megabytes for cost in told[:3]] == [pytest.approx(LIBRARY_MB + 4e9 / 2**20)] * 3
    assert math.isnan(told[3].seconds)
    assert "the Hugging Face Hub could not be reached" in told[3].basis
    assert [asked.args[0] for asked in no_hub.call_args_list] == ["owner/0"]  # each may wait for the network


def test_the_dry_run_lists_every_run_and_runs_none(tmp_path, no_hub, monkeypatch, capsys):
    monkeypatch.setattr(estimate.torch.cuda, "is_available", lambda: False)
    out = tmp_path / "out"
    assert main(["sweep", "pythia-6.9b-checkpoints", "--dry-run", "--out", str(out), "--workers", "2"]) == 0
    told = capsys.readouterr().out
    assert told.count("EleutherAI/pythia-6.9b@step") == 14
    assert re.search(r"\ntogether [\d.]+ (h|min|s)\b.* with 2 at a time", told)
    assert "26 GB" in told  # 6.86e9 parameters in float32
    assert not out.exists()

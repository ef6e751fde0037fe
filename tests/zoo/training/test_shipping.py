import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_zoo import shrink

from nbhelpers.files import read_parquet_metadata
from nbhelpers.inputs import files as model_files
from nbhelpers.inputs.models import available_models, load_model
from nbhelpers.zoo import measure, tables
from nbhelpers.zoo.settings import PRESETS, Settings
from nbhelpers.zoo.training import shipping
from nbhelpers.zoo.training.ngrams import ngram_probabilities
from nbhelpers.zoo.training.runs import train
from nbhelpers.zoo.training.shipping import collect

N_STEPS = 12
ARMS = [{}, {"seed": 1}, {"encoding": "alibi"}, {"encoding": "learned", "causal": False}, {"bos": True}]
MODELS = ["alibi", "learned-bidirectional", "rope-bos", "rope@step0", "rope@step10", "rope"]


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "nano", PRESETS["test"])
        shrink(patch)
        yield


@pytest.fixture(scope="module")
def out(small, moby_dick, tmp_path_factory):
    """A folder of runs: five are finished, one has only begun."""
    out = tmp_path_factory.mktemp("zoo")
    shutil.copytree(moby_dick.folder, out / "text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Settings, "checkpoints", lambda self: [0, 10, self.n_steps])
        for arm in ARMS:
            train(Settings(**arm, n_tokens=N_STEPS * 512), moby_dick, out / "runs", report=lambda line: None)
    (out / "runs" / "t5-seed0").mkdir()
    (out / "runs" / "t5-seed0" / "state.pt").touch()
    return out


@pytest.fixture(scope="module")
def collected(out, tmp_path_factory):
    to = tmp_path_factory.mktemp("data") / "zoo"
    return collect(out, to), to


@pytest.fixture
def installed(collected, monkeypatch):
    for module in (model_files, tables):
        monkeypatch.setattr(module, "shipped_folder", lambda: collected[1])
    return collected[1]


def test_all_measurements_of_all_finished_runs(installed, out):
    got = pd.read_parquet(installed / "measurements.parquet")
    assert list(got.columns) == shipping.ARM_COLUMNS + measure.COLUMNS
    folders = {path.parent.name: path for path in (out / "runs").glob("*/measurements.parquet")}
    assert set(got.run) == folders.keys() == {Settings(**arm).name for arm in ARMS}
    keys = ["step", "signal", "sequence", "layer", "head", "metric"]
    for name, path in folders.items():
        both = (got[got.run == name][measure.COLUMNS], pd.read_parquet(path))
        both = [frame.astype({"signal": str, "metric": str}) for frame in both]
        pd.testing.assert_frame_equal(*(f.sort_values(keys, ignore_index=True, kind="stable") for f in both))


def test_one_row_per_run(installed, out, moby_dick):
    runs = tables.ZooTables.read().runs.set_index("run")
    assert set(runs.index) == {Settings(**arm).name for arm in ARMS}
    row = runs.loc["learned-bidirectional-seed0"]
    assert [row.arm, row.encoding, row["mask"]] == ["learned-bidirectional", "learned", "bidirectional"]
    plain = 2048 * 32 + 2 * (12 * 32**2 + 2 * 32) + 32
    assert row.n_parameters == plain + 256 * 32
    assert runs.loc["rope-seed1"].n_parameters == plain
    frame = pd.read_parquet(out / "runs" / "rope-seed0" / "measurements.parquet")
    for name in ("validation_loss", "end_loss_1024"):
        last = frame[(frame.step == N_STEPS) & (frame.metric == name)].value.item()
        assert runs.loc["rope-seed0"][name] == pytest.approx(last)
    windows = measure.Yardstick.of(moby_dick).validation
    *_, p = ngram_probabilities(moby_dick.tokens["train"], moby_dick.ends["train"], windows, 2048)
    assert runs.loc["rope-seed0"].trigram == pytest.approx(-np.log(p).mean())
    assert pd.isna(row.trigram)


def test_provenance_and_sequences_are_shipped(installed, out, moby_dick):
    for name in ("measurements.parquet", "runs.parquet"):
        told = read_parquet_metadata(installed / name)
        assert told["text"]["fingerprint"] == moby_dick.fingerprint
        assert told["text"]["train_tokens"] == len(moby_dick.tokens["train"])
        assert len(told["runs"]) == len(ARMS)
        assert told["versions"][0].keys() >= {"torch", "transformers", "nbhelpers"}
    for path in [*installed.rglob("*.json"), *installed.rglob("*.parquet")]:
        assert str(out).encode() not in path.read_bytes(), "a path of this machine"
    expected, got = measure.Yardstick.of(moby_dick), tables.zoo_yardstick()
    for name, tensor in vars(expected).items():
        assert torch.equal(getattr(got, name), tensor)
    first = load_file(installed / tables.TOKENS)["first_batches"]
    assert torch.equal(first[3].long(), moby_dick.batch(2, 257, seed=0, step=3))


def test_models_are_those_of_seed_0_and_described(installed, out):
    assert [name for name in available_models() if name.startswith("zoo:")] == [f"zoo:{m}" for m in MODELS]
    for name in MODELS:
        arm, _, step = name.partition("@")
        source = out / "runs" / f"{arm}-seed0" / "weights" / (step or f"step{N_STEPS}") / "model.safetensors"
        assert (installed / "models" / name / "model.safetensors").read_bytes() == source.read_bytes()
    rope = load_model("zoo:rope@step10", device="cpu")
    assert rope.description.revision != load_model("zoo:rope", device="cpu").description.revision
    ids = rope.tokenizer("the whale")["input_ids"]
    assert load_model("zoo:rope-bos", device="cpu").tokenizer("the whale")["input_ids"] == [0, *ids]
    assert load_model("random:zoo:rope", device="cpu").description.position_encoding == "rope"


def test_what_is_there_is_told_and_what_was_written_before_is_replaced(out, collected, tmp_path):
    assert f"models: {', '.join(MODELS)}\nnot finished: t5-seed0\nnot trained: prope-seed0" in collected[0]
    stale = tmp_path / "zoo" / "models" / "rope-small"
    stale.mkdir(parents=True)
    collect(out, tmp_path / "zoo")
    assert not stale.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["zoo"]


def test_files_of_others_are_not_replaced_and_nothing_is_not_collected(out, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds thesis"):
        collect(out, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(FileNotFoundError, match="no finished run"):
        collect(tmp_path, tmp_path / "zoo")


def test_damaged_runs_and_those_of_another_text_are_refused(out, tmp_path):
    copy = shutil.copytree(out, tmp_path / "copy")
    folder = copy / "runs" / "rope-seed1"
    for file in ("measurements.parquet", "run.json"):
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[:50])
        with pytest.raises(ValueError, match=f"{file} is damaged"):
            collect(copy, tmp_path / "zoo")
        (folder / file).write_bytes(whole)
    manifest = json.loads(whole)
    manifest["text"]["fingerprint"] = "feed"
    (folder / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="1 of 5 runs were trained on another text"):
        collect(copy, tmp_path / "zoo")

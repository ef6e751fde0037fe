"""Finished runs, gathered and read back: nothing is lost, nothing is too much, and every refusal is clear."""

import json
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_zoo import SMALL

from nbhelpers.inputs import files as model_files
from nbhelpers.inputs.models import available_models, load_model
from nbhelpers.zoo import measure, tables
from nbhelpers.zoo.settings import PRESETS, Settings
from nbhelpers.zoo.training import shipping
from nbhelpers.zoo.training.campaign import train
from nbhelpers.zoo.training.ngrams import baselines
from nbhelpers.zoo.training.runs import RunFolder
from nbhelpers.zoo.training.shipping import collect

pytestmark = pytest.mark.usefixtures("small_yardstick", "small_nano")
N_STEPS = 12
ARMS = [
    {},
    {"seed": 1},
    {"encoding": "alibi"},
    {"encoding": "learned", "causal": False},
    {"bos": True},
]
MODELS = ["alibi", "rope", "rope@step0", "rope@step10", "learned-bidirectional", "rope-bos"]


class Killed(Exception):
    """Stands for whatever ends a process."""


def kill(*args, **options):
    raise Killed


def shrink(patch):
    patch.setitem(PRESETS, "nano", PRESETS["test"])
    for name, value in SMALL.items():
        patch.setattr(measure, name, value)


@pytest.fixture
def small_nano(monkeypatch):
    monkeypatch.setitem(PRESETS, "nano", PRESETS["test"])


@pytest.fixture(scope="module")
def out(moby_dick, tmp_path_factory):
    """A folder of runs: five are finished, one is not."""
    out = tmp_path_factory.mktemp("zoo")
    shutil.copytree(moby_dick.folder, out / "text")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        patch.setattr(Settings, "checkpoints", lambda self: [0, 1, 10, self.n_steps])
        for arm in ARMS:
            asked = Settings(**arm, n_tokens=N_STEPS * 512)
            train(asked, moby_dick, out / "runs", report=lambda line: None)
        patch.setattr(RunFolder, "save_state", kill)
        with pytest.raises(Killed):
            train(Settings(encoding="t5", n_tokens=8192), moby_dick, out / "runs")
    return out


@pytest.fixture(scope="module")
def collected(out, tmp_path_factory):
    """What collect said of them, and where they are."""
    to = tmp_path_factory.mktemp("data") / "zoo"
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        return collect(out, to), to


@pytest.fixture
def installed(collected, monkeypatch):
    """The collected files in the place of nbhelpers/data/zoo."""
    for module in (model_files, tables):
        monkeypatch.setattr(module, "shipped_folder", lambda: collected[1])
    return collected[1]


# The tables


def test_all_measurements_of_all_finished_runs(installed, out):
    got = tables.zoo_measurements()
    assert list(got.columns) == shipping.ARM_COLUMNS + measure.COLUMNS
    folders = {path.parent.name: path for path in (out / "runs").glob("*/measurements.parquet")}
    folders.pop("t5-seed0")
    assert set(got.run) == folders.keys() == {Settings(**arm).name for arm in ARMS}
    keys = ["step", "signal", "sequence", "layer", "head", "metric"]
    for name, path in folders.items():
        part = got[got.run == name][measure.COLUMNS].astype({"signal": str, "metric": str})
        expected = pd.read_parquet(path).astype({"signal": str, "metric": str})
        got_sorted, expected = (
            f.sort_values(keys, ignore_index=True, kind="stable") for f in (part, expected)
        )
        pd.testing.assert_frame_equal(got_sorted, expected)


def test_one_row_per_run(installed, out, moby_dick):
    runs = tables.zoo_runs().set_index("run")
    assert set(runs.index) == {Settings(**arm).name for arm in ARMS}
    row = runs.loc["learned-bidirectional-seed0"]
    assert [row.arm, row.encoding, row["mask"]] == ["learned-bidirectional", "learned", "bidirectional"]
    assert runs.bos.to_dict() == {name: "bos" in name for name in runs.index}
    plain = 2048 * 32 + 2 * (12 * 32**2 + 2 * 32) + 32
    assert row.n_parameters == plain + 256 * 32
    assert runs.loc["rope-seed1"].n_parameters == plain
    assert (runs.n_steps == N_STEPS).all()
    manifest = json.loads((out / "runs" / "rope-seed0" / "run.json").read_text())
    for name, value in manifest["final"].items():
        if name != "tokens":
            assert runs.loc["rope-seed0"][name] == pytest.approx(value)
    losses = baselines(moby_dick, measure.Yardstick.of(moby_dick).validation)
    assert runs.loc["rope-seed0"].trigram == pytest.approx(losses["trigram"])
    assert losses["trigram"] < losses["bigram"] < losses["unigram"]
    assert pd.isna(row.trigram)


def test_provenance(installed, moby_dick):
    for table in (tables.zoo_measurements(metric="train_loss"), tables.zoo_runs()):
        told = table.attrs
        assert told["text"]["fingerprint"] == moby_dick.fingerprint
        assert told["text"]["train_tokens"] == len(moby_dick.tokens["train"])
        assert told["protocols"]["key_profile"]["wavelet"] == "db2"
        assert len(told["runs"]) == len(ARMS)
        assert told["versions"][0].keys() >= {"torch", "transformers", "nbhelpers"}


def test_sequences_that_were_measured_are_shipped(installed, moby_dick):
    expected, got = measure.Yardstick.of(moby_dick), tables.zoo_yardstick()
    for name, tensor in vars(expected).items():
        assert torch.equal(getattr(got, name), tensor)
    batches = tables.first_batches()
    assert torch.equal(batches[3], moby_dick.batch(2, 257, seed=0, step=3))


# The models


def test_models_are_those_of_seed_0(installed, out):
    assert [name for name in available_models() if name.startswith("zoo:")] == [f"zoo:{m}" for m in MODELS]
    for name in MODELS:
        arm, _, step = name.partition("@")
        source = out / "runs" / f"{arm}-seed0" / "weights" / (step or "final")
        expected = load_file(source / "model.safetensors")
        model = load_model(f"zoo:{name}", device="cpu").model
        state = model.state_dict()
        for key, weight in expected.items():
            key = key if key in state else key.removeprefix("model.")
            assert torch.equal(state[key], weight.float()), (name, key)


def test_a_loaded_model_is_described(installed):
    rope = load_model("zoo:rope@step10", device="cpu")
    d = rope.description
    assert d.name == "zoo:rope@step10"
    assert (d.position_encoding, d.rope_theta, d.rotary_fraction, d.causal) == ("rope", 1000.0, 1.0, True)
    assert d.revision.startswith("zoo sampled-sha256:")
    assert d.revision != load_model("zoo:rope", device="cpu").description.revision
    learned = load_model("zoo:learned-bidirectional", device="cpu").description
    assert (learned.position_encoding, learned.causal, learned.max_positions) == ("learned", False, 256)
    assert learned.rope_theta is None
    ids = rope.tokenizer("the whale")["input_ids"]
    assert rope.tokenizer.decode(ids) == "the whale"
    assert load_model("zoo:rope-bos", device="cpu").tokenizer("the whale")["input_ids"] == [0, *ids]
    fresh = load_model("random:zoo:rope", device="cpu")
    assert fresh.tokenizer("the whale")["input_ids"] == ids
    assert fresh.description.position_encoding == "rope"


def test_no_path_of_this_machine_is_shipped(installed, out):
    for path in installed.rglob("*"):
        if path.suffix in (".json", ".parquet"):
            assert str(out).encode() not in path.read_bytes(), path


def test_a_name_that_is_not_there(installed):
    with pytest.raises(
        LookupError, match=r"no model 'zoo:roped'; did you mean 'zoo:rope'\? It has zoo:alibi"
    ):
        load_model("zoo:roped")
    with pytest.raises(ValueError, match=r"revision='main' was given, but 'zoo:rope' is local"):
        load_model("zoo:rope", revision="main")


# Limits and refusals of collect


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_report(collected):
    told, to = collected
    lines = told.splitlines()
    assert lines[0] == f"{to}: 5 runs, 6 models, {size_of(to) / 1e6:.1f} MB of at most 40"
    assert lines[1] == f"models: {', '.join(MODELS)}"
    assert lines[2] == "not finished: t5-seed0"
    assert lines[3].startswith("not trained: prope-seed0, learned-seed0, sinusoidal-seed0, nope-seed0")


def test_what_may_be_left_out_is_left_out_for_size(out, collected, tmp_path, monkeypatch):
    optional = sum(size_of(collected[1] / "models" / name) for name in MODELS[4:])
    room = size_of(collected[1]) + shipping.INDEX_BYTES
    monkeypatch.setattr(shipping, "LIMIT_BYTES", room - optional // 4)
    told = collect(out, tmp_path / "zoo")
    assert f"models: {', '.join(MODELS[:5])}\nleft out for size: rope-bos" in told
    assert not (tmp_path / "zoo" / "models" / "rope-bos").exists()


def test_more_than_the_limit_is_refused_and_nothing_changes(out, collected, tmp_path, monkeypatch):
    to = shutil.copytree(collected[1], tmp_path / "zoo")
    before = {path: path.read_bytes() for path in to.rglob("*") if path.is_file()}
    monkeypatch.setattr(shipping, "LIMIT_BYTES", 500_000)
    with pytest.raises(ValueError, match=r"must be shipped exceeds 0 MB: with the weights of .* MB"):
        collect(out, to)
    assert {path: path.read_bytes() for path in to.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["zoo"]


def test_collect_again_replaces_what_it_wrote(out, collected, tmp_path):
    to = tmp_path / "zoo"
    collect(out, to)
    (to / "models" / "rope" / "model.safetensors").write_bytes(b"old")
    collect(out, to)
    assert (to / "models" / "rope" / "model.safetensors").stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["zoo"]


def test_files_of_others_are_not_replaced(out, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds thesis.tex, not written by collect"):
        collect(out, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_no_finished_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no finished run in .*runs\. Train with"):
        collect(tmp_path, tmp_path / "zoo")
    (tmp_path / "runs" / "a").mkdir(parents=True)
    manifest = {"finished": False, "settings": Settings(n_tokens=8192).to_dict()}
    (tmp_path / "runs" / "a" / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(FileNotFoundError, match=r"; begun are rope-seed0\. Train with"):
        collect(tmp_path, tmp_path / "zoo")


@pytest.mark.parametrize("file", ["run.json", "measurements.parquet"])
def test_damaged_run(out, tmp_path, file):
    copy = shutil.copytree(out, tmp_path / "copy")
    path = copy / "runs" / "rope-seed1" / file
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=rf"{file} is damaged .*[Mm]ove .*rope-seed1 away"):
        collect(copy, tmp_path / "zoo")


def test_runs_of_two_texts_are_not_mixed(out, tmp_path):
    copy = shutil.copytree(out, tmp_path / "copy")
    path = copy / "runs" / "rope-seed1" / "run.json"
    manifest = json.loads(path.read_text())
    manifest["text"]["fingerprint"] = "feed"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"1 of 5 runs were trained on another text .*: rope-seed1\. Move"):
        collect(copy, tmp_path / "zoo")

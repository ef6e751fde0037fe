import itertools

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from nbhelpers.inputs.files import shipped_folder
from nbhelpers.inputs.models import available_models, load_model
from nbhelpers.inputs.zoo import ENCODINGS, ZooForLanguageModeling
from nbhelpers.zoo import measure
from nbhelpers.zoo.settings import arms
from nbhelpers.zoo.tables import MEASUREMENTS, TOKENS, ZooTables, zoo_yardstick
from nbhelpers.zoo.train import Trainer

PLANNED = {settings.name: settings for settings in arms()}
SHIPPED = [name for name in available_models() if name.startswith("zoo:")]
RECOMPUTED = [f"zoo:{name}" for name in ("rope", "rope@step100", "t5", "learned-bidirectional", "rope-bos")]
LIMIT_BYTES = 40_000_000  # of everything together


def measurements(**where):
    filters = [(name, "=", value) for name, value in where.items()]
    return pd.read_parquet(shipped_folder() / MEASUREMENTS, filters=filters)


class FirstBatches:
    batches = load_file(shipped_folder() / TOKENS)["first_batches"].long()

    def batch(self, n, length, *, seed, step):
        assert (seed, *self.batches.shape[1:]) == (0, n, length)
        return self.batches[step]


def test_a_few_updates_repeat_the_recorded_losses():
    settings = PLANNED["rope-seed0"]
    recorded = measurements(run="rope-seed0", metric="train_loss").set_index("step").value
    trainer = Trainer(settings, FirstBatches())
    losses = [trainer.update() for _ in range(22)]
    steps = [step for step in settings.checkpoints() if step <= len(losses)]
    means = [np.mean(losses[a:b]) for a, b in itertools.pairwise(steps)]  # between two checkpoints
    expected = [recorded[step] for step in steps[1:]]
    # bfloat16 rounds to three digits, and not in the same way on every processor.
    assert means == pytest.approx(expected, abs=0.01)
    assert expected[0] - expected[-1] > 0.4  # far more than the tolerance is learned


@pytest.mark.parametrize("name", RECOMPUTED)
def test_shipped_weights_give_the_recorded_metrics(name):
    arm, _, step = name.removeprefix("zoo:").partition("@step")
    recorded = measurements(arm=arm, seed=0)
    step = int(step) if step else int(recorded.step.max())
    recorded = recorded[recorded.step == step].astype({"signal": str, "metric": str})
    folder = shipped_folder() / "models" / name.removeprefix("zoo:")
    model = ZooForLanguageModeling.from_pretrained(folder, dtype="float32").eval()
    got = measure.measure_checkpoint(model, zoo_yardstick(), step=step, bos="-bos" in arm)
    keys = ["signal", "metric", "sequence", "layer", "head"]
    both = got.merge(recorded, on=keys, suffixes=("", "_recorded"))
    assert len(both) == len(got)
    # The error of a transform that reconstructs any input is rounding and nothing else.
    both = both[both.metric != "reconstruction_error"]
    scale = both.groupby(["signal", "metric"]).value.transform(lambda v: v.abs().max())
    assert ((both.value - both.value_recorded).abs() <= 1e-4 * scale).all()


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_model_loads(name):
    d = load_model(name, device="cpu").description
    arm = name.removeprefix("zoo:").partition("@")[0]
    encoding = arm.split("-")[0]
    assert d.position_encoding == {"prope": "rope", "nope": "none"}.get(encoding, encoding)
    assert d.causal == ("bidirectional" not in arm)
    assert (d.n_layers, d.n_heads, d.head_dim, d.bos_token) == (4, 4, 32, "<bos>")


def test_trained_means_trained():
    runs = ZooTables.read().runs
    assert list(runs.run[runs.validation_loss >= runs.bigram.min() - 0.4]) == []
    core = runs[(runs.preset == "nano") & (runs["mask"] == "causal")]
    strong = core[core.encoding.isin(["rope", "prope", "alibi", "t5"])]
    assert (strong.validation_loss < strong.trigram).all()


def test_every_run_was_trained_and_measured_as_planned_and_the_core_is_there():
    runs, losses = ZooTables.read().runs, measurements(metric="validation_loss")
    assert set(losses.run) == set(runs.run)
    for row in runs.itertuples():
        planned = PLANNED[row.run]
        assert (row.n_tokens, row.warmup_share) == (planned.n_tokens, planned.warmup_share), row.run
        assert row.position_initializer_range == planned.config().position_initializer_range, row.run
        part = losses[losses.run == row.run]
        assert part.step.tolist() == planned.checkpoints()
        assert part.value.iloc[-1] == pytest.approx(row.validation_loss)
    core = {f"{encoding}-seed{seed}" for encoding in ENCODINGS for seed in range(3)}
    assert core <= set(runs.run)
    assert {f"zoo:{encoding}" for encoding in ENCODINGS} <= set(SHIPPED)
    assert sum(path.stat().st_size for path in shipped_folder().rglob("*") if path.is_file()) <= LIMIT_BYTES

"""What is shipped of the zoo is what its measurements say it is.

Skipped, said, while nothing is shipped.
"""

import itertools

import numpy as np
import pytest

from nbhelpers.inputs.files import shipped_folder
from nbhelpers.inputs.models import available_models, load_model
from nbhelpers.inputs.zoo import ENCODINGS
from nbhelpers.zoo import measure, shipped
from nbhelpers.zoo.settings import Settings, arms
from nbhelpers.zoo.train import Trainer
from nbhelpers.zoo.training.shipping import LIMIT_BYTES

pytestmark = pytest.mark.skipif(
    not (shipped_folder() / shipped.MEASUREMENTS).exists(),
    reason="no zoo is shipped: python -m nbhelpers.zoo.training train-all, then collect",
)
SHIPPED = [name for name in available_models() if name.startswith("zoo:")]
RECOMPUTED = [name for name in SHIPPED if name.endswith(("zoo:rope", "zoo:alibi", "zoo:t5", "@step100"))]
RECOMPUTED += [name for name in SHIPPED if name in ("zoo:learned-bidirectional", "zoo:rope-bos")]


class FirstBatches:
    """Stands for the corpus while a few updates are made: the batches that are shipped."""

    vocab_size = 2048

    def __init__(self):
        self.batches = shipped.first_batches()

    def batch(self, n, length, *, seed, step):
        assert (seed, *self.batches.shape[1:]) == (0, n, length)
        return self.batches[step]


@pytest.fixture(scope="module")
def runs():
    return shipped.zoo_runs()


def settings_of(row):
    return Settings(
        preset=row.preset, encoding=row.encoding, causal=row["mask"] == "causal", bos=bool(row.bos),
        seed=int(row.seed), n_tokens=int(row.n_tokens), precision=row.precision,
    )  # fmt: skip


def lm(model, name):
    """Return the model with its language-model head, which load_model leaves out of a bidirectional one."""
    from nbhelpers.inputs.zoo import ZooForLanguageModeling

    entry = shipped_folder() / "models" / name.removeprefix("zoo:")
    return ZooForLanguageModeling.from_pretrained(entry, dtype="float32").eval()


def test_a_few_updates_repeat_the_recorded_losses(runs):
    settings = settings_of(runs.set_index("run").loc["rope-seed0"])
    recorded = shipped.zoo_measurements(run="rope-seed0", metric="train_loss").set_index("step").value
    trainer = Trainer(settings, FirstBatches())
    losses = [trainer.update() for _ in range(len(trainer.corpus.batches))]
    steps = [step for step in settings.checkpoints() if step <= len(losses)]
    means = [np.mean(losses[a:b]) for a, b in itertools.pairwise(steps)]  # between two checkpoints
    expected = [recorded[step] for step in steps[1:]]
    # bfloat16 rounds to three digits, and not in the same way on every processor.
    assert means == pytest.approx(expected, abs=0.01)
    assert expected[0] - expected[-1] > 0.4  # far more than the tolerance is learned


@pytest.mark.parametrize("name", RECOMPUTED)
def test_shipped_weights_give_the_recorded_metrics(name):
    arm, _, step = name.removeprefix("zoo:").partition("@step")
    recorded = shipped.zoo_measurements(arm=arm, seed=0)
    step = int(step) if step else int(recorded.step.max())
    recorded = recorded[recorded.step == step].astype({"signal": str, "metric": str})
    model = lm(load_model(name, device="cpu"), name)
    yardstick = shipped.zoo_yardstick()
    got = measure.measure_checkpoint(model, yardstick, step=step, bos="-bos" in arm)
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


def test_everything_is_within_the_limit():
    assert sum(path.stat().st_size for path in shipped_folder().rglob("*") if path.is_file()) <= LIMIT_BYTES


def test_every_run_is_measured_densely_from_step_0(runs):
    losses = shipped.zoo_measurements(metric="validation_loss")
    assert set(losses.run) == set(runs.run)
    for run, part in losses.groupby("run", observed=True):
        n_steps = int(runs.set_index("run").n_steps[run])
        assert part.step.nunique() >= 40
        assert (part.step.min(), part.step.max()) == (0, n_steps)
        final = runs.set_index("run").validation_loss[run]
        assert part.set_index("step").value[n_steps] == pytest.approx(final)


def test_trained_means_trained(runs):
    assert list(runs.run[runs.validation_loss >= runs.bigram.min() - 0.4]) == []
    core = runs[(runs.preset == "nano") & (runs["mask"] == "causal")]
    strong = core[core.encoding.isin(["rope", "prope", "alibi", "t5"])]
    assert (strong.validation_loss < strong.trigram).all()


def test_every_run_was_trained_as_planned(runs):
    planned = {arm.name: arm for arm in arms()}
    for row in runs.itertuples():
        arm = planned[row.run]
        assert (row.n_tokens, row.warmup_share) == (arm.n_tokens, arm.warmup_share), row.run
        assert row.position_initializer_range == arm.config().position_initializer_range, row.run


def test_every_core_arm_is_there(runs):
    core = runs[(runs.preset == "nano") & (runs["mask"] == "causal") & ~runs.bos]
    have = {f"zoo:{encoding}" for encoding in set(core[core.seed == 0].encoding)}
    assert have <= set(SHIPPED)
    counts = core.groupby(["encoding", "seed"]).size()
    assert (counts == 1).all()
    wanted = itertools.product(range(3), ENCODINGS)
    missing = [f"{encoding} seed {seed}" for seed, encoding in wanted if (encoding, seed) not in counts.index]
    if missing:
        pytest.skip(f"not collected yet: {', '.join(missing)}")

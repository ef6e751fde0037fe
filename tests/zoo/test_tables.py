import shutil

import numpy as np
import pandas as pd
import pytest
from tiny_measurements import N_HEADS, N_LAYERS, N_SEQUENCES, STEPS, write_zoo

from nbhelpers.nulls.controls import uniform_null
from nbhelpers.protocol import PAPER
from nbhelpers.stats import student_interval
from nbhelpers.zoo import ENCODINGS
from nbhelpers.zoo.tables import ZooTables, zoo_rows

ENTROPY = "spectral_entropy"
KEPT = ("rope-seed0", "rope-seed1", "rope-seed2", "alibi-seed0", "alibi-seed2")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return ZooTables.read(write_zoo(tmp_path_factory.mktemp("zoo"), lambda s: s.name in KEPT))


@pytest.fixture(scope="module")
def frame(table):
    return pd.read_parquet(table.folder / "measurements.parquet")


def test_curves_of_arms_and_heads_are_those_of_the_file(table, frame):
    curves = table.curves(ENTROPY, "rope")
    assert curves.values.shape == (3, N_SEQUENCES, len(STEPS))
    assert curves.steps.tolist() == STEPS.tolist()
    assert curves.seeds == (0, 1, 2)
    own = frame[(frame.metric == ENTROPY) & (frame.signal == "key_profile") & (frame.sequence == 3)]
    one = own[(own.run == "rope-seed1") & (own.step == STEPS[7])].value.item()
    assert curves.values[1, 3, 7] == pytest.approx(one)
    assert curves.by_seed == pytest.approx(curves.values.mean(1))
    found = table.head_curves([ENTROPY, "sink_mass"], "alibi-seed2")
    assert list(found) == [ENTROPY, "sink_mass"]
    assert found[ENTROPY].shape == (N_LAYERS * N_HEADS, len(STEPS))
    own = frame[(frame.metric == ENTROPY) & (frame.signal == "key_profile") & (frame.run == "alibi-seed2")]
    one = own[(own.layer == 1) & (own["head"] == 2) & (own.step == STEPS[5])].value.item()
    assert found[ENTROPY][N_HEADS + 2, 5] == pytest.approx(one)


def test_ends_are_means_of_a_step_and_what_is_missing_is_named(table):
    curves = table.curves(ENTROPY, "rope")
    ends = table.ends(ENTROPY, ENCODINGS)
    assert list(ends) == ["rope", "alibi"]
    assert ends["rope"].to_numpy() == pytest.approx(curves.by_seed[:, -1])
    assert table.ends(ENTROPY, ["rope"], step=0)["rope"].to_numpy() == pytest.approx(curves.by_seed[:, 0])
    losses = table.ends("validation_loss", ["rope"], signal="model", per="model")["rope"]
    recorded = table.runs[table.runs.arm == "rope"].validation_loss
    assert losses.to_numpy() == pytest.approx(recorded.to_numpy())
    assert list(table.common(ends)) == ["rope"], "alibi lacks a seed"
    assert table.lacking(["rope"]) == ""
    assert "alibi 1; t5 0, 1, 2. Make them with: python -m" in table.lacking(["rope", "alibi", "t5"])
    assert table.said(["rope", "t5"]) == "arms (seeds): rope (0, 1, 2), t5 ()"


def test_a_step_that_a_seed_lacks_takes_no_part(table, tmp_path, frame):
    cut = frame[~((frame.run == "rope-seed1") & (frame.step == STEPS[4]))]
    cut.to_parquet(tmp_path / "measurements.parquet")
    shutil.copy(table.folder / "runs.parquet", tmp_path)
    curves = ZooTables.read(tmp_path).curves(ENTROPY, "rope")
    assert curves.steps.tolist() == np.delete(STEPS, 4).tolist()


def test_arms_stand_beside_a_sweep_as_means_over_seeds(table):
    metrics = ["scale_sensitivity_0.5", "spectral_entropy"]
    rows = zoo_rows(table, metrics, ["rope", "alibi", "nope"])
    assert rows[["model", "encoding", "metric"]].to_numpy().tolist() == [
        [f"zoo {arm}", arm, metric] for arm in ("rope", "alibi") for metric in metrics
    ]
    ends = table.ends("spectral_entropy", ["rope"])["rope"]
    interval = student_interval(ends.to_numpy())
    expected = [ends.mean(), interval.low, interval.high]
    assert rows[["value", "low", "high"]].iloc[1].tolist() == pytest.approx(expected)
    assert rows[["low", "high"]].iloc[2:].isna().all(axis=None), "two seeds give no interval"
    n_sequences, length = table.provenance["measured_on"]["attention"]
    assert rows[["n_sequences", "length"]].drop_duplicates().to_numpy().tolist() == [[n_sequences, length]]
    assert rows["null"].iloc[1] == uniform_null(length, PAPER, causal=True)["spectral_entropy"]
    rows = zoo_rows(table, ["spectral_entropy"], ["rope"], steps=True)
    curve = table.curves("spectral_entropy", "rope")
    assert rows.step.tolist() == curve.steps.tolist()
    assert rows.value.tolist() == pytest.approx(curve.by_seed.mean(0).tolist())

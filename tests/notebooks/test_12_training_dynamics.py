import numpy as np
import pytest
from scipy import stats as scipy_stats
from tiny_measurements import LEVEL, write_zoo

from nbhelpers.zoo import ENCODINGS

GIVEN = {"live_seconds": 0.5}


@pytest.fixture(scope="module")
def whole(run_on, tmp_path_factory):
    """The causal arms of one size, with planted effects."""
    folder = tmp_path_factory.mktemp("zoo")
    zoo = write_zoo(folder / "collected", lambda s: s.preset == "nano" and s.causal and not s.bos)
    return run_on("12", zoo, folder / "out", **GIVEN)


def test_every_arm_has_its_table_5(tables, shipped):
    frame = tables["every_arm"]
    for arm in shipped.present([*ENCODINGS, "rope-bidirectional", "learned-bidirectional", "rope-bos"]):
        rows = shipped.rows("scale_sensitivity_0.5", arms=[arm]).groupby(["step", "seed"]).value.mean()
        own = frame[(frame.arm == arm) & (frame.metric == "scale_sensitivity_0.5")].set_index("update")
        assert own.index[-1] == rows.index.get_level_values("step").max()
        for step in (0, 10, 100, 1000, own.index[-1]):
            assert own.value[step] == pytest.approx(rows[step].mean(), abs=1e-9)
            if len(rows[step]) == 3:
                half = scipy_stats.t.ppf(0.975, 2) * rows[step].sem()
                assert own.high[step] - own.low[step] == pytest.approx(2 * half, abs=1e-9)


def test_claims_are_recorded_and_the_picture_of_the_live_model_stays(numbers, smoke_run):
    assert {"C9_interior_peak", "C10_rise", "C10_steps"} <= numbers.keys()
    assert "image/png" in smoke_run("12").output.read_text(), "the last figure stays"


# Planted phases: every arm peaks by 0.5 nats, S rises in two steps


def test_the_planted_peak_and_two_steps_are_found(whole, verdict):
    numbers, tables, _ = whole
    row = numbers["C9_interior_peak"]
    assert (row.value, row.null) == pytest.approx((0.5, 0.5), abs=0.02)
    assert verdict("C9", numbers) == "explained by the null"
    row = numbers["C10_rise"]
    assert row.value == pytest.approx(LEVEL["rope"] - 0.02, abs=0.01)
    assert row.null == pytest.approx(LEVEL["learned"] - 0.02, abs=0.01)
    row = numbers["C10_steps"]
    assert (row.value, row.low, row.high) == (2, 2, 2)
    for arm in ENCODINGS:
        assert numbers[f"rising_steps_of_half_{arm}"].value == 2
        assert numbers[f"rising_steps_of_entropy_{arm}"].value == 1
    knots = tables["knots"].set_index(["metric", "arm"])["they begin at"]
    begins = [int(value) for value in knots["scale_sensitivity_0.5", "learned"].split(", ")]
    assert begins == pytest.approx([19, 400], rel=0.35)  # planted at 20 and 400; checkpoints are apart


def test_what_the_scores_track_is_explained(whole):
    """Entropy rises with N_eff and local mass (planted on the same phase), and falls later by itself."""
    numbers, tables, _ = whole
    left = tables["left_over"]
    entropy = left[left.metric == "spectral_entropy"]
    assert (entropy["variance explained"] > 0.9).all()
    assert (entropy["curve's variance left"] < 0.1).all()
    assert numbers["peak_left_of_entropy_rope"].value < numbers["peak_of_rope"].value
    half = left[left.metric == "scale_sensitivity_0.5"]
    assert (half["curve's variance left"] > 0.1).all(), "its second step is no score's"


def test_one_run_alone_is_shown_and_not_judged(run_on, tmp_path):
    folder = write_zoo(tmp_path / "collected", lambda s: s.name == "rope-seed0")
    numbers, tables, text = run_on("12", folder, tmp_path / "out", **GIVEN)
    assert not any(name.startswith(("C9", "C10")) for name in numbers)
    assert numbers["rising_steps_of_half_rope"].value == 2
    assert np.isnan(numbers["peak_of_rope"].low)
    assert set(tables["left_over"].arm) == {"rope"}
    assert "not measured" in text
    assert "python -m nbhelpers.zoo.training train-all" in text

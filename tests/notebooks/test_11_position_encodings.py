import re

import numpy as np
import pytest
from tiny_measurements import LEVEL, write_zoo

from nbhelpers.zoo import ENCODINGS

HALF = "scale_sensitivity_0.5"


@pytest.fixture(scope="module")
def whole(run_on, tmp_path_factory):
    """A zoo with planted effects, without BOS, whose learned positions did not train without the mask."""
    folder, untrained = tmp_path_factory.mktemp("zoo"), ("learned-bidirectional",)
    zoo = write_zoo(folder / "collected", lambda s: s.preset == "nano" and not s.bos, untrained=untrained)
    return run_on("11", zoo, folder / "out")


def test_runs_losses_and_means_are_those_of_the_measurements(numbers, shipped):
    assert numbers["runs"].value == len(shipped.runs)
    assert "C8_rope_advantage" in numbers, "every encoding has three seeds"
    bigram = shipped.runs.bigram.min()
    for row in shipped.runs[shipped.runs["preset"] == "nano"].itertuples():
        met = row.validation_loss < bigram - 0.4
        if row.mask == "causal" and row.encoding in ("rope", "prope", "alibi", "t5"):
            met &= row.validation_loss < row.trigram
        found = numbers[f"loss_of_{row.run}"]
        assert found.value == pytest.approx(row.validation_loss)
        assert found.note == f"trained: {'met' if met else 'missed'}"
    arms = shipped.present([*ENCODINGS, "rope-bidirectional", "learned-bidirectional", "rope-bos"])
    ends = shipped.rows(HALF, arms=arms, last=True)
    for arm in arms:
        by_seed = ends[ends.arm == arm].groupby("seed").value.mean()
        row = numbers[f"half_of_{arm}"]
        assert row.value == pytest.approx(by_seed.mean(), abs=1e-9)
        assert np.isnan(row.low) == (len(by_seed) < 3), "no interval from fewer than three seeds"


# Planted effects: RoPE is the scale-invariant one here, by 0.1


def test_the_planted_advantage_is_found(whole, verdict):
    numbers, _, _ = whole
    row = numbers["C8_rope_advantage"]
    assert row.low <= LEVEL["rope"] - LEVEL["alibi"] <= row.high
    assert row.value == pytest.approx(-0.15, abs=0.02)
    assert row.null > 0.02
    assert verdict("C8", numbers) == "supported"


def test_planted_shares_of_variance_and_what_says_nothing(whole):
    numbers, tables, text = whole
    shares = tables["shares"].set_index(["metric", "factor"])
    assert set(shares.index.get_level_values("factor")) == {"encoding", "mask"}, "learned has its own recipe"
    assert shares.share[HALF, "encoding"] > 0.95
    assert shares.low[HALF, "mask"] > 0.8, "0.08 between masks, 0.005 between seeds"
    assert shares.n_arms[HALF, "mask"] == 2, "rope, with and without the causal mask"
    assert re.search(r"40 million tokens, .* for 70% of them, .* std 0\.002: learned-bidirectional\\n", text)
    assert re.search(r"12 million tokens, .* for 5% of them, .* std 0\.02: rope, .*rope-bidirectional", text)
    told = re.search(r"S\(0\.5\) of rope-bidirectional less rope: (\S+) ", text)
    assert float(told[1]) == pytest.approx(0.08, abs=0.02)
    levels = np.array([LEVEL[encoding] for encoding in ENCODINGS])
    assert shares.variance[HALF, "encoding"] == pytest.approx(levels.var(), rel=0.1)
    assert numbers["loss_of_learned-bidirectional-seed0"].note == "trained: missed"
    assert "since not every seed of it trained: learned-bidirectional" in text
    assert "Share of the **BOS: not measured.**" in text
    assert "python -m nbhelpers.zoo.training train-all" in text


def test_equivalence_prediction_and_order_are_what_was_planted(whole):
    numbers, tables, text = whole
    so = tables["equivalence"].set_index(["metric", "encoding"]).so
    assert so[HALF, "prope"] == "equivalent"
    assert so[HALF, "learned"] == "different by more"
    assert (so["low_band"] == "equivalent").all()
    assert so["spectral_entropy", "alibi"] == "different by more"
    beyond = tables["beyond"]
    assert "learned" not in set(beyond.encoding)
    assert len(beyond) == 18
    assert numbers["S_predicts_cost_of_1024"].value > 0.9
    assert numbers["alibi_order_lag_profile_spectral_entropy_end"].value > 0.9
    assert abs(numbers["alibi_order_key_profile_half_end"].value) < 0.8, "S has no slopes planted"
    assert "and not by:" in text

import re

import numpy as np
import pytest
from tiny_measurements import LEVEL, write_zoo

from nbhelpers.zoo import ENCODINGS

HALF = "scale_sensitivity_0.5"
PAIR = ("rope", "learned")  # the encodings with a masked arm


def kept(settings):
    return settings.preset == "nano"


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
    ends = shipped.rows(HALF, last=True)
    for arm in shipped.present([*ENCODINGS, "rope-bidirectional", "learned-bidirectional", "rope-bos"]):
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


def test_planted_shares_of_variance(whole):
    _, tables, text = whole
    shares = tables["shares"].set_index(["metric", "factor"])
    assert shares.share[HALF, "encoding"] > 0.95
    assert shares.low[HALF, "mask"] > 0.8, "0.08 between masks, 0.005 between seeds"
    for factor in ("mask", "mask and recipe"):  # learned has a recipe of its own without the causal mask
        assert shares.n_arms[HALF, factor] == 2
    assert re.search(r"40 million tokens, .* for 70% of them, .* std 0\.002: learned-bidirectional\\n", text)
    assert re.search(r"12 million tokens, .* for 5% of them, .* std 0\.02: rope, .*rope-bidirectional", text)
    assert shares.low[HALF, "BOS"] < 0.05, "BOS does nothing here"
    told = re.search(r"S\(0\.5\) of rope-bidirectional less rope: (\S+) ", text)
    assert float(told[1]) == pytest.approx(0.08, abs=0.02)
    levels = np.array([LEVEL[encoding] for encoding in ENCODINGS])
    assert shares.variance[HALF, "encoding"] == pytest.approx(levels.var(), rel=0.1)


def test_equivalence_prediction_and_order_are_what_was_planted(whole):
    _, tables, _ = whole
    so = tables["equivalence"].set_index(["metric", "encoding"]).so
    assert so[HALF, "prope"] == "equivalent"
    assert so[HALF, "learned"] == "different by more"
    assert (so["low_band"] == "equivalent").all()
    assert so["spectral_entropy", "alibi"] == "different by more"
    numbers, tables, _ = whole
    beyond = tables["beyond"]
    assert "learned" not in set(beyond.encoding)
    assert len(beyond) == 18
    row = numbers["S_predicts_cost_of_1024"]
    assert row.value > 0.9
    numbers, _, text = whole
    assert numbers["alibi_order_lag_profile_spectral_entropy_end"].value > 0.9
    assert abs(numbers["alibi_order_key_profile_half_end"].value) < 0.8, "S has no slopes planted"
    assert "and not by:" in text


def test_what_did_not_train_or_lacks_a_seed_says_nothing(run_on, tmp_path):
    def keep(settings):  # of most encodings two seeds, and no BOS
        return kept(settings) and not settings.bos and (settings.encoding in PAIR or settings.seed < 2)

    folder = write_zoo(tmp_path / "collected", keep, untrained=("learned-bidirectional",))
    numbers, tables, text = run_on("11", folder, tmp_path / "out")
    assert numbers["loss_of_learned-bidirectional-seed0"].note == "trained: missed"
    assert "since not every seed of it trained: learned-bidirectional" in text
    shares = tables["shares"].set_index(["metric", "factor"])
    assert shares.n_arms[HALF, "mask"] == 2, "rope, with and without the causal mask"
    assert shares.low[HALF, "mask"] > 0.8
    assert set(shares.index.get_level_values("factor")) == {"mask"}, "learned is the only arm with a recipe"
    assert "C8_rope_advantage" not in numbers
    assert np.isnan(numbers["half_of_t5"].low)
    assert set(tables["equivalence"].encoding) == {"learned"}
    assert "Not measured" in text
    assert "python -m nbhelpers.zoo.training train-all" in text
    assert "S_predicts_cost_of_512" in numbers, "a rank correlation over 12 runs of 6 encodings"

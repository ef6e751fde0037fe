import numpy as np
import pytest
import pywt
from oracles import assert_near, scale_sensitivities

LENGTH = 128


def test_what_learned_nothing_has_a_lower_s_and_the_doubling(numbers):
    assert_near(numbers, {"half_of_model": (0.168, 0.025), "quarter_of_model": (0.131, 0.020)})
    for name in ("N0_uniform", "N1_random_weights", "N4_exponential"):
        assert numbers[f"half_of_{name}"].value < numbers["half_of_model"].low / 2
        assert 2 < numbers[f"ratio_of_{name}"].value < 3
    assert numbers["ratio_of_model"].high < 1
    assert numbers["half_of_N2_permuted"].value > 0.8, "order matters for S, unlike for the entropies"


def test_the_criteria_are_the_numbers_of_the_sections_and_a_sink_has_the_s_of_its_alignment(numbers, verdict):
    for criterion, name in (("C5_half", "half"), ("C5_ratio", "ratio")):
        row = numbers[criterion]
        assert row.value == pytest.approx(numbers[f"{name}_of_model"].value, abs=1e-12)
        nulls = [numbers[f"{name}_of_{null}"].value for null in ("N0_uniform", "N1_random_weights")]
        distance = [abs(null - row.null) for null in nulls]
        assert min(distance) < 0.01, "recorded beside one of its nulls"
    assert numbers["C5_half"].null <= numbers["half_of_N0_uniform"].value + 1e-9, "the lower one"
    assert verdict("C5", numbers) == "contradicted"
    ends = [np.eye(n)[0] for n in (LENGTH, LENGTH // 2, LENGTH // 4)]
    found = numbers["half_of_key_0_alone_concatenate-truncate"].value
    assert found == pytest.approx(scale_sensitivities(ends)[0])
    assert numbers["half_of_key_0_alone_per-level"].value < 1e-12, "the same coefficients at every level"
    assert numbers["cosine_sink_with_sink"].value > 0.6, "most of the cosine is attention to key 0"
    assert numbers["half_sink_dropped"].low > 2 * numbers["half_of_model"].high


def test_special_tokens_move_s_little_and_few_coefficients_stand_above_their_own_level(numbers):
    gap = np.mean([0.058, 0.082, 0.059]) - np.mean([0.038, 0.038, 0.030, 0.038])
    assert numbers["bos_gap_table_1"].value == pytest.approx(gap)
    for role in ("model", "encoder"):
        assert abs(numbers[f"bos_moves_half_{role}"].value) < 0.03
    assert numbers["sink_mass_no_special_token"].value > 0.3, "a sink needs no BOS token"
    level, lengths = pywt.dwt_max_level(LENGTH // 4, "db2"), (LENGTH, LENGTH // 2, LENGTH // 4)
    parts = [[len(part) for part in pywt.wavedec(np.zeros(n), "db2", level=level)] for n in lengths]
    full, *short = (np.repeat(range(level + 1), sizes) for sizes in parts)
    for factor, row in zip((0.5, 0.25), short, strict=True):
        assert numbers[f"same_level_{factor}"].value == np.mean(full[: len(row)] == row)

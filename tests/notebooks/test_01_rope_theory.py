"""Numbers recorded by 01_rope_theory against slow loops; the notebook asserts its closed forms itself."""

import math

import pytest

from nbhelpers.collection.plan import find_notebook_folder, load_sizes

HEAD_DIM, THETA = 64, 10000.0  # the notebook's defaults, kept at smoke size
LENGTH = load_sizes(find_notebook_folder())["01_rope_theory"]["smoke"]["length"]
FREQUENCIES = [THETA ** (-2 * pair / HEAD_DIM) for pair in range(HEAD_DIM // 2)]


def test_turning_pairs_and_the_level_of_the_kernel(numbers):
    turning = sum(2 * math.pi / omega <= LENGTH for omega in FREQUENCIES)
    assert 0 < turning < HEAD_DIM // 2, "the length must separate pairs that turn from pairs that do not"
    assert numbers["turning_pair_share"].value == pytest.approx(turning / (HEAD_DIM // 2), rel=1e-12)
    far = range(LENGTH // 2, LENGTH)
    level = sum(math.cos(lag * omega) for lag in far for omega in FREQUENCIES) / len(far) / len(FREQUENCIES)
    assert numbers["kernel_far_level"].value == pytest.approx(level, rel=1e-9)
    assert abs(numbers["kernel_far_level"].null) < 0.1 < level


def test_the_alias_of_four_pairs(numbers):
    def distance(lag):
        return max(abs(math.remainder(lag * omega, 2 * math.pi)) for omega in FREQUENCIES[:4])

    closest = min(range(1, LENGTH), key=distance)
    assert numbers["alias_lag_four_pairs"].value == closest
    assert numbers["alias_distance_four_pairs"].value == pytest.approx(distance(closest), rel=1e-9)

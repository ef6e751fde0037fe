"""Numbers recorded by 01_rope_theory against closed forms."""

import math

import pytest

from nbhelpers.collection.plan import find_notebook_folder, load_sizes

pytestmark = pytest.mark.notebook

NAME = "01_rope_theory"
HEAD_DIM, THETA, N_HEADS = 64, 10000.0, 8  # the notebook's defaults, kept at smoke size


@pytest.fixture(scope="module")
def length():
    return load_sizes(find_notebook_folder())[NAME]["smoke"]["length"]


def test_closed_forms(numbers, length):
    for name, expected in {
        "wavelength_min": 2 * math.pi,
        "wavelength_max": 2 * math.pi * THETA ** (1 - 2 / HEAD_DIM),
        "frequency_ratio": THETA ** (2 / HEAD_DIM),
        "alibi_scale_ratio": 2 ** (8 / N_HEADS),
        "whole_bank_distance": 1.0,  # a neighbour is 1 radian away, and nothing is nearer
    }.items():
        assert numbers[name].value == pytest.approx(expected, rel=1e-12), name
    turning = sum(2 * math.pi * THETA ** (2 * pair / HEAD_DIM) <= length for pair in range(HEAD_DIM // 2))
    assert 0 < turning < HEAD_DIM // 2, "the length must separate pairs that turn from pairs that do not"
    assert numbers["turning_pair_share"].value == pytest.approx(turning / (HEAD_DIM // 2), rel=1e-12)


def test_kernel_level_is_that_of_a_slow_loop(numbers, length):
    frequencies = [THETA ** (-2 * pair / HEAD_DIM) for pair in range(HEAD_DIM // 2)]
    far = range(length // 2, length)
    level = sum(math.cos(lag * omega) for lag in far for omega in frequencies) / len(far) / len(frequencies)
    assert numbers["kernel_far_level"].value == pytest.approx(level, rel=1e-9)
    assert abs(numbers["kernel_far_level"].null) < 0.1 < level


def test_alias_is_that_of_a_slow_loop(numbers, length):
    frequencies = [THETA ** (-2 * pair / HEAD_DIM) for pair in range(4)]
    distances = {
        lag: max(abs(math.remainder(lag * omega, 2 * math.pi)) for omega in frequencies)
        for lag in range(1, length)
    }
    closest = min(distances, key=distances.get)
    assert numbers["alias_lag_four_pairs"].value == closest
    assert numbers["alias_distance_four_pairs"].value == pytest.approx(distances[closest], rel=1e-9)
    assert distances[closest] <= 2 * math.pi / math.floor((length - 1) ** 0.25), "Dirichlet's theorem"

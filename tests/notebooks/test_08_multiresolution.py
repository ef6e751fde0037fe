import numpy as np
import pytest
import pywt
from oracles import assert_near, entropy, uniform_profile

from nbhelpers.claims.paper import claim, paper_table

LENGTH = 128
JUDGED = ("C11", "C12", "C13", "C14")
SCALES = [f"scale_{k}" for k in range(6)]


def entropy_per_scale(signal):
    return [entropy(c**2) for c in pywt.wavedec(signal, "db2", "symmetric", level=5)]


def test_wavelet_entropy_of_the_null_and_of_a_spike_are_pywts(numbers):
    nulls = [numbers[f"table7_{scale}"].null for scale in SCALES]
    assert nulls == pytest.approx(entropy_per_scale(uniform_profile(LENGTH)), rel=1e-6)
    spikes = [numbers[f"spike_{scale}"].value for scale in SCALES]
    assert spikes == pytest.approx(entropy_per_scale(np.eye(1024)[0]), abs=1e-9), "of any length"


def test_the_distance_to_table_7_is_that_of_the_recorded_rows(numbers):
    printed = paper_table(7)[SCALES]
    rows = {"spike": "spike", "model": "table7", "no_sink": "no_sink"}
    for name, prefix in rows.items():
        row = np.array([numbers[f"{prefix}_{scale}"].value for scale in SCALES])
        nearest = np.sqrt(((printed - row) ** 2).mean(axis=1)).min()
        assert numbers[f"{name}_distance"].value == pytest.approx(nearest, rel=1e-9)
    distances = [numbers[f"{name}_distance"].value for name in rows]
    assert distances == sorted(distances)


def test_the_reconstruction_error_is_rounding(numbers):
    noise = np.random.default_rng(1).standard_normal((200, LENGTH)).astype(np.float32)
    level = pywt.dwt_max_level(LENGTH // 4, "db2")
    back = pywt.waverec(pywt.wavedec(noise, "db2", level=level), "db2")
    expected = (np.linalg.norm(back - noise, axis=1) / np.linalg.norm(noise, axis=1)).mean()
    assert numbers["error_white_noise"].value == pytest.approx(expected, rel=0.1)
    assert 0 < numbers["error_float64"].value < 1e-15
    error = numbers["C11_error"]
    assert expected / 3 < error.low <= error.high < 3 * expected
    assert error.null == pytest.approx(error.value, rel=0.5)


def test_every_criterion_is_recorded_and_the_verdicts_follow(numbers, tables, verdict):
    verdicts = tables["verdicts"].set_index("claim").verdict
    assert tuple(verdicts.index) == JUDGED
    assert {c.name for number in JUDGED for c in claim(number).criteria} <= numbers.keys()
    for number in JUDGED:
        if not claim(number).demonstration:
            assert verdict(number, numbers) == verdicts[number]
    assert verdict("C11", numbers) == "explained by the null"
    assert verdicts["C11"] == "the quantity cannot tell"


def test_the_model_is_where_a_larger_run_found_it_and_frames_are_redundant(numbers):
    # Means of 18 other passages at n = 128, and three standard errors of five passages.
    near = {"change": (-0.083, 0.024), "level": (0.742, 0.029)}
    assert_near(numbers, {f"C12_{name}": room for name, room in near.items()})
    near = {"constant_q": (0.503, 0.029), "coherence": (0.769, 0.014), "condition": (3.49, 0.155)}
    assert_near(numbers, {f"C14_{name}": room for name, room in near.items()})
    row = numbers["least_dc_share"]
    assert row.null == 1 / LENGTH
    assert row.value >= row.null - 1e-6, "a wavelet would have 0"
    assert numbers["C14_coherence"].value == pytest.approx(numbers["coherence_lag_profile"].value, abs=1e-9)
    for name in ("key_profile", "last_query", "lag_profile"):
        assert 0 < numbers[f"coherence_{name}"].low < numbers[f"coherence_{name}"].high < 1
    assert numbers["C14_condition"].value > numbers["C14_condition"].null > 0
    assert 9 <= numbers["rank_of_all_heads"].value <= LENGTH

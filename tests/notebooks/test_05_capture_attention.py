import numpy as np
import pytest

LENGTH = 64  # of the smoke size
UNIFORM = np.tril(np.ones((LENGTH, LENGTH))) / np.arange(1, LENGTH + 1)[:, None]  # (query, key)


@pytest.mark.parametrize("profile", ["key_profile", "lag_profile"])
def test_profiles_are_those_of_the_models_own_attention(numbers, profile):
    assert numbers[f"float32_{profile}_error"].value > 0
    assert 0 < numbers[f"float32_{profile}_float64_error"].value <= 1e-6
    assert numbers[f"bfloat16_{profile}_float64_error"].value <= 1e-6
    # Eager attention rounds scores and probabilities to 8 significant bits.
    assert 1e-4 < numbers[f"bfloat16_{profile}_error"].value < 3e-2


def test_nulls_are_those_of_the_uniform_causal_matrix_and_the_model_is_far_from_them(numbers):
    query, key = np.indices(UNIFORM.shape)
    expected = {
        "sink_mass": UNIFORM[:, 0].mean(),
        "local_mass_16": np.where(query - key <= 16, UNIFORM, 0).sum(1).mean(),
        "row_entropy": np.log(np.arange(1, LENGTH + 1)).mean(),
        "previous_token_mass": np.diagonal(UNIFORM, -1).mean(),
        "induction_mass": np.diagonal(UNIFORM, -(LENGTH // 2 - 1)).mean(),
    }
    for name, value in expected.items():
        assert numbers[name].null == pytest.approx(value, rel=1e-6), name
    assert numbers["sink_mass"].low > 3 * numbers["sink_mass"].null
    assert numbers["row_entropy"].high < numbers["row_entropy"].null
    assert numbers["previous_token_mass"].value > 0.5
    assert numbers["induction_mass"].value > 0.5  # 0.83 at smoke size; an untrained head has 0.02

from oracles import assert_near


def test_correlations_of_rows_that_learned_nothing(numbers):
    drawn = {"": (-0.91, 0.04), "_wide": (-0.88, 0.05), "_demeaned": (-0.39, 0.25)}  # of 20,000 draws
    assert_near(numbers, {f"rho_dirichlet_hann{which}": near for which, near in drawn.items()})
    near = {"rho_exponential_hann": (-0.98, 0.01), "rho_exponential_boxcar_demeaned": (-0.996, 0.003)}
    assert_near(numbers, near)

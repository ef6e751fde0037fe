import numpy as np
import pytest

from nbhelpers.claims.paper import claim

MODEL = "zoo:rope"


def of(tables, statistic, world=MODEL):
    curves = tables["curves"]
    return curves[(curves.statistic == statistic) & (curves.world == world)]


def test_counts_claims_and_ends_are_those_of_the_curves(numbers, tables):
    spectra = of(tables, "low band")
    assert len(spectra) == 2 * 2**3 * 2, "signals, window, detrend, dc, and two bases of the logarithm"
    assert numbers["specifications_spectra"].value == 2 * (2**3 - 1) * 2
    assert numbers["specifications_wavelets"].value == 2 * 2 == len(of(tables, "S(0.5)"))
    assert set(tables["curves"].world) == {MODEL, "N1 random weights", "N0 uniform", "N2 permuted",
                                           "N3 iid softmax", "N4 exponential"}  # fmt: skip
    inside = np.ones(len(of(tables, "low band")), dtype=bool)
    for criterion, name in zip(claim("C2").criteria, ("low band", "mid band", "high band"), strict=False):
        inside &= of(tables, name).value.between(*criterion.claimed).to_numpy()
    assert numbers["C2_readings"].value == pytest.approx(inside.mean())
    assert numbers["C2_readings_alone"].value <= numbers["C2_readings"].value
    entropy = of(tables, "spectral entropy")
    by_base = entropy.groupby("log_base").value.mean()
    assert by_base["2"] / by_base["10"] == pytest.approx(np.log(10) / np.log(2))
    assert numbers["least_spectral_entropy"].value == entropy.value.min()
    assert numbers["half_most"].value == of(tables, "S(0.5)").value.max(), "as C5 reads it"


def test_the_joint_test_and_the_untrained_network(numbers):
    for name in ("C2", "C4", "C5", "C6"):
        assert numbers[f"{name}_joint_p"].value >= 1 / 3
        assert "least possible 0.333" in numbers[f"{name}_joint_p"].note
    assert 0 <= numbers["one_pipeline"].value <= 3 * 5 * 2 * 2, "no more than there are readings"
    assert numbers["rows_of_table_1"].value <= 7
    assert 0 < numbers["rows_of_table_1"].null < 7
    lost = [numbers[f"reconstruction_error_{name}"].value for name in ("float64", "float32", "float16")]
    assert lost == pytest.approx([6e-16, 2e-7, 2e-4], rel=0.5)
    assert numbers["width_moves_low_band"].value < 0.2

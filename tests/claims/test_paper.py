import pytest

from nbhelpers.claims.paper import TABLES, paper_table

MODELS_PER_TABLE = {1: 7, 2: 7, 3: 7, 4: 4, 5: 7, 6: 8, 7: 7}


@pytest.mark.parametrize("number", list(TABLES))
def test_every_table_is_read_whole(number):
    table = paper_table(number)
    assert table.columns[0] == "model"
    assert table.model.notna().all()
    assert len(table) == MODELS_PER_TABLE[number]


def test_values_are_the_printed_ones():
    table = paper_table(3).set_index("model")
    assert table.loc["Pythia-2.8B", "spectral_entropy_mean"] == 3.786
    assert table.loc["Pythia-12B", "frequency_selectivity_iqr"] == 0.391
    assert paper_table(5).set_index("training_step").loc[0, "low_band_power"] == 0.770
    assert paper_table(1).set_index("model").loc["Qwen2.5-0.5B", "reconstruction_error"] == 1.26e-7


def test_an_unknown_number_lists_the_tables():
    with pytest.raises(ValueError, match=r"tables 1 to 7, got '3'.*3 \(spectral distribution\)"):
        paper_table("3")

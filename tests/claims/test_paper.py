import pytest

from nbhelpers.claims.paper import TABLES, paper_table


def test_every_table_is_read_whole_and_values_are_the_printed_ones():
    tables = {number: paper_table(number) for number in TABLES}
    assert [len(tables[number]) for number in range(1, 8)] == [7, 7, 7, 4, 7, 8, 7]
    assert all(table.columns[0] == "model" and table.model.notna().all() for table in tables.values())
    table = tables[3].set_index("model")
    assert table.loc["Pythia-2.8B", "spectral_entropy_mean"] == 3.786
    assert table.loc["Pythia-12B", "frequency_selectivity_iqr"] == 0.391
    assert tables[5].set_index("training_step").loc[0, "low_band_power"] == 0.770
    assert tables[1].set_index("model").loc["Qwen2.5-0.5B", "reconstruction_error"] == 1.26e-7
    with pytest.raises(ValueError, match=r"one of 1, .* 7; got '3'"):
        paper_table("3")

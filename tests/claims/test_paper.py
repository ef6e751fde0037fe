import dataclasses

import pytest

from nbhelpers.claims import statistics
from nbhelpers.claims.paper import CLAIMS, TABLES, paper_table, rule_changes


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


def test_a_change_of_a_rule_has_a_line_in_the_list_of_changes(monkeypatch):
    changes = rule_changes()
    assert changes.drop(columns="digest").notna().all(axis=None)
    assert changes.date.is_monotonic_increasing
    told = "; add a line to nbhelpers/data/paper/rule_changes.csv: what, before, after, why, and this digest"
    assert changes.digest.iloc[-1] == statistics.rules_digest(), statistics.rules_digest() + told
    before = statistics.rules_digest()
    monkeypatch.setattr("nbhelpers.claims.statistics.LEAST_RATE", 0.944)
    assert statistics.rules_digest() != before
    monkeypatch.undo()
    c5 = dataclasses.replace(CLAIMS[4], second=CLAIMS[4].second[1:])
    monkeypatch.setattr("nbhelpers.claims.paper.CLAIMS", (*CLAIMS[:4], c5, *CLAIMS[5:]))
    assert statistics.rules_digest() != before

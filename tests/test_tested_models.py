"""The table of tested models, against the walk that made it: `make families` tries all types, this a part."""

import functools
import os
import time

import families_walk as walk
import pytest

from nbhelpers.__main__ import main
from nbhelpers.collection.site.build import write_reference
from nbhelpers.inputs import families

# One type for each way in which attention is met, described or refused.
PART = {
    "causal": "llama hrm_text lfm2 inkling2_text deepseek_v32 glm_moe_dsa minimax_m3_vl_text qwen3_next jamba"
    " bloom openai-gpt bart musicgen deepseek_v4 diffllama dots3_note_text mamba reformer",
    "masked": "albert squeezebert roformer perceiver",
    "seq2seq": "t5gemma nllb-moe t5gemma2",
}


@functools.cache
def stored():
    return families.tested_families()


PAIRS = [(task, name) for task, names in PART.items() for name in names.split()]


@pytest.mark.parametrize(("task", "model_type"), PAIRS)
def test_the_stored_table_is_what_a_walk_finds(task, model_type):
    table = stored()
    rows = table[(table["type"] == model_type) & (table["task"] == task)].to_dict("records")
    found = walk.tried(task, model_type)
    kept = ("stream", "verdict", "route", "layers", "said")
    found, expected = ([[row.get(name, "") for name in kept] for row in each] for each in (found, rows))
    assert found == expected


def test_the_stored_table_holds_every_type_and_nothing_wrong():
    table = stored()
    pairs = {(task, name) for task, (_, names) in walk.TASKS.items() for name in names}
    assert set(zip(table["task"], table["type"], strict=True)) == pairs
    assert set(table["verdict"]) == {"exact", "refused", "cannot be built"}
    assert table["difference"][table["verdict"] == "exact"].astype(float).max() <= walk.TOLERANCE
    assert table["said"][table["verdict"] != "exact"].str.len().min() > 10
    assert f"({walk.versions()})" in table.attrs["summary"]


def test_a_wrong_capture_and_an_obscure_error_are_told(monkeypatch):
    monkeypatch.setattr("nbhelpers.hooks.attention.scores_of", lambda *args, **options: (True, 0.3))
    monkeypatch.setattr("nbhelpers.hooks.proof.TOLERANCE", 9.0)
    assert walk.tried("causal", "llama")[0]["verdict"] == "wrong"
    monkeypatch.setattr("nbhelpers.hooks.attention.scores_of", None)
    row = walk.tried("causal", "llama")[0]
    assert (row["verdict"], row["said"]) == ("obscure", "TypeError: 'NoneType' object is not callable")


@pytest.mark.parametrize("ends", [functools.partial(os._exit, 6), functools.partial(time.sleep, 60)])
def test_a_crash_and_a_hang_are_filed(monkeypatch, ends):
    monkeypatch.setattr(walk, "tried", lambda task, model_type: ends())
    monkeypatch.setattr(walk, "SECONDS", 2)
    (row,) = walk.in_child(("causal", "llama"))
    assert row["verdict"] == "cannot be built"
    assert row["said"] == "its process ended without an answer, or took over 2 s"


def test_the_command_prints_the_table_and_the_site_has_a_page_of_it(capsys, tmp_path):
    assert main(["families"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[1:-2]] == stored()["type"].to_list()
    assert said.rstrip().endswith(f"({walk.versions()}).")
    write_reference(tmp_path)
    assert (tmp_path / "tested-models.md").read_text("utf-8").count("<tr>") == len(stored())

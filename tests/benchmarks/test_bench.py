from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from benchmarks import bench
from benchmarks.bench import FLOOR, markdown, serve, summarise
from device_traffic import gpu_marks

SECONDS = {(FLOOR, 64): [2.0, 1.0, 4.0], ("other", 64): [3.0, 3.0, 4.0]}
SECONDS |= {(FLOOR, 128): [2.0, 2.0, 2.0], ("other", 128): [np.nan] * 3}  # out of memory


@pytest.fixture
def table():
    rows = [
        (variant, length, turn, s, 100 * s)
        for (variant, length), seconds in SECONDS.items()
        for turn, s in enumerate([0.5, *seconds])  # turn 0 warms up
    ]
    frame = pd.DataFrame(rows, columns=["variant", "length", "round", "seconds", "peak_mb"])
    return summarise(frame.assign(machine="one, 2 threads", dtype="default"))


def test_minima_and_their_ratios_are_in_the_table_of_the_readme(table):
    by = table.set_index(["variant", "length"])
    assert by.loc[("other", 64), "seconds_min"] == 3.0, "the warm-up does not count"
    assert by.loc[("other", 64), "ratio_of_minima"] == 3.0
    assert by.loc[("other", 64), "ratio_of_medians"] == 1.5
    assert by.loc[("other", 64), "peak_mb"] == 400.0
    assert np.isnan(by.loc[("other", 128), "ratio_of_minima"])
    assert (table.rounds == 3).all()

    lines = markdown(table).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert cells[0] == ["time over a plain forward pass", "64", "128", "peak MB over the model, T = 128"]
    assert cells[2] == [FLOOR, "1.00", "1.00", "200"]
    assert cells[3] == ["other", "3.00", "-", "-"], "a dash where memory ran out"
    assert lines[5] == "one, 2 threads; dtype default, minima of 3 rounds"


def served(folder, *, device, variant="key profile"):
    pipe = Mock(recv=Mock(side_effect=[16, 48, 0]))
    serve(pipe, variant, str(folder), device, None, torch.get_num_threads())
    return [call.args[0] for call in pipe.send.call_args_list]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu_marks())])
def test_a_worker_names_its_machine_and_measures(tiny_llama_folder, device):
    facts, *answers = served(tiny_llama_folder, device=device)
    assert ("threads" in facts["machine"], facts["dtype"]) == (device == "cpu", "float32")
    assert len(answers) == 2
    assert all(answer["seconds"] > 0 for answer in answers)
    assert all(np.isfinite(answer["peak_mb"]) for answer in answers)


def test_out_of_memory_is_an_answer(tiny_llama_folder, monkeypatch):
    def exhausted(model, ids):
        if ids.shape[1] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setitem(bench.VARIANTS, "exhausted", exhausted)
    answers = served(tiny_llama_folder, device="cpu", variant="exhausted")[1:]
    assert answers[0]["seconds"] > 0
    assert answers[1] == {"seconds": None, "peak_mb": None}


def test_readme_quotes_the_stored_numbers():
    stored = pd.read_csv(Path(__file__).parent / "smollm2-135m-cpu.csv")
    made = markdown(stored[stored.busy_loops == 0]).splitlines()
    known = {line.split(" | ", 1)[1] for line in made if " | " in line}
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    quoted = [line for line in readme.split("| time over")[1].split("\n\n")[0].splitlines() if " | " in line]
    assert len(quoted) == 9
    assert {line.split(" | ", 1)[1] for line in quoted} <= known

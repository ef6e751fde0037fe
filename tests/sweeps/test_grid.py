import itertools
import json

import pytest

from nbhelpers.claims.paper import paper_table
from nbhelpers.inputs.files import zoo_models
from nbhelpers.inputs.zoo import ENCODINGS
from nbhelpers.protocol import PAPER
from nbhelpers.sweeps.grid import load_grid, make_grid, read_plan, shipped_grids, write_plan

SMALL = {"model": "owner/model", "corpus": "moby-dick", "n_sequences": 3, "length": 64}


def test_a_grid_is_the_product_of_its_axes():
    axes = {
        "model": ["owner/a", "owner/b"], "revision": [None, "step1"], "corpus": ["moby-dick", "wikipedia"],
        "n_sequences": [3, 5], "length": [32, 64], "protocol": [{}, {"window": "boxcar"}], "seed": [0, 1],
    }  # fmt: skip
    grid = make_grid(axes)
    runs = [vars(run) | {"protocol": run.protocol["window"]} for run in grid.runs]
    got = {tuple(run[axis] for axis in axes) for run in runs}
    axes["protocol"] = ["hann", "boxcar"]
    assert got == set(itertools.product(*axes.values()))
    assert len({run.id for run in grid.runs}) == len(grid.runs) == 2**7
    # Runs of one checkpoint follow each other, so that a worker loads it once.
    assert len([*itertools.groupby(grid.runs, key=lambda run: (run.model, run.revision))]) == 4
    # Runs side by side do not see the same attention: the second would capture it again at the same time.
    assert not any(a.observation_key == b.observation_key for a, b in itertools.pairwise(grid.runs))


def test_the_id_follows_every_setting_and_no_label():
    (plain,) = make_grid(SMALL).runs
    changes = [
        {"model": "owner/other"}, {"revision": "main"}, {"corpus": "wikipedia"}, {"n_sequences": 4},
        {"length": 65}, {"protocol": {"detrend": "mean"}}, {"seed": 1}, {"bos": "none"}, {"dtype": "float64"},
        {"device": "cpu"}, {"batch_size": 2}, {"control_seeds": 3},
    ]  # fmt: skip
    ids = {make_grid(SMALL | change).runs[0].id for change in changes}
    assert len(ids | {plain.id}) == len(changes) + 1
    labelled = {"name": "owner/model", "paper": "Pythia-14M", "n_parameters": 14e6}
    for same in ({"model": labelled, "about": "words"}, {"protocol": {"window": PAPER.window}}):
        assert make_grid(SMALL | same).runs[0].id == plain.id


def test_what_differs_for_some_runs_stands_under_also():
    also = [{"length": [128, 256]}, {"model": ["owner/model", "owner/b"], "bos": "none"}]
    runs = make_grid(SMALL | {"also": also}).runs
    told = [(run.model, run.length, run.bos) for run in runs]
    assert told[:3] == [("owner/model", length, "tokenizer") for length in (64, 128, 256)]
    assert told[3:] == [("owner/model", 64, "none"), ("owner/b", 64, "none")]
    for wrong, says in (([{}], "is there twice"), ([3], "mappings"), ([{"widow": 1}], "unknown key 'widow'")):
        with pytest.raises(ValueError, match=says):
            make_grid(SMALL | {"also": wrong})


def test_an_edited_local_file_is_another_run_and_a_copy_is_not(tmp_path, tiny_llama_folder):
    text, copy = tmp_path / "text.txt", tmp_path / "copy" / "text.txt"
    copy.parent.mkdir()
    text.write_text("one two three")
    copy.write_text("one two three")
    grid = SMALL | {"model": str(tiny_llama_folder), "corpus": str(text)}
    before, moved = (make_grid(grid | {"corpus": str(file)}).runs[0] for file in (text, copy))
    text.write_text("one two four")
    assert before.id == moved.id != make_grid(grid).runs[0].id
    assert before.corpus == str(text.resolve())
    assert before.label == f"{tiny_llama_folder.name} text.txt 3x64"


def test_shipped_grids_are_those_of_the_papers_tables():
    grids = {name: load_grid(name) for name in shipped_grids()}
    assert {name: (len(grid.runs), grid.paper_tables) for name, grid in grids.items()} == {
        "pythia-sizes": (16, (6,)),
        "pythia-6.9b-checkpoints": (14, (5,)),
        "paper-models": (14, (1, 2, 3, 7)),
        "position-encodings": (8, (4,)),
        "zoo": (28, ()),
        "packaged-models": (17, ()),
    }
    for grid in grids.values():
        assert grid.about
        for number in grid.paper_tables:  # every printed row has its runs
            assert set(paper_table(number).model) <= {run.paper for run in grid.runs}
    steps = {int(run.revision.removeprefix("step")) for run in grids["pythia-6.9b-checkpoints"].runs}
    assert steps == set(paper_table(5).training_step)
    models = {run.model for run in grids["zoo"].runs}
    assert models == {f"zoo:{encoding}" for encoding in ENCODINGS} <= zoo_models().keys()


def test_a_file_and_a_shipped_name(tmp_path):
    file = tmp_path / "mine.v2.yaml"
    file.write_text("model: owner/a\ncorpus: moby-dick\nn_sequences: 1\nlength: 8\npaper_table: 6\n")
    grid = load_grid(file)
    assert (grid.name, len(grid.runs), grid.paper_tables) == ("mine.v2", 1, (6,))
    with pytest.raises(FileNotFoundError, match="pythia-sizes"):
        load_grid("nothing")
    file.write_text("model: [")
    with pytest.raises(ValueError, match="not YAML"):
        load_grid(file)


def test_mistakes_are_refused_before_anything_runs():
    for raw, word in (
        (SMALL | {"lenght": 3}, "unknown key 'lenght'"),
        (SMALL | {"model": {"nam": "a"}}, "a model must be a name"),
        (SMALL | {"length": []}, "'length' is missing or empty"),
        (SMALL | {"seed": []}, "'seed' is an empty list"),
        (SMALL | {"length": 64.5}, "length must be a whole number .* got 64.5"),
        (SMALL | {"protocol": {"windows": "hann"}}, "no field 'windows'"),
        (SMALL | {"protocol": {"window": "hamming"}}, "window of Protocol"),
        (SMALL | {"protocol": "paper"}, "differ from PAPER"),
        (SMALL | {"paper_table": [6, 9]}, "paper_table must be .* got 9"),
        (SMALL | {"length": [64, 64]}, "there twice"),
        (SMALL | {"corpus": ["nowhere.txt"]}, "no text"),
        ([SMALL], "expected a mapping"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=word):
            make_grid(raw)


def test_the_plan_is_the_grid_and_other_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_plan(tmp_path / "nowhere")
    (tmp_path / "executed").mkdir()
    with pytest.raises(ValueError, match="it holds executed"):
        read_plan(tmp_path)
    grid = make_grid(SMALL | {"length": [8, 16], "paper_table": 6, "about": "two runs"}, name="mine")
    write_plan(tmp_path, grid)
    assert read_plan(tmp_path) == grid
    plan = json.loads((tmp_path / "grid.json").read_text())
    plan["runs"][0]["target"] = "nbhelpers.metrics:analyze"  # of another version
    for damaged in ("{", "{}", json.dumps(plan)):
        (tmp_path / "grid.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"damaged .*, or of another version"):
            read_plan(tmp_path)

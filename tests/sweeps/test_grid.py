"""Grids: the product of their axes, each run known by its settings, mistakes told before anything runs."""

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
        "model": ["owner/a", "owner/b"],
        "revision": [None, "step1"],
        "corpus": ["moby-dick", "wikipedia"],
        "n_sequences": [3, 5],
        "length": [32, 64],
        "protocol": [{}, {"window": "boxcar"}],
        "seed": [0, 1],
    }
    grid = make_grid(axes)
    got = [
        (r.model, r.revision, r.corpus, r.n_sequences, r.length, r.protocol["window"], r.seed)
        for r in grid.runs
    ]
    expected = itertools.product(*(axes[axis] for axis in axes if axis != "protocol"), ["hann", "boxcar"])
    assert set(got) == {(*point[:5], point[6], point[5]) for point in expected}
    assert len(got) == len(set(got)) == 2**7
    assert len({run.id for run in grid.runs}) == 2**7
    # Runs of one checkpoint follow each other, so that a worker loads it once.
    checkpoints = [key for key, _ in itertools.groupby(grid.runs, key=lambda run: (run.model, run.revision))]
    assert len(checkpoints) == 4
    # Runs side by side do not see the same attention: the second would capture it again at the same time.
    neighbours = itertools.pairwise(grid.runs)
    assert not any(a.observation_key == b.observation_key for a, b in neighbours)


def test_models_may_bring_their_own_revisions():
    models = [{"name": "owner/a", "revision": ["step0", "step1"], "paper": "A"}, "owner/b"]
    runs = make_grid(SMALL | {"model": models}).runs
    assert [(run.model, run.revision, run.paper) for run in runs] == [
        ("owner/a", "step0", "A"),
        ("owner/a", "step1", "A"),
        ("owner/b", None, None),
    ]


def test_the_id_follows_every_setting_and_no_label():
    (plain,) = make_grid(SMALL).runs
    changes = [
        {"model": "owner/other"}, {"revision": "main"}, {"corpus": "wikipedia"}, {"n_sequences": 4},
        {"length": 65}, {"protocol": {"detrend": "mean"}}, {"seed": 1}, {"bos": "none"}, {"dtype": "float64"},
        {"device": "cpu"}, {"batch_size": 2},
    ]  # fmt: skip
    ids = {make_grid(SMALL | change).runs[0].id for change in changes}
    assert len(ids | {plain.id}) == len(changes) + 1
    labelled = {"name": "owner/model", "paper": "Pythia-14M", "n_parameters": 14e6}
    assert make_grid(SMALL | {"model": labelled, "about": "words"}).runs[0].id == plain.id
    assert make_grid(SMALL | {"protocol": {"window": PAPER.window}}).runs[0].id == plain.id
    json.dumps(plain.settings)


def test_an_edited_local_file_is_another_run(tmp_path, tiny_llama_folder):
    text = tmp_path / "text.txt"
    text.write_text("one two three")
    grid = SMALL | {"model": str(tiny_llama_folder), "corpus": str(text)}
    before = make_grid(grid).runs[0]
    assert make_grid(grid).runs[0].id == before.id
    text.write_text("one two four")
    assert make_grid(grid).runs[0].id != before.id
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
    }
    for name, grid in grids.items():
        assert grid.name == name
        assert grid.about
        for number in grid.paper_tables:  # every printed row has its runs
            assert set(paper_table(number).model) <= {run.paper for run in grid.runs}
    steps = {int(run.revision.removeprefix("step")) for run in grids["pythia-6.9b-checkpoints"].runs}
    assert steps == set(paper_table(5).training_step)
    sequences = {run.n_sequences for name, grid in grids.items() if name != "zoo" for run in grid.runs}
    assert sequences == {500}
    models = {run.model for run in grids["zoo"].runs}
    assert models == {f"zoo:{encoding}" for encoding in ENCODINGS} <= zoo_models().keys()


def test_a_file_and_a_shipped_name(tmp_path):
    file = tmp_path / "mine.v2.yaml"
    file.write_text("model: owner/a\ncorpus: moby-dick\nn_sequences: 1\nlength: 8\npaper_table: 6\n")
    grid = load_grid(file)
    assert (grid.name, len(grid.runs), grid.paper_tables) == ("mine.v2", 1, (6,))
    with pytest.raises(FileNotFoundError, match=r"no grid file 'nothing'.*pythia-sizes"):
        load_grid("nothing")
    file.write_text("model: [")
    with pytest.raises(ValueError, match=r"mine\.v2\.yaml is not YAML"):
        load_grid(file)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lenght": 3}, "unknown key 'lenght'; the keys are about, batch_size, bos"),
        ({"model": {"nam": "a"}}, "a model is a name or a mapping with name, paper, revision"),
        ({"length": []}, "'length' is missing or empty"),
        ({"seed": []}, "'seed' is an empty list"),
        ({"length": 64.5}, "length is 64.5, expected a whole number of at least 1"),
        ({"n_sequences": True}, "n_sequences is True, expected a whole number"),
        ({"bos": "yes"}, "bos is 'yes', expected one of tokenizer, add, none"),
        ({"protocol": {"windows": "hann"}}, "the protocol has no field 'windows'; it has signal, sink"),
        ({"protocol": {"window": "hamming"}}, "Protocol.window is 'hamming'; the options are 'hann'"),
        ({"protocol": "paper"}, "expected the fields that differ from PAPER"),
        ({"target": "analyze"}, "unknown key 'target'"),
        ({"paper_table": [6, 9]}, r"the paper has the tables 1 to 7, not \[9\]"),
        ({"length": [64, 64]}, "grid grid: the run 'owner/model moby-dick 3x64' is there twice"),
        ({"corpus": ["nowhere.txt"]}, "no text 'nowhere.txt'"),
    ],
)
def test_mistakes_are_told_before_anything_runs(change, told):
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        make_grid(SMALL | change)
    with pytest.raises(ValueError, match="holds list, expected a mapping"):
        make_grid([SMALL])


# The folder of a sweep


def test_the_plan_is_the_grid(tmp_path):
    grid = make_grid(SMALL | {"length": [8, 16], "paper_table": 6, "about": "two runs"}, name="mine")
    write_plan(tmp_path, grid)
    assert read_plan(tmp_path) == grid
    assert [run.id for run in read_plan(tmp_path).runs] == [run.id for run in grid.runs]


def test_other_folders_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no folder .*nowhere; make a sweep with: python -m nbhelpers"
    ):
        read_plan(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"not the folder of a sweep: it holds nothing, and no grid\.json"):
        read_plan(tmp_path)
    (tmp_path / "executed").mkdir()
    with pytest.raises(ValueError, match="it holds executed"):
        read_plan(tmp_path)
    write_plan(tmp_path, make_grid(SMALL))
    plan = json.loads((tmp_path / "grid.json").read_text())
    plan["runs"][0]["target"] = "nbhelpers.metrics:analyze"  # of a version that had targets
    for damaged in ("{", "{}", json.dumps(plan)):
        (tmp_path / "grid.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"damaged or of another version .*; measure again with: python"):
            read_plan(tmp_path)

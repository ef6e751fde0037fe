import pytest

from nbhelpers.collection import plan


def plans(folder, names=None, **options):
    listed = plan.plan_runs(plan.select_notebooks(names, folder=folder), **options)
    return {one.name: one for one in listed}


@pytest.fixture
def two(notebook, folder):
    notebook("01_theory", parameters="length = 8  # tokens\nratio = 0.5  # of the length")
    parameters = 'model = "small"  # alias\nlength = 128  # tokens\nresults = "results"  # folder'
    notebook("05_bands", parameters=parameters)
    (folder / "sizes.toml").write_text("[05_bands.smoke]\nlength = 32\n[05_bands.full]\nlength = 1024\n")
    return folder


def test_select_by_number_name_path_or_all(two, notebook):
    assert [path.stem for path in plan.list_notebooks(two)] == ["01_theory", "05_bands"]
    for name in ("05", "bands", "05_bands", two / "05_bands.ipynb"):
        assert plan.select_notebooks([name], folder=two) == [(two / "05_bands.ipynb").resolve()]
    assert plan.select_notebooks(None, folder=two) == plan.list_notebooks(two)
    notebook("06_bands")
    for names, told in (
        (["bands"], "means 2 notebooks"),
        (["07"], "'07' means 0"),
        (["band"], "'band' means 0"),
        (["nowhere/05_bands.ipynb"], "nowhere"),
        (["05", "05_bands"], "2 times"),
    ):
        with pytest.raises(LookupError, match=told):
            plan.select_notebooks(names, folder=two)


def test_map_of_the_collection_is_read_from_the_title_cells(notebook, folder):
    items = "- **Needs**: nothing.\n- **Paper**: eqs. 1–3;\n  claim C18.\n- next: [02](02_bare.ipynb)"
    notebook("01_full", title=f"# 01 · Full: 2 · 3\n\n**Does it\nrun?**\n\nIt does. Or not?\n\n{items}")
    notebook("02_bare", title="# 02 · Bare\n\nNo more is said.")
    assert plan.collection_map(folder).to_dict("split")["data"] == [
        ["01_full", "Full: 2 · 3", "Does it run?", "eqs. 1–3; claim C18."],
        ["02_bare", "Bare", "No more is said.", ""],
    ]
    assert list(plan.collection_map(folder)) == ["notebook", "title", "question", "paper"]
    assert (plan.collection_map() != "").all(axis=None), "every notebook of ours says all of it"


def test_folder_is_found_from_inside_and_beside(two, monkeypatch):
    (two.parent / "other").mkdir()
    for place in (two.parent, two.parent / "other"):
        monkeypatch.chdir(place)
        assert plan.find_notebook_folder() == two
    with pytest.raises(FileNotFoundError, match="nowhere"):
        plan.find_notebook_folder(two / "nowhere")


def test_parameters_are_literals_of_one_cell(notebook):
    source = "a = -1  # int\nb: float = 1e-3  # annotated\nc = [\n    'x',  # over lines\n]\nd = None"
    expected = {"a": -1, "b": 1e-3, "c": ["x"], "d": None}
    assert plan.notebook_parameters(notebook("01_a", parameters=source)) == expected
    for source, told in ((None, "0 cells tagged 'parameters'"), ("a = 1\nb = 2 * a", "line 2: 'b = 2")):
        with pytest.raises(ValueError, match=told):
            plan.notebook_parameters(notebook("01_a", parameters=source))


def test_sizes_model_and_own_parameters(two):
    planned = plans(two, size="smoke", model="other", parameters={"ratio": 1}, places={"results": "/results"})
    assert planned["05_bands"].parameters == {"length": 32, "model": "other", "results": "/results"}
    assert planned["01_theory"].parameters == {"ratio": 1}
    theory = " ".join(planned["01_theory"].notes)
    assert "no smoke size" in theory
    assert "'model'" in theory  # what is not passed is said
    assert plans(two)["05_bands"].parameters == {}, "the reader's size is that of the notebook"
    own = {"length": 7, "model": "mine", "results": "here"}
    planned = plans(two, ["05"], size="full", model="other", places={"results": "/results"}, parameters=own)
    assert planned["05_bands"].parameters == own


def test_plans_and_sizes_that_are_refused(two):
    with pytest.raises(ValueError, match="'ratio'; they have: 05_bands: model, length, results"):
        plans(two, ["05"], parameters={"ratio": 0.1})
    for value in ("long", 1.5, True, [8]):
        with pytest.raises(ValueError, match=r"length of 0._\w+ is int"):
            plans(two, parameters={"length": value})
    for line, message in (
        ("[09_none.smoke]\nlength = 1", "names the notebook '09_none'"),
        ("[05_bands.smoke]\nlengths = 1", "no parameter 'lengths'"),
        ("[05_bands.tiny]\nlength = 1", "'tiny' is not a table"),
        ("[05_bands.smoke]\nlength = 'x'", "length of 05_bands is int"),
    ):
        (two / "sizes.toml").write_text(line)
        with pytest.raises(ValueError, match=message):
            plan.load_sizes(two)

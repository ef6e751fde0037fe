"""The notebook collection on disk: where it is, what each notebook asks and takes, and its sizes."""

import ast
import contextlib
import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbhelpers.arguments import RULES, checked, one_of
from nbhelpers.files import writable_folder, write_text

SIZES = ("smoke", "reader", "full")
SHIPPED = Path(__file__).parents[1] / "notebooks"  # in a checkout a link to the folder beside the package


@dataclass(frozen=True)
class PlannedRun:
    """One notebook, the values for its ``parameters`` cell, and what was not passed and why."""

    name: str
    source: Path
    parameters: dict[str, Any]
    notes: tuple[str, ...] = ()


def find_notebook_folder(folder=None):
    """Return the folder given, else the first of ``./notebooks``, ``../notebooks`` and the package's."""
    places = [Path("notebooks"), Path("../notebooks"), SHIPPED] if folder is None else [Path(folder)]
    if there := [place for place in places if place.is_dir()]:
        return there[0].resolve()
    looked = ", ".join(map(str, places))
    raise FileNotFoundError(f"no folder of notebooks at {looked}; run from a checkout or give a folder")


def list_notebooks(folder=None):
    """Return the notebooks of the collection, sorted by name; `folder` as in `find_notebook_folder`."""
    return sorted(find_notebook_folder(folder).glob("*.ipynb"))


def copy_notebooks(folder):
    """Copy the package's notebooks, pages and sizes to a folder, unless it has others so named; return it."""
    files = sorted(path for kind in ("ipynb", "md", "bib", "toml") for path in SHIPPED.glob(f"*.{kind}"))
    folder = writable_folder(folder)
    for file in files:
        there = folder / file.name
        if there.exists() and there.read_bytes() != file.read_bytes():
            raise FileExistsError(f"{there} is another file than {file}; give another folder")
    for file in files:
        write_text(folder / file.name, file.read_text(encoding="utf-8"))
    return folder


def select_notebooks(names=None, *, folder=None):
    """Return the notebooks meant by `names`, in the order given; the whole collection if None.

    Each is a number (``"07"``), a name (``"frequency_bands"`` or ``"07_frequency_bands"``) or a path.
    """
    if names is None:
        if paths := list_notebooks(folder):
            return paths
        raise LookupError(f"{find_notebook_folder(folder)} holds no notebook (*.ipynb)")
    chosen = [_find_notebook(name, folder) for name in names]
    for stem, times in Counter(path.stem for path in chosen).items():
        if times > 1:
            raise LookupError(f"notebook {stem} was asked {times} times; results are kept by name, ask once")
    return chosen


def _find_notebook(name, folder):
    path = Path(name)
    if path.suffix == ".ipynb":
        if path.is_file():
            return path.resolve()
        raise LookupError(f"there is no notebook file at {name}")
    there = list_notebooks(folder)
    hits = [path for path in there if str(name) in (path.stem, *path.stem.split("_", 1))]
    if len(hits) == 1:
        return hits[0]
    known = ", ".join(path.stem for path in there) or "none"
    raise LookupError(f"{name!r} means {len(hits)} notebooks; there are: {known}")


def read_title(text, *, default=""):
    """Return the heading of a title cell, else `default`, and the first question below it, else sentence."""
    heading = re.search(r"^# +(.+)$", text, flags=re.MULTILINE)
    title = heading.group(1).strip() if heading else default
    paragraphs = (text[heading.end() :] if heading else text).split("\n\n")
    splits = (re.split(r"(?<=[.?!])\s+|(?<=[.?!]\*\*)\s+", " ".join(p.split())) for p in paragraphs)
    sentences = [sentence for split in splits for sentence in split]
    asked = [sentence for sentence in sentences if sentence.rstrip("*_").endswith("?")]
    return title, next(filter(None, asked + sentences), "")


def collection_map(folder=None):
    """Return a row per notebook, read from its title cell: notebook, title, question, paper."""
    import pandas as pd  # takes a second, which the runner need not wait for

    rows = []
    for path in list_notebooks(folder):
        text = _cells(path)[0].source
        title, question = read_title(text, default=path.stem)
        item = re.search(r"^- \*\*Paper\*\*: (.+(?:\n  .+)*)", text, flags=re.MULTILINE)
        paper = " ".join(item.group(1).split()) if item else ""
        rows.append((path.stem, re.sub(r"^\d+ · ", "", title), question.strip("*"), paper))
    return pd.DataFrame(rows, columns=["notebook", "title", "question", "paper"])


def notebook_parameters(path):
    """Return the parameters of a notebook with their defaults: its one cell tagged ``parameters``."""
    tagged = [cell for cell in _cells(path) if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{Path(path).name} has {len(tagged)} cells tagged 'parameters', expected exactly 1")
    return dict(_literal_assignment(node, Path(path).name) for node in ast.parse(tagged[0].source).body)


def _cells(path):
    from .notebook_files import nbformat  # which the kernels that import the scorecard need not wait for

    return nbformat.read(path, as_version=4).cells


def _literal_assignment(node, where):
    match node:
        case ast.AnnAssign(ast.Name(name), value=value) | ast.Assign([ast.Name(name)], value) if value:
            with contextlib.suppress(ValueError):  # not a literal: the error below says where
                return name, ast.literal_eval(value)
    told = f"{where}, parameters cell, line {node.lineno}: {ast.unparse(node)!r} is not `name = literal`"
    raise ValueError(f"{told}; move what is derived to the next cell")


def load_sizes(folder=None):
    """Return ``{notebook: {size: {parameter: value}}}`` from the folder's ``sizes.toml``; {} without one."""
    folder = find_notebook_folder(folder)
    file = folder / "sizes.toml"
    sizes = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    there = {path.stem: path for path in list_notebooks(folder)}
    for name, by_size in sizes.items():  # a typing error would run the reader's size unnoticed
        if name not in there:
            known = ", ".join(there) or "none"
            raise ValueError(f"sizes.toml names the notebook {name!r}; there are: {known}")
        defaults = notebook_parameters(there[name])
        for size, values in by_size.items():
            if size not in ("smoke", "full") or not isinstance(values, dict):
                raise ValueError(f"sizes.toml, {name}: {size!r} is not a table called smoke or full")
            for parameter, value in values.items():
                _check_parameter(name, defaults, parameter, value, "sizes.toml: ")
    return sizes


def _check_parameter(name, defaults, parameter, value, source=""):
    if parameter not in defaults:
        known = ", ".join(defaults) or "none"
        raise ValueError(f"{source}{name} has no parameter {parameter!r}; it has: {known}")
    default, told = defaults[parameter], f"{source}parameter {parameter} of {name}"
    if default is None or value is None:
        return
    kinds = type(default).__name__, type(value).__name__
    if kinds[0] != kinds[1] and kinds != ("float", "int") and not {*kinds} <= {"list", "tuple"}:
        raise ValueError(f"{told} is {kinds[0]} (default {default!r}), got {kinds[1]} {value!r}")
    if parameter in RULES and isinstance(default, (int, float, str)):
        RULES[parameter](told, value)


@checked(size=one_of(*SIZES))
def plan_runs(paths, *, size="reader", model=None, parameters=None, places=None):
    """Decide which parameters each notebook is given.

    First come those of the `size` (smoke, reader or full) in ``sizes.toml`` beside the notebooks, then
    `places` (folders, for the notebooks that have a parameter of that name), then `model`, then `parameters`,
    which win. Each must fit one of the notebooks and the type of its default.
    """
    given, places = parameters or {}, places or {}
    sources = {path.stem: path for path in paths}
    defaults = {name: notebook_parameters(path) for name, path in sources.items()}
    for parameter in given:
        if not any(parameter in own for own in defaults.values()):
            known = "; ".join(f"{name}: {', '.join(own) or 'none'}" for name, own in defaults.items())
            raise ValueError(f"no selected notebook has a parameter {parameter!r}; they have: {known}")
    if model is not None:
        given = {"model": model} | given
    sizes = {folder: load_sizes(folder) for folder in {path.parent for path in sources.values()}}
    planned = []
    for name, source in sources.items():
        own, by_size, notes = defaults[name], sizes[source.parent].get(name, {}), []
        if size != "reader" and size not in by_size:
            notes.append(f"sizes.toml gives no {size} size for {name}: it runs with its own defaults")
        values = by_size.get(size, {}) | {key: str(path) for key, path in places.items() if key in own}
        values |= {key: value for key, value in given.items() if key in own}
        lacking = given.keys() - own
        notes += [f"{name} has no parameter {k!r}: {given[k]!r} is not passed to it" for k in sorted(lacking)]
        for parameter, value in values.items():
            _check_parameter(name, own, parameter, value)
        planned.append(PlannedRun(name, source, values, tuple(notes)))
    return planned

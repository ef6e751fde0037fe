"""The notebook collection on disk: where it is, what each notebook takes, which values each size gives."""

import ast
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

SIZES = ("smoke", "reader", "full")


@dataclass(frozen=True)
class PlannedRun:
    """One notebook and the parameters it will be given.

    Attributes
    ----------
    name : str
        File name without suffix.
    source : Path
        The notebook as stored.
    parameters : dict
        What is passed to the notebook's ``parameters`` cell; its other parameters keep their defaults.
    notes : tuple of str
        What was not passed and why, for a reader of the log.
    """

    name: str
    source: Path
    parameters: dict[str, Any]
    notes: tuple[str, ...] = field(default=())


def find_notebook_folder(folder: str | Path | None = None) -> Path:
    """Return the folder of the collection.

    Parameters
    ----------
    folder : path, optional
        Used as it is. Otherwise the first that exists of ``./notebooks``, ``../notebooks`` and the
        folder beside the package's source tree.

    Raises
    ------
    FileNotFoundError
        If there is none; the message lists the places looked at.
    """
    if folder is not None:
        places = [Path(folder)]
    else:
        places = [Path("notebooks"), Path("../notebooks"), Path(__file__).parents[2] / "notebooks"]
    for place in places:
        if place.is_dir():
            return place.resolve()
    looked = ", ".join(str(place) for place in places)
    raise FileNotFoundError(
        f"no folder of notebooks at {looked}; run from a checkout of the project or give a folder"
    )


def list_notebooks(folder: str | Path | None = None) -> list[Path]:
    """Return the notebooks of the collection, sorted by name.

    Parameters
    ----------
    folder : path, optional
        See `find_notebook_folder`.
    """
    return sorted(find_notebook_folder(folder).glob("*.ipynb"))


def select_notebooks(
    names: Iterable[str | Path] | None = None, *, folder: str | Path | None = None
) -> list[Path]:
    """Return the notebooks meant by `names`, in the order given.

    Parameters
    ----------
    names : iterable of str or path, optional
        Each a number (``"07"``), a name (``"07_frequency_bands"``) or the path of any notebook.
        All of the collection if None.

    Raises
    ------
    LookupError
        If a name means no notebook, or two; the message lists what there is.
    """
    if names is None:
        paths = list_notebooks(folder)
        if not paths:
            raise LookupError(f"{find_notebook_folder(folder)} holds no notebook (*.ipynb)")
        return paths
    chosen = [_find_notebook(name, folder) for name in names]
    stems = [path.stem for path in chosen]
    for stem in stems:
        if stems.count(stem) > 1:
            raise LookupError(
                f"notebook {stem} was asked {stems.count(stem)} times; results are kept by name, so ask once"
            )
    return chosen


def _find_notebook(name: str | Path, folder: str | Path | None) -> Path:
    path = Path(name)
    if path.suffix == ".ipynb":
        if path.is_file():
            return path.resolve()
        raise LookupError(f"there is no notebook file at {name}")
    there = list_notebooks(folder)
    hits = [path for path in there if path.stem == str(name)]
    hits = hits or [path for path in there if path.stem.split("_")[0] == str(name)]
    if len(hits) == 1:
        return hits[0]
    known = ", ".join(path.stem for path in there) or "none"
    raise LookupError(f"{name!r} means {len(hits)} notebooks; there are: {known}")


def notebook_parameters(path: str | Path) -> dict[str, Any]:
    """Return the parameters of a notebook with their defaults.

    Parameters
    ----------
    path : path
        A notebook with exactly one cell tagged ``parameters`` that holds assignments of literals only.

    Raises
    ------
    ValueError
        If the tag is missing or given twice, or the cell holds anything but ``name = literal``.
    """
    notebook = nbformat.read(path, as_version=4)
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(
            f"{Path(path).name} has {len(tagged)} cells tagged 'parameters', expected exactly 1; "
            "add the tag to the cell with its settings"
        )
    parameters = {}
    for node in ast.parse(tagged[0].source).body:
        name, value = _literal_assignment(node, Path(path).name)
        parameters[name] = value
    return parameters


def _literal_assignment(node: ast.stmt, where: str) -> tuple[str, Any]:
    target = node.target if isinstance(node, ast.AnnAssign) else None
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
    if isinstance(target, ast.Name) and node.value is not None:
        try:
            return target.id, ast.literal_eval(node.value)
        except ValueError:
            pass  # not a literal: the error below says where
    raise ValueError(
        f"{where}, parameters cell, line {node.lineno}: {ast.unparse(node)!r} is not `name = literal`; "
        "move what is derived to the next cell"
    )


def load_sizes(folder: str | Path | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """Return ``{notebook: {size: {parameter: value}}}`` from the folder's ``sizes.toml``, checked.

    Every notebook, size and parameter named there must exist: a typing error would otherwise run
    the reader's size unnoticed. Without the file the answer is empty.

    Raises
    ------
    ValueError
        If the file names a notebook, a size or a parameter that does not exist.
    """
    folder = find_notebook_folder(folder)
    file = folder / "sizes.toml"
    if not file.is_file():
        return {}
    sizes = tomllib.loads(file.read_text(encoding="utf-8"))
    there = {path.stem: path for path in list_notebooks(folder)}
    for name, by_size in sizes.items():
        if name not in there:
            raise ValueError(
                f"sizes.toml names the notebook {name!r}; there are: {', '.join(there) or 'none'}"
            )
        defaults = notebook_parameters(there[name])
        for size, values in by_size.items():
            if size not in ("smoke", "full") or not isinstance(values, dict):
                raise ValueError(f"sizes.toml, {name}: {size!r} is not a table called smoke or full")
            for parameter, value in values.items():
                _check_parameter(name, defaults, parameter, value, source="sizes.toml: ")
    return sizes


def _check_parameter(
    name: str, defaults: Mapping[str, Any], parameter: str, value: Any, *, source: str = ""
) -> None:
    if parameter not in defaults:
        known = ", ".join(defaults) or "none"
        raise ValueError(f"{source}{name} has no parameter {parameter!r}; it has: {known}")
    default = defaults[parameter]
    if default is None or value is None:
        return
    same_kind = type(value) is type(default) or (type(default) is float and type(value) is int)
    if not same_kind and not {type(value), type(default)} <= {list, tuple}:
        raise ValueError(
            f"{source}parameter {parameter} of {name} is {type(default).__name__} (default {default!r}), "
            f"got {type(value).__name__} {value!r}"
        )


def plan_runs(
    paths: Iterable[Path],
    *,
    size: str = "reader",
    model: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    places: Mapping[str, str | Path] | None = None,
    folder: str | Path | None = None,
) -> list[PlannedRun]:
    """Decide which parameters each notebook is given.

    Sizes come first, then `model`, then `places` (folders, for the notebooks that have a parameter of that
    name), then `parameters`, which win.

    Raises
    ------
    ValueError
        If the size is unknown, a parameter fits none of the notebooks or has another type than its default.
    """
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; there are: {', '.join(SIZES)}")
    given = dict(parameters or {})
    sources = {path.stem: path for path in paths}
    defaults = {name: notebook_parameters(path) for name, path in sources.items()}
    for parameter in given:
        if not any(parameter in own for own in defaults.values()):
            known = "; ".join(f"{name}: {', '.join(own) or 'none'}" for name, own in defaults.items())
            raise ValueError(f"no selected notebook has a parameter {parameter!r}; they have: {known}")
    sizes = _sizes_beside(sources.values(), folder)
    planned = []
    for name, source in sources.items():
        values, notes = _size_values(sizes, name, size)
        extra = dict(given) if model is None else {"model": model} | given
        for parameter in [key for key in extra if key not in defaults[name]]:
            notes.append(
                f"{name} has no parameter {parameter!r}: {extra.pop(parameter)!r} is not passed to it"
            )
        values |= {key: str(path) for key, path in (places or {}).items() if key in defaults[name]}
        values |= extra
        for parameter, value in values.items():
            _check_parameter(name, defaults[name], parameter, value)
        planned.append(PlannedRun(name, source, values, tuple(notes)))
    return planned


def _sizes_beside(sources: Iterable[Path], folder: str | Path | None) -> dict:
    folders = {source.parent for source in sources} if folder is None else {Path(folder)}
    return {name: by_size for place in folders for name, by_size in load_sizes(place).items()}


def _size_values(sizes: Mapping, name: str, size: str) -> tuple[dict[str, Any], list[str]]:
    if size == "reader":
        return {}, []
    if size not in sizes.get(name, {}):
        return {}, [f"sizes.toml gives no {size} size for {name}: it runs with its own defaults"]
    return dict(sizes[name][size]), []

"""Grids of runs: read from YAML and checked whole before anything runs.

A grid is a product of axes (model, revision, corpus, n_sequences, length, protocol, target, seed); each axis
is one value or a list. A run is known by a hash of its settings. ``nbhelpers/data/grids`` holds the grids of
the paper and a README with the format.
"""

import hashlib
import importlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from nbhelpers.claims.paper import TABLES
from nbhelpers.inputs.files import file_fingerprint
from nbhelpers.inputs.text import BOS_POLICIES, corpus_description, is_local_corpus
from nbhelpers.protocol import PAPER, Protocol

ANALYZE = "nbhelpers.analysis:analyze"
NOTEBOOK = "notebook:"
AXES = ("model", "revision", "corpus", "n_sequences", "length", "protocol", "target", "seed")
REQUIRED = ("model", "corpus", "n_sequences", "length")
DEFAULTS = {"revision": None, "protocol": {}, "target": "analyze", "seed": 0}
OPTIONS = {
    "bos": "tokenizer",
    "dtype": None,
    "device": "auto",
    "batch_size": None,
    "parameters": {},
}
WORDS = ("about", "paper_table")
MODEL_KEYS = ("name", "paper", "revision", "dtype", "n_parameters")
# What a notebook of the collection calls the axes it takes.
NOTEBOOK_AXES = {"model": "model", "corpus": "text", "n_sequences": "n_sequences", "length": "length"}


@dataclass(frozen=True)
class Run:
    """One point of a grid: everything that decides its numbers, in plain JSON types.

    Attributes
    ----------
    model, revision, corpus, n_sequences, length, bos, seed, dtype, device, batch_size
        As in `load_model`, `load_text` and `capture`; `seed` is that of the passages, the bootstrap and the
        weights of a random model.
    protocol : dict
        All fields of the Protocol.
    target : str
        "module:function", which takes (model, token_ids, protocol, corpus=, seed=, ...) and returns a
        HeadTable or a DataFrame, or "notebook:NAME".
    parameters : dict
        Further parameters of a notebook.
    contents : dict
        Hash of a local model and of a local corpus, so that an edited file is another run.
    paper : str or None
        The paper's name for the model; not a setting.
    n_parameters : float or None
        Number of weights as the grid states it, for an estimate without the model; not a setting.
    """

    model: str
    revision: str | None
    corpus: str
    n_sequences: int
    length: int
    protocol: dict[str, Any]
    target: str = ANALYZE
    seed: int = 0
    bos: str = "tokenizer"
    dtype: str | None = None
    device: str = "auto"
    batch_size: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    contents: dict[str, str | None] = field(default_factory=dict)
    paper: str | None = None
    n_parameters: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the numbers; labels are left out."""
        named = asdict(self)
        return {key: named[key] for key in named if key not in ("paper", "n_parameters")}

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits that change when any setting does."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def model_key(self) -> str:
        """What two runs share that need the same weights in memory."""
        fresh = self.seed if self.model.startswith("random:") else None
        return json.dumps([self.model, self.revision, self.dtype, self.device, fresh])

    @property
    def observation_key(self) -> str:
        """What two runs share that see the same attention, and differ in the protocol alone."""
        named = self.settings
        drawn = [self.protocol[name] for name in ("factors", "scaled_variant", "local_distance")]
        return json.dumps([{k: v for k, v in named.items() if k != "protocol"}, drawn], sort_keys=True)

    @property
    def label(self) -> str:
        """The run in a few words: model, corpus, size and what of the protocol is not the paper's."""
        model = Path(self.model).name if Path(self.model).is_absolute() else self.model
        corpus = Path(self.corpus).name if Path(self.corpus).is_absolute() else self.corpus
        words = [model + (f"@{self.revision}" if self.revision else ""), corpus]
        words.append(f"{self.n_sequences}x{self.length}")
        default = PAPER.to_dict()
        words += [f"{name}={value}" for name, value in self.protocol.items() if value != default[name]]
        words += [self.target.rpartition(":")[2]] if self.target != ANALYZE else []
        words += [f"seed={self.seed}"] if self.seed else []
        return " ".join(words)


@dataclass(frozen=True)
class Grid:
    """A checked grid: its runs in the order they are submitted, and the tables of the paper it is for."""

    name: str
    about: str
    runs: tuple[Run, ...]
    paper_tables: tuple[int, ...] = ()


def shipped_grids() -> dict[str, str]:
    """Return the grids that come with the package, name → what it says about itself."""
    folder = resources.files("nbhelpers.data").joinpath("grids")
    files = sorted(file.name for file in folder.iterdir() if file.name.endswith(".yaml"))
    return {
        name.removesuffix(".yaml"): yaml.safe_load(folder.joinpath(name).read_text(encoding="utf-8"))["about"]
        for name in files
    }


def load_grid(name: str | Path) -> Grid:
    """Read and check a grid.

    Parameters
    ----------
    name : str or path
        A YAML file, or the name of a shipped grid (see `shipped_grids`).

    Returns
    -------
    Grid

    Raises
    ------
    FileNotFoundError
        No such file and no shipped grid of that name.
    ValueError
        Not YAML, an unknown key, a value of the wrong kind, an unknown field of the protocol, a target that
        does not exist, a notebook that takes no such axis, or the same run twice.
    """
    path = Path(name)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif str(name) in shipped_grids():
        text = resources.files("nbhelpers.data").joinpath("grids", f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise FileNotFoundError(
            f"there is no grid file {str(name)!r}; the grids that come with the package are "
            f"{', '.join(shipped_grids())}"
        )
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the grid {name} is not YAML: {error}") from error
    return make_grid(raw, name=path.name.removesuffix(".yaml").removesuffix(".yml"))


def make_grid(raw: Mapping[str, Any], *, name: str = "grid") -> Grid:
    """Return the checked grid of a mapping, as a YAML file holds it; errors as in `load_grid`."""
    _check_keys(raw, name)
    axes = {axis: _listed(raw.get(axis, DEFAULTS.get(axis))) for axis in AXES}
    options = OPTIONS | {key: raw[key] for key in OPTIONS if key in raw}
    if options["bos"] not in BOS_POLICIES:
        raise ValueError(f"grid {name}: bos is {options['bos']!r}, expected one of {', '.join(BOS_POLICIES)}")
    for axis, lowest in (("n_sequences", 1), ("length", 1), ("seed", 0)):
        for value in axes[axis]:
            _check_integer(f"grid {name}: {axis}", value, lowest)
    protocols = [_protocol(fields, name) for fields in axes["protocol"]]
    targets = [_target(target, name) for target in axes["target"]]
    corpora = [_corpus(str(corpus)) for corpus in axes["corpus"]]
    models = [_model(entry, axes["revision"], options, name) for entry in axes["model"]]
    # The model varies slowest, so that a worker keeps it; the protocol next, so that two runs side by side
    # do not capture the same attention at the same time.
    runs = []
    for model in models:
        rest = (
            model["revisions"],
            protocols,
            targets,
            corpora,
            *(axes[key] for key in AXES[3:5]),
            axes["seed"],
        )
        for revision, protocol, target, (corpus, content), n_sequences, length, seed in itertools.product(
            *rest
        ):
            point = {"corpus": corpus, "n_sequences": n_sequences, "length": length, "seed": seed}
            point |= {"protocol": protocol, "target": target, "revision": revision}
            runs.append(_run(model, point, content, options))
    _check_runs(runs, name)
    tables = tuple(_listed(raw.get("paper_table", [])))
    unknown = [number for number in tables if number not in TABLES]
    if unknown:
        raise ValueError(f"grid {name}: the paper has the tables 1 to {len(TABLES)}, not {unknown}")
    return Grid(name, str(raw.get("about", "")).strip(), tuple(runs), tables)


def _run(model, point, content, options):
    chosen = {key: options[key] for key in ("bos", "device", "batch_size", "parameters")}
    contents = {"model": model["content"], "corpus": content}
    own = {key: model[key] for key in ("model", "dtype", "paper", "n_parameters")}
    return Run(**own, **point, **chosen, contents=contents)


def _check_keys(raw, name):
    if not isinstance(raw, Mapping):
        raise ValueError(f"the grid {name} holds {type(raw).__name__}, expected a mapping of axes to values")
    known = {*AXES, *OPTIONS, *WORDS}
    unknown = sorted(set(map(str, raw)) - known)
    if unknown:
        raise ValueError(f"grid {name}: unknown key {unknown[0]!r}; the keys are {', '.join(sorted(known))}")
    missing = [axis for axis in REQUIRED if not _listed(raw.get(axis, []))]
    if missing:
        raise ValueError(f"grid {name}: {missing[0]!r} is missing or empty; every grid states it")
    empty = [axis for axis in AXES if raw.get(axis) == []]
    if empty:
        raise ValueError(f"grid {name}: {empty[0]!r} is an empty list, so there is nothing to run")


def _listed(value):
    return value if isinstance(value, list) else [value]


def _check_integer(label, value, lowest):
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ValueError(f"{label} is {value!r}, expected a whole number of at least {lowest}")


def _protocol(fields, name):
    if not isinstance(fields, Mapping):
        raise ValueError(
            f"grid {name}: protocol is {fields!r}, expected the fields that differ from PAPER, such as "
            "{window: boxcar}, or {} for PAPER itself"
        )
    unknown = [key for key in fields if key not in PAPER.to_dict()]
    if unknown:
        raise ValueError(
            f"grid {name}: the protocol has no field {unknown[0]!r}; it has {', '.join(PAPER.to_dict())}"
        )
    made = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Protocol(**made).to_dict()


def _target(target, name):
    """Return "module:function" or "notebook:NAME", checked to exist."""
    if target == "analyze":
        return ANALYZE
    module, _, function = str(target).partition(":")
    if f"{module}:" == NOTEBOOK:
        from nbhelpers.collection.plan import select_notebooks  # nbformat takes seconds; few grids need it

        (path,) = select_notebooks([function])
        return NOTEBOOK + (function if function.endswith(".ipynb") else path.stem)
    if module.split(".")[0] != "nbhelpers" or not function:
        raise ValueError(
            f"grid {name}: target is {target!r}, expected analyze, notebook:NUMBER, or "
            "nbhelpers.module:function (no code from elsewhere is run)"
        )
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"grid {name}: target is {target!r}, but there is no module {error.name}") from error
    if not callable(found):
        raise ValueError(f"grid {name}: target is {target!r}, but {module} has no function {function!r}")
    return f"{module}:{function}"


def _model(entry, revisions, options, name):
    """Return an entry of the model axis as a dict: model, revisions, dtype, paper, n_parameters, content."""
    given = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    unknown = sorted(set(given) - set(MODEL_KEYS))
    if unknown or not isinstance(given.get("name"), str):
        raise ValueError(
            f"grid {name}: a model is a name or a mapping with {', '.join(MODEL_KEYS)}; got {entry!r}"
        )
    base = given["name"].removeprefix("random:")
    path = Path(base).expanduser()
    prefix = given["name"][: len(given["name"]) - len(base)]
    return {
        "model": prefix + str(path.resolve()) if path.exists() else given["name"],
        "content": file_fingerprint(path)[:16] if path.exists() else None,
        "revisions": [None if r is None else str(r) for r in _listed(given.get("revision", revisions))],
        "dtype": given.get("dtype", options["dtype"]),
        "paper": given.get("paper"),
        "n_parameters": None if given.get("n_parameters") is None else float(given["n_parameters"]),
    }


def _corpus(corpus):
    """Return the corpus, its path made absolute, and a hash of its text where it is local."""
    path = Path(corpus).expanduser()
    name = str(path.resolve()) if path.exists() else corpus
    return name, corpus_description(name).rpartition("sha256:")[2] if is_local_corpus(name) else None


def _check_runs(runs, name):
    seen = {}
    for run in runs:
        if run.id in seen:
            raise ValueError(f"grid {name}: the run {run.label!r} is there twice; leave one out")
        seen[run.id] = run
    for run in runs:
        if run.target.startswith(NOTEBOOK):
            _check_notebook(run, name)


def _check_notebook(run, name):
    """Refuse what a notebook would not see: its runs would be the same under different names."""
    from nbhelpers.collection.plan import notebook_parameters, select_notebooks

    notebook = run.target.removeprefix(NOTEBOOK)
    takes = notebook_parameters(select_notebooks([notebook])[0])
    default = {"revision": None} | {key: value for key, value in OPTIONS.items() if key != "parameters"}
    asked = [*NOTEBOOK_AXES.values(), "seed", *run.parameters]
    asked += [key for key, value in default.items() if getattr(run, key) != value]
    asked += ["protocol"] if run.protocol != PAPER.to_dict() else []
    missing = [parameter for parameter in asked if parameter not in takes]
    if missing:
        raise ValueError(
            f"grid {name}: the notebook {notebook} has no parameter {missing[0]!r}; it has {', '.join(takes)}"
        )

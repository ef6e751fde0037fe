"""Grids of runs, read from YAML and checked whole before anything runs; the files of a sweep's folder.

``nbhelpers/data/grids`` has the grids of the paper, and a README with the format.
"""

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from nbhelpers.arguments import RULES, one_of, real, refuse, several, such_that, text, whole
from nbhelpers.claims.paper import TABLES
from nbhelpers.files import read_parquet_metadata, reading, write_text
from nbhelpers.inputs.files import file_fingerprint
from nbhelpers.inputs.text import corpus_description, is_local_corpus
from nbhelpers.protocol import PAPER, Protocol

AXES = ("model", "revision", "corpus", "n_sequences", "length", "protocol", "seed")
REQUIRED = ("model", "corpus", "n_sequences", "length")
DEFAULTS = {"revision": None, "protocol": {}, "seed": 0}
OPTIONS = {"bos": "tokenizer", "dtype": None, "device": "auto", "batch_size": None, "control_seeds": 0}
WORDS = ("about", "paper_table", "also")
CHECKED = {name: RULES[name] for name in ("corpus", "n_sequences", "length", "seed", "bos", "batch_size")}
CHECKED |= {"control_seeds": whole(0), "device": text, "about": text, "paper_table": one_of(*TABLES)}
REVISION = such_that(lambda name: name is None or type(name) in (str, int), "a branch, tag or commit")
OF_A_MODEL = {"name": text, "paper": text, "dtype": RULES["dtype"], "n_parameters": real(0, ends=False)}
MOST_RUNS, MOST_BYTES, MOST_LEVELS = 10_000, 100_000, 20  # beyond is a slip, or a bomb
SHIPPED = Path(str(resources.files("nbhelpers.data"))) / "grids"
PLAN = "grid.json"
CONTROL_SEQUENCES = 4  # passages that an untrained control reads: it hardly differs between them


@dataclass(frozen=True)
class Run:
    """One point of a grid: everything that decides its numbers, in plain JSON types.

    The fields are named as in `load_model`, `load_text` and `capture`.
    """

    model: str
    revision: str | None
    corpus: str
    n_sequences: int
    length: int
    protocol: dict[str, Any]  # all fields of the Protocol
    seed: int = 0  # also of the weights of a random model
    bos: str = "tokenizer"
    dtype: str | None = None
    device: str = "auto"
    batch_size: int | None = None
    control_seeds: int = 0  # untrained controls, for the rules of the claims; without any none is measured
    contents: dict[str, str | None] = field(default_factory=dict)  # hashes of a local model and corpus
    paper: str | None = None  # the paper's name for the model; this and the next decide nothing
    n_parameters: float | None = None  # as the grid states it

    @property
    def settings(self):
        """What decides the numbers; of local files the name and the content, not the folder."""
        told = {key: v for key, v in asdict(self).items() if key not in ("paper", "n_parameters")}
        drawn = "random:" * self.model.startswith("random:")
        names = {"model": drawn + Path(self.model).name, "corpus": Path(self.corpus).name}
        return told | {key: name for key, name in names.items() if self.contents.get(key)}

    @cached_property
    def id(self):
        """Twelve hexadecimal digits that change when any setting does."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def checkpoint(self):
        """The model and its revision."""
        return f"{self.model}@{self.revision}" if self.revision else self.model

    @property
    def weights_key(self):
        """What two runs share that need the same weights in memory."""
        return self.checkpoint, self.dtype, self.seed if self.model.startswith("random:") else None

    @property
    def observation_key(self):
        """What two runs share that see the same attention and differ in the protocol alone."""
        drawn = [self.protocol[name] for name in ("factors", "scaled_variant", "local_distance")]
        return json.dumps(self.settings | {"protocol": drawn}, sort_keys=True)

    @property
    def n_tokens(self):
        """How many tokens the run reads, scaled variants and untrained controls included."""
        n_controls = self.control_seeds * min(CONTROL_SEQUENCES, self.n_sequences)
        of_variants = n_sequences = self.n_sequences + n_controls
        if self.protocol["scaled_variant"] == "prefix":  # a causal model runs one alone
            of_variants = 1 + self.control_seeds
        return self.length * (n_sequences + of_variants * sum(self.protocol["factors"]))

    @property
    def label(self):
        """The run in a few words: model, corpus, size and what of the protocol is not the paper's."""
        named = (self.model, self.corpus)
        model, corpus = (Path(name).name if Path(name).is_absolute() else name for name in named)
        model += f"@{self.revision}" if self.revision else ""
        words = [model, corpus, f"{self.n_sequences}x{self.length}", *changes(self.protocol)]
        words += [f"seed={self.seed}"] * bool(self.seed) + [f"bos={self.bos}"] * (self.bos != OPTIONS["bos"])
        return " ".join(words)


@dataclass(frozen=True)
class Grid:
    """A checked grid: its runs in the order they are done, and the tables of the paper it is for."""

    name: str
    about: str
    runs: tuple[Run, ...]
    paper_tables: tuple[int, ...] = ()


def changes(protocol):
    """Return the fields of a protocol that are not the paper's, as words."""
    default = PAPER.to_dict()
    return [f"{name}={value}" for name, value in protocol.items() if value != default[name]]


# Reading and checking


def shipped_grids():
    """Return the grids that come with the package: name → what it says about itself."""
    return {f.stem: yaml.safe_load(f.read_text("utf-8"))["about"] for f in sorted(SHIPPED.glob("*.yaml"))}


def load_grid(name):
    """Read and check a YAML file, or a grid that comes with the package by its name."""
    path = Path(name)
    if not path.is_file():
        path = SHIPPED / f"{name}.yaml"
        if str(name) not in (shipped := shipped_grids()):
            names = ", ".join(shipped)
            raise FileNotFoundError(f"there is no grid file {str(name)!r}; the package comes with {names}")
    return make_grid(read_small_yaml(path), name=path.stem)


def read_small_yaml(file):
    """Return what YAML holds; refuse, before it is made, what is or would grow beyond any memory."""
    with file.open("rb") as opened:
        raw = opened.read(MOST_BYTES + 1)
    try:
        if len(raw) > MOST_BYTES:
            raise ValueError(f"at most {MOST_BYTES:,} bytes are read")
        depth, content = 0, raw.decode("utf-8")
        for event in yaml.parse(content, Loader=yaml.SafeLoader):
            where = f"line {event.start_mark.line + 1}"
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"{where} repeats another part (*{event.anchor}); write it out")
            if depth > MOST_LEVELS:
                raise ValueError(f"{where} is more than {MOST_LEVELS} levels deep")
        return yaml.safe_load(content)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"the grid {file.name} is not YAML of the kind that is read: {error}") from error


def make_grid(raw, *, name="grid"):
    """Return the checked grid of a mapping, as a YAML file holds it."""
    try:
        runs = _product(raw)
        for more in _listed(raw.get("also", [])):
            if not isinstance(more, Mapping):
                refuse("also", more, "mappings of what differs from the rest of the grid")
            runs += _product(raw | more)
        ids = Counter(run.id for run in runs)
        if twice := [run.label for run in runs if ids[run.id] > 1]:
            raise ValueError(f"the run {twice[0]!r} is there twice; leave one out")
    except ValueError as error:
        raise ValueError(f"grid {name}: {error}") from error
    tables = tuple(_listed(raw.get("paper_table", [])))
    return Grid(name, str(raw.get("about", "")).strip(), tuple(runs), tables)


def _product(raw):
    if not isinstance(raw, Mapping):
        raise ValueError(f"it holds {type(raw).__name__}, expected a mapping of axes to values")
    known = {*AXES, *OPTIONS, *WORDS}
    if unknown := sorted(set(map(str, raw)) - known):
        raise ValueError(f"unknown key {unknown[0]!r}; the keys are {', '.join(sorted(known))}")
    if missing := [axis for axis in REQUIRED if not _listed(raw.get(axis, []))]:
        raise ValueError(f"{missing[0]!r} is missing or empty; every grid states it")
    if empty := [axis for axis in AXES if raw.get(axis) == []]:
        raise ValueError(f"{empty[0]!r} is an empty list, so there is nothing to run")
    axes = {axis: _listed(raw.get(axis, DEFAULTS.get(axis))) for axis in AXES}
    options = {key: raw.get(key, usual) for key, usual in OPTIONS.items()}
    for key, rule in CHECKED.items():
        for value in axes.get(key) or _listed(options.get(key, raw.get(key))):
            if value is not None or key in REQUIRED:
                rule(key, value)
    if (n := math.prod(map(len, axes.values()))) > MOST_RUNS:
        raise ValueError(f"its axes make {n:,} runs, at most {MOST_RUNS:,} are taken; write several grids")
    axes["protocol"] = [_protocol(fields) for fields in axes["protocol"]]
    axes["corpus"] = [_corpus(str(corpus)) for corpus in axes["corpus"]]
    runs, revisions = [], axes["revision"]
    # The protocol varies slowest: two runs side by side then do not capture the same attention at once.
    order = ("revision", "protocol", "corpus", "n_sequences", "length", "seed")
    for entry in axes["model"]:
        fields, axes["revision"] = _model(entry, revisions, options["dtype"])
        content = fields.pop("content")
        for values in itertools.product(*(axes[axis] for axis in order)):
            point = dict(zip(order, values, strict=True))
            point["corpus"], told = point["corpus"]
            runs.append(Run(**options | fields | point, contents={"model": content, "corpus": told}))
    return runs


def _listed(value):
    return value if isinstance(value, list) else [value]


def _protocol(fields):
    if not isinstance(fields, Mapping):
        example = "such as {window: boxcar}, or {} for PAPER itself"
        raise ValueError(f"protocol is {fields!r}, expected the fields that differ from PAPER, {example}")
    known = PAPER.to_dict()
    if unknown := [key for key in fields if key not in known]:
        raise ValueError(f"the protocol has no field {unknown[0]!r}; it has {', '.join(known)}")
    made = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Protocol(**made).to_dict()


def _model(entry, revisions, dtype):
    """Return what an entry of the model axis gives: fields of a Run and a hash of its files; revisions."""
    given = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    if set(given) - {"revision", *OF_A_MODEL} or not isinstance(given.get("name"), str):
        refuse("a model", entry, f"a name or a mapping with {', '.join(OF_A_MODEL)}, revision")
    for name, rule in OF_A_MODEL.items():
        value = given.get(name, dtype if name == "dtype" else None)
        if value is not None:
            rule(f"{name} of the model {given['name']}", value)
    base = given["name"].removeprefix("random:")
    path = Path(base).expanduser()
    fields = {
        "model": given["name"].removesuffix(base) + str(path.resolve()) if path.exists() else given["name"],
        "content": file_fingerprint(path)[:16] if path.exists() else None,
        "dtype": given.get("dtype", dtype),
        "paper": given.get("paper"),
        "n_parameters": float(given["n_parameters"]) if given.get("n_parameters") else None,
    }
    revisions = several(REVISION)("revision", _listed(given.get("revision", revisions)))
    return fields, [r if r is None else str(r) for r in revisions]


def _corpus(corpus):
    """Return the corpus, its path made absolute, and a hash of its text where it is local."""
    path = Path(corpus).expanduser()
    name = str(path.resolve()) if path.exists() else corpus
    return name, corpus_description(name).rpartition("sha256:")[2] if is_local_corpus(name) else None


# The folder of a sweep: grid.json, runs/ID.parquet of those that are done, failed/ID.txt of those that failed


def run_file(out, run_id):
    """Return where a finished run has its table, with its summary and what it took in the metadata."""
    return Path(out) / "runs" / f"{run_id}.parquet"


def failure_file(out, run_id):
    """Return where it says why a run failed, the reason in the last line."""
    return Path(out) / "failed" / f"{run_id}.txt"


def unsettled(out, ids):
    """Return those of some runs that are not done and have not failed."""
    return [i for i in ids if not (run_file(out, i).exists() or failure_file(out, i).exists())]


def read_run(out, run):
    """Return the metadata of a finished run; None if it is not done, or its file is cut short."""
    try:
        return read_parquet_metadata(run_file(out, run.id))
    except (FileNotFoundError, ValueError):
        return None


def read_failure(out, run):
    """Return in a line why a run failed; None if it did not."""
    file = failure_file(out, run.id)
    return file.read_text("utf-8").splitlines()[-1] if file.exists() else None


def write_plan(out, grid):
    """Write which runs a sweep is to do."""
    write_text(Path(out) / PLAN, json.dumps(asdict(grid), indent=1, ensure_ascii=False))


def read_plan(out):
    """Return the grid of a sweep's folder; `ValueError` if it is another kind of folder."""
    folder, command = Path(out), f"python -m nbhelpers sweep GRID --out {out}"
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.absolute()}; make a sweep with: {command}")
    if not (folder / PLAN).exists():
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
        raise ValueError(f"{folder} was not the --out of a sweep: it holds {held}, and no {PLAN}")
    with reading(folder / PLAN, f", or of another version; measure again with: {command}"):
        plan = json.loads((folder / PLAN).read_text("utf-8"))
        runs = tuple(Run(**fields) for fields in plan["runs"])
        return Grid(plan["name"], plan["about"], runs, tuple(plan["paper_tables"]))

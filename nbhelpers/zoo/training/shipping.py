"""Gather finished runs into what travels with the package; :mod:`nbhelpers.zoo.shipped` reads it back."""

import contextlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nbhelpers.files import read_parquet, write_parquet
from nbhelpers.inputs.files import ZOO_INDEX, shipped_folder
from nbhelpers.inputs.zoo import ZooConfig
from nbhelpers.zoo import measure
from nbhelpers.zoo.settings import LENGTH, PRESETS, Settings, arms
from nbhelpers.zoo.shipped import MEASUREMENTS, RUNS, TOKENS
from nbhelpers.zoo.text import SPLITS, load_corpus
from nbhelpers.zoo.training.ngrams import baselines
from nbhelpers.zoo.training.runs import FINAL

LIMIT_BYTES = 40_000_000  # of everything together
INDEX_BYTES = 100_000  # kept free for the index, which is written last
# With these the first updates of a run of seed 0 can be made again without the text; rope learns 0.5 nats.
N_FIRST_BATCHES = 26
TOKENIZERS = {False: "tokenizer", True: "tokenizer-bos"}
OWN = {MEASUREMENTS, RUNS, TOKENS, ZOO_INDEX, "models", *TOKENIZERS.values()}
MODEL_FILES = ("config.json", "model.safetensors")
# `arm` is the name of a run without its seed: "rope", "rope-bidirectional", "rope-mini".
ARM_COLUMNS = ["run", "arm", "encoding", "mask", "bos", "preset", "seed"]
ORDER = ["signal", "metric", "run", "step", "sequence", "layer", "head"]  # like beside like: packs best


@dataclass(frozen=True)
class FinishedRun:
    """One finished run: its folder, what run.json says, its settings."""

    folder: Path
    manifest: dict
    settings: Settings

    @property
    def arm(self):
        """Name of the run without its seed."""
        return self.settings.name.rsplit("-seed", 1)[0]

    def columns(self):
        """Return what tells this run from others, one value for each of :data:`ARM_COLUMNS`."""
        settings = self.settings
        mask = "causal" if settings.causal else "bidirectional"
        values = [settings.name, self.arm, settings.encoding, mask, settings.bos, settings.preset]
        return dict(zip(ARM_COLUMNS, [*values, settings.seed], strict=True))


@dataclass(frozen=True)
class Shipped:
    """What :func:`collect` wrote and what it could not; told in a few lines by ``str``."""

    folder: Path
    runs: list
    models: list
    n_bytes: int
    missing: list
    unfinished: list
    left_out: list

    def __str__(self):
        lines = [
            f"{self.folder}: {len(self.runs)} runs, {len(self.models)} models, {self.n_bytes / 1e6:.1f} MB "
            f"of at most {LIMIT_BYTES / 1e6:.0f}"
        ]
        for about, names in (
            ("models", self.models),
            ("left out for size", self.left_out),
            ("not finished", _by_arm(self.unfinished)),
            ("not trained", _by_arm(self.missing)),
        ):
            lines += [f"{about}: {', '.join(names)}"] if names else []
        return "\n".join(lines)


def _by_arm(names):
    """Return "rope seed 0 1 2" for rope-seed0, rope-seed1 and rope-seed2."""
    seeds = {}
    for name in names:
        arm, seed = name.rsplit("-seed", 1)
        seeds.setdefault(arm, []).append(seed)
    return [f"{arm} seed {' '.join(numbers)}" for arm, numbers in seeds.items()]


def collect(out, to=None):
    """Gather the finished runs into tables, weights and tokenizer, within :data:`LIMIT_BYTES`.

    What must be there are all measurements, the final weights of the core arms (seed 0) and the kept
    checkpoints of `rope`; the final weights of the other nano arms and further checkpoints are added while
    there is room. Works with the runs finished so far, and may be called again when there are more.

    Parameters
    ----------
    out : path
        The folder that was trained into; holds text/ and runs/.
    to : path, optional
        Replaced as a whole; nbhelpers/data/zoo if None.

    Returns
    -------
    Shipped

    Raises
    ------
    FileNotFoundError
        No run is finished, or the text is not there.
    FileExistsError
        `to` holds files that this function did not write.
    ValueError
        Runs were trained on different texts, a file is damaged, or what must be there exceeds the limit.
    """
    out, to = Path(out), shipped_folder() if to is None else Path(to)
    _refuse_foreign(to)
    runs, unfinished = read_runs(out / "runs")
    corpus = load_corpus(out / "text")
    _refuse_other_text(runs, corpus)
    with _fresh_folder(to) as partial:
        provenance = _provenance(runs, corpus)
        _write_table(_all_measurements(runs), partial / MEASUREMENTS, provenance)
        _write_table(_all_runs(runs, provenance["baselines"]), partial / RUNS, provenance)
        _write_tokens(corpus, partial / TOKENS)
        models, left_out = _write_models(runs, corpus, partial)
        n_bytes = _size(partial)
    known, begun = {run.settings.name for run in runs}, set(unfinished)
    missing = [arm.name for arm in arms() if arm.name not in known | begun]
    return Shipped(to, sorted(known), models, n_bytes, missing, unfinished, left_out)


def read_runs(folder):
    """Return the finished runs of a folder, and the names of those that are not finished.

    Raises
    ------
    FileNotFoundError
        If none is finished.
    ValueError
        If a run.json is damaged.
    """
    finished, unfinished = [], []
    for path in sorted(Path(folder).glob("*/run.json")):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            settings = Settings(**manifest["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); move {path.parent} away.") from error
        if manifest["finished"]:
            finished.append(FinishedRun(path.parent, manifest, settings))
        else:
            unfinished.append(settings.name)
    if not finished:
        begun = f"; begun are {', '.join(unfinished)}" if unfinished else ""
        raise FileNotFoundError(
            f"There is no finished run in {folder}{begun}. Train with: python -m nbhelpers.zoo.training "
            "train-all"
        )
    return finished, unfinished


def _refuse_foreign(to):
    foreign = sorted({path.name for path in to.iterdir()} - OWN) if to.exists() else []
    if foreign:
        raise FileExistsError(
            f"{to} is to be replaced, but holds {', '.join(foreign[:5])}, not written by collect. Move that "
            "away, or choose another --to folder."
        )


def _refuse_other_text(runs, corpus):
    others = [r.settings.name for r in runs if r.manifest["text"]["fingerprint"] != corpus.fingerprint]
    if others:
        raise ValueError(
            f"{len(others)} of {len(runs)} runs were trained on another text than that of {corpus.folder} "
            f"(fingerprint {corpus.fingerprint}): {', '.join(others[:5])}. Move them away."
        )


@contextlib.contextmanager
def _fresh_folder(to):
    """Yield an empty folder beside `to` that takes its place when the block ends without an error."""
    partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
    before = to.with_name(f".{to.name}.{os.getpid()}.before")
    partial.mkdir(parents=True)
    try:
        yield partial
        if to.exists():
            os.replace(to, before)
        os.replace(partial, to)
    finally:
        for folder in (partial, before):
            shutil.rmtree(folder, ignore_errors=True)  # there only after a failure, or a success


def _provenance(runs, corpus):
    versions = sorted({json.dumps(run.manifest["versions"], sort_keys=True) for run in runs})
    yardstick = measure.Yardstick.of(corpus)
    return {
        "text": runs[0].manifest["text"] | {f"{name}_tokens": len(corpus.tokens[name]) for name in SPLITS},
        "baselines": baselines(corpus, yardstick.validation),
        "protocols": {
            signal: {"hash": protocol.hash, **protocol.to_dict()}
            for signal, protocol in measure.PROTOCOLS.items()
        },
        "measured_on": {
            "attention": list(yardstick.text.shape),
            "validation": list(yardstick.validation.shape),
            "length": list(yardstick.long.shape),
            "repeated": list(yardstick.repeated.shape),
        },
        "versions": [json.loads(line) for line in versions],
        "runs": [run.settings.name for run in runs],
    }


def _all_measurements(runs):
    """Return the measurements of all runs in one table."""
    parts = []
    for run in runs:
        path = run.folder / "measurements.parquet"
        try:
            frame, _ = read_parquet(path)
        except ValueError as error:
            raise ValueError(f"{error} Move {run.folder} away.") from error
        parts.append(frame.assign(**run.columns()).astype({"seed": "int16"}))
    columns = ARM_COLUMNS + measure.COLUMNS
    return pd.concat(parts, ignore_index=True)[columns].sort_values(ORDER, kind="stable", ignore_index=True)


def _all_runs(runs, losses):
    rows = []
    for run in runs:
        settings, manifest = run.settings, run.manifest
        comparable = settings.causal
        rows.append(
            run.columns()
            | {"n_parameters": _n_parameters(run), "n_tokens": settings.n_tokens, "n_steps": settings.n_steps}
            | {
                key: manifest["settings"][key]
                for key in ("precision", "weight_decay", "warmup_share", "last_share", "clip")
            }
            | {"learning_rate": settings.size.learning_rate, "batch_size": settings.size.batch_size}
            | {"position_initializer_range": _config(run).position_initializer_range}
            | {"seconds": manifest["seconds"], "device": manifest["device"], **manifest["machine"]}
            | {key: value for key, value in manifest["final"].items() if key != "tokens"}
            | {name: loss if comparable else float("nan") for name, loss in losses.items()}
            | {"text": manifest["text"]["fingerprint"], **manifest["versions"]}
        )
    return pd.DataFrame(rows)


def _config(run):
    return ZooConfig.from_pretrained(run.folder / "weights" / FINAL)


def _n_parameters(run):
    with safe_open(run.folder / "weights" / FINAL / "model.safetensors", framework="pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _write_table(frame, path, provenance):
    packing = {"compression": "zstd", "compression_level": 19}
    if "value" in frame:  # floats pack best byte by byte, all the rest as numbered words
        words = [name for name in frame if name not in ("value", "bos")]
        packing |= {"use_dictionary": words, "column_encoding": {"value": "BYTE_STREAM_SPLIT"}}
    write_parquet(frame, path, provenance, **packing)


def _write_tokens(corpus, path):
    """Write the sequences all was measured on, and the first batches of seed 0."""
    yardstick = measure.Yardstick.of(corpus)
    n = PRESETS["nano"].batch_size
    batches = [corpus.batch(n, LENGTH + 1, seed=0, step=step) for step in range(N_FIRST_BATCHES)]
    tensors = {**vars(yardstick), "first_batches": torch.stack(batches)}
    save_file({name: tensor.to(torch.uint16) for name, tensor in tensors.items()}, path)
    path.chmod(0o644)  # safetensors lets nobody else read it


def _write_models(runs, corpus, folder):
    """Copy weights in order of need, while there is room; return the names of those copied and left out."""
    index, left_out = {}, []
    for bos in {run.settings.bos for run in runs if run.settings.seed == 0}:
        corpus.tokenizer(bos=bos).save_pretrained(folder / TOKENIZERS[bos])
    for name, source, about, needed, bos in _candidates(runs):
        size = _size(folder) + sum((source / file).stat().st_size for file in MODEL_FILES)
        if size > LIMIT_BYTES - INDEX_BYTES:
            if needed:
                raise ValueError(
                    f"What must be shipped exceeds {LIMIT_BYTES / 1e6:.0f} MB: with the weights of {name} it "
                    f"is {size / 1e6:.1f} MB. Ship fewer runs or smaller models."
                )
            left_out.append(name)
            continue
        target = folder / "models" / name
        target.mkdir(parents=True)
        for file in MODEL_FILES:
            shutil.copyfile(source / file, target / file)
        index[name] = {"folder": f"models/{name}", "tokenizer": TOKENIZERS[bos], "about": about}
    (folder / ZOO_INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return list(index), left_out


def _candidates(runs):
    """Return (name, folder, a few words, whether it must be there, BOS) of the weights, by order of need."""
    found = []
    for run in runs:
        settings = run.settings
        if settings.preset != "nano" or settings.seed != 0:
            continue
        core = settings.causal and not settings.bos
        for path in (run.folder / "weights").iterdir():
            if path.name.startswith("."):
                continue  # of a process that was killed
            final = path.name == FINAL
            step = settings.n_steps if final else int(path.name.removeprefix("step"))
            name = run.arm if final else f"{run.arm}@step{step}"
            needed = core and (final or settings.encoding == "rope")
            about = (
                f"{settings.encoding}, {'causal' if settings.causal else 'bidirectional'}"
                f"{', <bos> first' if settings.bos else ''}, {step} of {settings.n_steps} updates"
            )
            # Final weights first, among checkpoints the positive control, ALiBi, first.
            rank = (not needed, not final, settings.encoding != "alibi", name)
            found.append((rank, (name, path, about, needed, settings.bos)))
    return [entry for _, entry in sorted(found)]


def _size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

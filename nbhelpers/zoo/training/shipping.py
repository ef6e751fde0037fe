"""Gather finished runs into what travels with the package; :mod:`nbhelpers.zoo.tables` reads it back."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from nbhelpers.files import read_parquet, reading, replacing_folder, write_parquet
from nbhelpers.inputs.files import ZOO_INDEX, shipped_folder
from nbhelpers.zoo import measure
from nbhelpers.zoo.settings import LENGTH, PRESETS, Settings, arms
from nbhelpers.zoo.tables import MEASUREMENTS, RUNS, TOKENS
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
ARM_COLUMNS = ["run", "arm", "encoding", "mask", "bos", "preset", "seed"]
ORDER = ["signal", "metric", "run", "step", "sequence", "layer", "head"]  # like beside like: packs best


@dataclass(frozen=True)
class Run:
    folder: Path
    manifest: dict
    settings: Settings

    @property
    def columns(self):
        return {"run": self.settings.name} | {name: getattr(self.settings, name) for name in ARM_COLUMNS[1:]}


def collect(out, to=None):
    """Gather the finished runs of `out` into tables, weights and tokenizers; `to` is replaced as a whole.

    All measurements, the final weights of the core arms (seed 0) and the kept checkpoints of `rope` must be
    there; other weights are added while there is room. The lines returned say what is there and what is not.
    Refused, with nothing changed: no finished run, runs of different texts or damaged, files of others in
    `to`, or more than the limit.
    """
    out, to = Path(out), shipped_folder() if to is None else Path(to)
    if foreign := sorted({path.name for path in to.iterdir()} - OWN) if to.exists() else []:
        raise FileExistsError(f"{to} holds {', '.join(foreign[:5])}, not of collect; take another --to.")
    runs, unfinished = read_runs(out / "runs")
    corpus = load_corpus(out / "text")
    found = {run.settings.name: run.manifest["text"]["fingerprint"] for run in runs}
    if others := [name for name in found if found[name] != corpus.fingerprint]:
        told = f"{len(others)} of {len(runs)} runs were trained on another text"
        raise ValueError(f"{told}: {', '.join(others[:5])}. Move them away.")
    with replacing_folder(to) as partial:
        provenance = _provenance(runs, corpus)
        _write_measurements(runs, partial / MEASUREMENTS, provenance)
        _write_runs(runs, partial / RUNS, provenance)
        _write_tokens(corpus, partial / TOKENS)
        models, left_out = _write_models(runs, corpus, partial)
        n_bytes = _size(partial)
    lists = {"models": models, "left out for size": left_out, "not finished": unfinished}
    lists["not trained"] = [run.name for run in arms() if run.name not in [*found, *unfinished]]
    size = f"{n_bytes / 1e6:.1f} MB of at most {LIMIT_BYTES / 1e6:.0f}"
    lines = [f"{about}: {', '.join(names)}" for about, names in lists.items() if names]
    return "\n".join([f"{to}: {len(runs)} runs, {len(models)} models, {size}", *lines])


def read_runs(folder):
    """Return the finished runs of a folder, and the names of those that are not finished."""
    runs = []
    for path in sorted(Path(folder).glob("*/run.json")):
        with reading(path, f"; move {path.parent} away."):
            manifest = json.loads(path.read_text(encoding="utf-8"))
            runs.append(Run(path.parent, manifest, Settings(**manifest["settings"])))
    finished = [run for run in runs if run.manifest["finished"]]
    if not finished:
        command = "python -m nbhelpers.zoo.training train-all"
        raise FileNotFoundError(f"There is no finished run in {folder}. Train with: {command}")
    return finished, [run.settings.name for run in runs if not run.manifest["finished"]]


def _provenance(runs, corpus):
    versions = sorted({json.dumps(run.manifest["versions"], sort_keys=True) for run in runs})
    yardstick = measure.Yardstick.of(corpus)
    protocols = measure.PROTOCOLS.items()
    names = {"attention": "text", "validation": "validation", "length": "long", "repeated": "repeated"}
    return {
        "text": runs[0].manifest["text"] | {f"{name}_tokens": len(corpus.tokens[name]) for name in SPLITS},
        "baselines": baselines(corpus, yardstick.validation),
        "protocols": {signal: {"hash": p.hash, **p.to_dict()} for signal, p in protocols},
        "measured_on": {name: list(getattr(yardstick, held).shape) for name, held in names.items()},
        "versions": [json.loads(line) for line in versions],
        "runs": [run.settings.name for run in runs],
    }


def _write_measurements(runs, path, provenance):
    frames = [read_parquet(run.folder / MEASUREMENTS)[0].assign(**run.columns) for run in runs]
    whole = pd.concat(frames, ignore_index=True)[ARM_COLUMNS + measure.COLUMNS].astype({"seed": "int16"})
    whole = whole.sort_values(ORDER, kind="stable", ignore_index=True)
    # Floats pack best byte by byte, all the rest as numbered words.
    words = [name for name in whole if name not in ("value", "bos")]
    packing = {"use_dictionary": words, "column_encoding": {"value": "BYTE_STREAM_SPLIT"}}
    write_parquet(whole, path, provenance, compression="zstd", compression_level=19, **packing)


def _write_runs(runs, path, provenance):
    rows, ngrams = [], provenance["baselines"]
    for run in runs:
        settings, manifest = run.settings, run.manifest
        weights = load_file(run.folder / "weights" / FINAL / "model.safetensors")
        recipe = ("precision", "weight_decay", "warmup_share", "last_share", "clip")
        rows.append(
            run.columns
            | {"n_parameters": sum(tensor.numel() for tensor in weights.values())}
            | {"n_tokens": settings.n_tokens, "n_steps": settings.n_steps}
            | {name: manifest["settings"][name] for name in recipe}
            | {"learning_rate": settings.size.learning_rate, "batch_size": settings.size.batch_size}
            | {"position_initializer_range": settings.config().position_initializer_range}
            | {"seconds": manifest["seconds"], "device": manifest["device"], **manifest["machine"]}
            | {name: value for name, value in manifest["final"].items() if name != "tokens"}
            | (ngrams if settings.causal else dict.fromkeys(ngrams, float("nan")))
            | {"text": manifest["text"]["fingerprint"], **manifest["versions"]}
        )
    write_parquet(pd.DataFrame(rows), path, provenance, compression="zstd", compression_level=19)


def _write_tokens(corpus, path):
    yardstick, n = measure.Yardstick.of(corpus), PRESETS["nano"].batch_size
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
                raise ValueError(f"What must be shipped exceeds the limit: {size / 1e6:.1f} MB with {name}.")
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
        for path in (run.folder / "weights").glob("[!.]*"):  # others are of a process that was killed
            final = path.name == FINAL
            step = settings.n_steps if final else int(path.name.removeprefix("step"))
            name = settings.arm if final else f"{settings.arm}@step{step}"
            needed = core and (final or settings.encoding == "rope")
            bos = ", <bos> first" if settings.bos else ""
            about = f"{settings.encoding}, {settings.mask}{bos}, {step} of {settings.n_steps} updates"
            # Final weights first, among checkpoints the positive control, ALiBi, first.
            rank = (not needed, not final, settings.encoding != "alibi", name)
            found.append((rank, (name, path, about, needed, settings.bos)))
    return [entry for _, entry in sorted(found)]


def _size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

"""Gather finished runs into what travels with the package; :mod:`nbhelpers.zoo.tables` reads it back."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from nbhelpers.files import read_parquet, reading, replacing_folder, write_parquet
from nbhelpers.inputs.files import ZOO_INDEX, shipped_folder
from nbhelpers.zoo import settings as chosen
from nbhelpers.zoo.measure import COLUMNS, PROTOCOLS, Yardstick
from nbhelpers.zoo.settings import LENGTH, PRESETS, VOCABULARY, Settings, arms
from nbhelpers.zoo.tables import MEASUREMENTS, RUNS, TOKENS
from nbhelpers.zoo.text import SPLITS, load_corpus
from nbhelpers.zoo.training.ngrams import ORDERS, ngram_probabilities
from nbhelpers.zoo.training.runs import RUN, STATE

# With these the first updates of a run of seed 0 can be made again without the text; rope learns 0.5 nats.
N_FIRST_BATCHES = 26
TOKENIZERS = {False: "tokenizer", True: "tokenizer-bos"}
OWN = {MEASUREMENTS, RUNS, TOKENS, ZOO_INDEX, "models", *TOKENIZERS.values()}
ARM_COLUMNS = ["run", "arm", "encoding", "mask", "bos", "preset", "seed"]
ORDER = ["signal", "metric", "run", "step", "sequence", "layer", "head"]  # like beside like: packs best
TIGHT = {"compression": "zstd", "compression_level": 19}
Run = namedtuple("Run", ("folder", "facts", "settings", "columns"))  # facts of run.json, columns of tables


def collect(out, to=None):
    """Gather the finished runs of `out` into tables, weights and tokenizers; `to` is replaced as a whole.

    The text returned says what is there and what is not. Refused, with nothing changed: no finished run, runs
    of different texts or damaged, and files of others in `to`.
    """
    out, to = Path(out), shipped_folder() if to is None else Path(to)
    if foreign := sorted({path.name for path in to.iterdir()} - OWN) if to.exists() else []:
        raise FileExistsError(f"{to} holds {', '.join(foreign[:5])}, not of collect; take another --to.")
    runs, corpus = _read_runs(out / "runs"), load_corpus(out / "text")
    texts = {name: run.facts["text"]["fingerprint"] for name, run in runs.items()}
    if others := [name for name, text in texts.items() if text != corpus.fingerprint]:
        told = f"{len(others)} of {len(runs)} runs were trained on another text"
        raise ValueError(f"{told}: {', '.join(others[:5])}. Move them away.")
    yardstick = Yardstick.of(corpus)
    with replacing_folder(to) as partial:
        provenance = _provenance(runs, corpus, yardstick)
        _write_measurements(runs, partial / MEASUREMENTS, provenance)
        _write_runs(runs, partial / RUNS, provenance)
        size, steps = (PRESETS["nano"].batch_size, LENGTH + 1), range(N_FIRST_BATCHES)
        batches = [corpus.batch(*size, seed=0, step=step) for step in steps]
        tensors = vars(yardstick) | {"first_batches": torch.stack(batches)}
        save_file({n: tensor.to(torch.uint16) for n, tensor in tensors.items()}, partial / TOKENS)
        (partial / TOKENS).chmod(0o644)  # safetensors lets nobody else read it
        models = _write_models(runs, corpus, partial)
    unfinished = sorted({path.parent.name for path in (out / "runs").glob(f"*/{STATE}")} - runs.keys())
    lists = {"models": models, "not finished": unfinished}
    lists["not trained"] = [run.name for run in arms() if run.name not in [*runs, *unfinished]]
    lines = [f"{about}: {', '.join(names)}" for about, names in lists.items() if names]
    return "\n".join([f"{to}: {len(runs)} runs, {len(models)} models", *lines])


def _read_runs(folder):
    runs = {}
    for path in sorted(folder.glob(f"*/{RUN}")):
        with reading(path, f"; move {path.parent} away."):
            facts = json.loads(path.read_text(encoding="utf-8"))
            settings = Settings(**facts["settings"])
        columns = {"run": settings.name} | {name: getattr(settings, name) for name in ARM_COLUMNS[1:]}
        runs[settings.name] = Run(path.parent, facts, settings, columns)
    if not runs:
        command = "python -m nbhelpers.zoo.training train-all"
        raise FileNotFoundError(f"There is no finished run in {folder}. Train with: {command}")
    return runs


def _provenance(runs, corpus, yardstick):
    every = [run.facts for run in runs.values()]
    versions = sorted({json.dumps(facts["versions"], sort_keys=True) for facts in every})
    names = {"attention": "text", "validation": "validation", "length": "long", "repeated": "repeated"}
    counted = corpus.tokens["train"], corpus.ends["train"], yardstick.validation, VOCABULARY
    losses = [float(-np.log(p).mean()) for p in ngram_probabilities(*counted)]
    return {
        "text": every[0]["text"] | {f"{name}_tokens": len(corpus.tokens[name]) for name in SPLITS},
        "baselines": dict(zip(ORDERS, losses, strict=True)),
        "protocols": {signal: {"hash": p.hash, **p.to_dict()} for signal, p in PROTOCOLS.items()},
        "measured_on": {name: list(getattr(yardstick, held).shape) for name, held in names.items()},
        "versions": [json.loads(line) for line in versions],
        "runs": list(runs),
    }


def _write_measurements(runs, path, provenance):
    frames = [read_parquet(run.folder / MEASUREMENTS)[0].assign(**run.columns) for run in runs.values()]
    whole = pd.concat(frames, ignore_index=True)[ARM_COLUMNS + COLUMNS].astype({"seed": "int16"})
    whole = whole.sort_values(ORDER, kind="stable", ignore_index=True)
    # Floats pack best byte by byte, all the rest as numbered words.
    words = [name for name in whole if name not in ("value", "bos")]
    packing = {"use_dictionary": words, "column_encoding": {"value": "BYTE_STREAM_SPLIT"}}
    write_parquet(whole, path, provenance, **TIGHT, **packing)


def _write_runs(runs, path, provenance):
    rows, ngrams = [], provenance["baselines"]
    for folder, facts, settings, columns in runs.values():
        weights = load_file(folder / f"weights/step{settings.n_steps}/model.safetensors")
        frame, _ = read_parquet(folder / MEASUREMENTS)
        last = frame[(frame.signal == "model") & (frame.step == settings.n_steps)].set_index("metric").value
        rows.append(
            columns
            | {"n_parameters": sum(tensor.numel() for tensor in weights.values())}
            | {name: getattr(settings, name) for name in ("n_tokens", "n_steps", "precision")}
            | {"weight_decay": chosen.WEIGHT_DECAY, "warmup_share": settings.warmup_share}
            | {"last_share": chosen.LAST_SHARE, "clip": chosen.CLIP}
            | {name: getattr(settings.size, name) for name in ("learning_rate", "batch_size")}
            | {"position_initializer_range": settings.config().position_initializer_range}
            | {"seconds": facts["seconds"], "device": facts["device"], **facts["machine"]}
            | last.drop("tokens").astype(float).to_dict()
            | (ngrams if settings.causal else dict.fromkeys(ngrams, float("nan")))
            | {"text": facts["text"]["fingerprint"], **facts["versions"]}
        )
    write_parquet(pd.DataFrame(rows), path, provenance, **TIGHT)


def _write_models(runs, corpus, folder):
    """Copy the weights of the nano runs of seed 0 and return the names of the models."""
    index = {}
    for source, _, settings, _ in runs.values():
        if settings.preset != "nano" or settings.seed != 0:
            continue
        corpus.tokenizer(bos=settings.bos).save_pretrained(folder / TOKENIZERS[settings.bos])
        for step in settings.kept_steps():
            name = settings.arm if step == settings.n_steps else f"{settings.arm}@step{step}"
            (folder / "models" / name).mkdir(parents=True)
            for file in ("config.json", "model.safetensors"):
                shutil.copyfile(source / f"weights/step{step}" / file, folder / "models" / name / file)
            about = f"{settings.encoding}, {settings.mask}{', <bos> first' * settings.bos}"
            about += f", {step} of {settings.n_steps} updates"
            index[name] = {"folder": f"models/{name}", "tokenizer": TOKENIZERS[settings.bos], "about": about}
    (folder / ZOO_INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return list(index)

"""Walk all causal, masked and encoder-decoder types of transformers, and file how capture does on each.

``python tests/families_walk.py [--store] [TYPE ...]``: tiny random models, a process each. Truth is what the
model's own attention functions make of values that are one-hot vectors; where a family has no such function,
its `output_attentions`. Exits with 1 where capture is wrong, a refusal obscure, or the stored table differs.
"""

import argparse
import contextlib
import multiprocessing as mp
import os
import re
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import pandas as pd
import tiny_models as tiny
import torch
import transformers as hf
from transformers.models.auto import modeling_auto

from nbhelpers.hooks.attention import streams_of
from nbhelpers.hooks.capture import capture
from nbhelpers.inputs.families import TESTED, family_of, tested_families

COLUMNS = ("type", "task", "stream", "verdict", "route", "layers", "difference", "said")
TASKS = {
    "causal": (hf.AutoModelForCausalLM, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "masked": (hf.AutoModelForMaskedLM, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "seq2seq": (hf.AutoModelForSeq2SeqLM, modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
}
SIZES = {name: size for size, names in tiny.TINY["sizes"].items() for name in names.split()}
TOKENS = {"pad": 0, "bos": 1, "decoder_start": 1, "cls": 1, "eos": 2, "sep": 2, "mask": 3}
MEDIA = {"image": 60, "audio": 61, "video": 62}
N_TOKENS = 24
TOLERANCE = 1e-5
SECONDS = 120  # for one type


def small(fields):
    """Return the fields of a configuration, as a dictionary, with the sizes of a tiny model."""
    made = {}
    for name, value in fields.items():
        if isinstance(value, dict) and value.get("model_type"):
            made[name] = small(value) | {"model_type": value["model_type"]}
        elif name.startswith("forced_") and name.endswith("_token_id"):
            made[name] = None
        elif name.endswith(("_token_id", "_token_index")):
            kind = name.removesuffix("_token_id")
            if kind in TOKENS or value is not None:
                made[name] = TOKENS.get(kind) if kind in TOKENS else MEDIA.get(kind.split("_")[0], 63)
        elif name == "layer_types" and isinstance(value, list):
            kinds = list(dict.fromkeys(value))
            made[name] = (kinds * 2)[: max(2, len(kinds))]
        elif name in SIZES and not isinstance(value, (list, bool)):
            given = value is not None or name in ("head_dim", "num_key_value_heads", "intermediate_size")
            made |= {name: SIZES[name]} if given else {}
    n_layers = len(made.get("layer_types", "ab"))
    return made | {name: n_layers for name in ("num_hidden_layers", "n_layer", "num_layers") if name in made}


def changed(fields, changes):
    """Return the fields with changes, in nested configurations too; None leaves a field out."""
    made = dict(fields)
    for name, value in changes.items():
        nested = isinstance(made.get(name), dict) and "model_type" in made[name]
        made[name] = changed(made[name], value) if nested else value
    return {name: value for name, value in made.items() if value is not None or name not in changes}


def make_model(task, model_type):
    """Return a tiny random model of a type; whatever its library raises otherwise."""
    kind = hf.CONFIG_MAPPING[model_type]
    config = kind(**changed(small(kind().to_dict()), tiny.TINY["types"].get(model_type, {})))
    if task == "causal" and not config.is_encoder_decoder and hasattr(config, "is_decoder"):
        config.is_decoder = True
    architecture = TASKS[task][0]._model_mapping[type(config)]
    config = next((own for own in vars(config).values() if type(own) is architecture.config_class), config)
    torch.manual_seed(0)
    model = architecture._from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            strange = not weight.isfinite().all() or weight.abs().max() > 1e4
            drawn = weight.ndim > 1 or strange or "bias" in name or "sink" in name
            if weight.is_floating_point() and drawn:
                weight.normal_(std=0.15 if weight.ndim > 1 or strange else 0.1)
    return model


def truth(model, stream, run, inputs):
    """Return the attention of a stream as the model itself has it, [(batch, head, query, key)]."""
    found = [attn for name, attn in tiny.effective_attention(model, run) if place(model, name) == stream]
    return found or torch.as_tensor(tiny.eager_attention(model, stream=stream, **inputs)).unbind(1)


def place(model, name):
    """Return the stream of an attention module by its qualified name."""
    if not model.config.is_encoder_decoder:
        return "self"
    cross = re.search("cross|encoder_attn|encdec", name.lower())
    return "cross" if cross else "decoder" if "decoder." in name else "encoder"


def tried(task, model_type):
    """Return the rows of one type: a dictionary for each stream."""
    row = {"type": model_type, "task": task}
    try:
        model = make_model(task, model_type)
        n_words = getattr(model.get_input_embeddings(), "num_embeddings", 64)
        ids = torch.randint(4, min(n_words, 58), (2, N_TOKENS), generator=torch.Generator().manual_seed(1))
        inputs, ask = {"ids": ids}, {}
        if model.config.is_encoder_decoder:
            ask["decoder_ids"] = inputs["decoder_input_ids"] = ids.roll(1, 1)
        try:
            plain = logits(model, inputs)
        except Exception:  # some have no cache, or one that does not fit
            inputs["use_cache"] = False
            plain = logits(model, inputs)
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return [row | {"verdict": "cannot be built", "said": said[:200]}]
    row["route"] = family_of(model.config.get_text_config()).route
    return [row | {"stream": s} | judged(model, s, inputs, ask, plain) for s in streams_of(model)]


def logits(model, inputs):
    with torch.inference_mode():
        return model(input_ids=inputs["ids"], **{k: v for k, v in inputs.items() if k != "ids"})[0]


def judged(model, stream, inputs, ask, plain):
    """Return verdict, layers, difference and what is said of one stream."""
    try:
        got = capture(model, inputs["ids"], [tiny.Whole()], stream=stream, progress=False, **ask)
    except Exception as error:
        raised = traceback.extract_tb(error.__traceback__)[-1]
        ours = f"{os.sep}nbhelpers{os.sep}" in raised.filename and raised.line.startswith("raise")
        said = " ".join(str(error).split())
        named = said if ours else f"{type(error).__name__}: {said}"
        return {"verdict": "refused" if ours else "obscure", "said": named}
    finally:
        same = torch.equal(logits(model, inputs), plain)
    want = truth(model, stream, lambda: logits(model, inputs), inputs)
    attn = got.whole.unflatten(-1, (N_TOKENS, -1))  # (batch, layer, head, query, key)
    kept = {"layers": " ".join(map(str, got.layers)), "verdict": "wrong"}
    if not same or len(want) != attn.shape[1] or any(w.shape != attn[:, 0].shape for w in want):
        shapes = f"{len(want)} of {tuple(want[0].shape)}, captured {tuple(attn.shape)}"
        return kept | {"said": shapes if same else "the model is not left as it was"}
    off = max((w - attn[:, k]).abs().max().item() for k, w in enumerate(want))
    proof = got.provenance["proof"]
    if off <= TOLERANCE and (isinstance(proof, str) or proof <= TOLERANCE):
        kept["verdict"] = "exact"
    return kept | {"difference": f"{off:.0e}"}


def in_child(pair):
    """Return the rows of one (task, type), tried in a process of its own; a crash or a hang is filed, too."""

    def send():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the process ends with it)
        theirs.send(tried(*pair))

    said = f"its process ended without an answer, or took over {SECONDS} s"
    rows = [{"type": pair[1], "task": pair[0], "verdict": "cannot be built", "said": said}]
    ours, theirs = mp.Pipe(duplex=False)
    child = mp.get_context("fork").Process(target=send)
    child.start()
    theirs.close()
    with contextlib.suppress(EOFError):
        rows = ours.recv() if ours.poll(SECONDS) else rows
    child.kill()
    child.join()
    return rows


def versions():
    """Return the versions that the table depends on."""
    names = ("nbhelpers", "transformers", "torch")
    return ", ".join(f"{name} {version(name).partition('+')[0]}" for name in names)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="default: all")
    parser.add_argument("--store", action="store_true", help="write the table of the package")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="types at once")
    options = parser.parse_args()
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    todo = [(task, name) for task, (_, names) in TASKS.items() for name in names]
    todo = [pair for pair in todo if not options.types or pair[1] in options.types]
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = [row for found in pool.map(in_child, todo) for row in found]
    if options.store:
        table = pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False)
        TESTED.write_text(f"# {versions()}\n{table}", encoding="utf-8")
    stored = {tuple(row[:3]): row[3] for row in tested_families().to_numpy()}
    bad = 0
    for row in rows:
        key = row["type"], row["task"], row.get("stream", "")
        if row["verdict"] in ("wrong", "obscure") or stored.get(key) != row["verdict"]:
            bad += 1
            print(row, "stored:", stored.get(key))
    print(f"{len(todo)} types, {len(rows)} streams, {bad} wrong, obscure or other than stored")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

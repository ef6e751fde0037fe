"""What is measured of a model at each checkpoint, on documents held out from training."""

import math
from dataclasses import dataclass

import pandas as pd
import torch

from nbhelpers.analysis import measure, observe
from nbhelpers.hooks.capture import capture
from nbhelpers.protocol import PAPER
from nbhelpers.table import HeadTable
from nbhelpers.zoo.settings import LENGTH, VOCABULARY
from nbhelpers.zoo.text import BOS_ID, MASK_ID, inputs_and_labels

N_SEQUENCES = 12  # whose attention is measured
N_VALIDATION = 96  # windows of the validation loss
N_LONG = 24  # windows of the loss beyond the training length
N_REPEATED, PERIOD = 8, 64  # random tokens, said twice
LENGTHS = (1, 2, 4)  # of the loss beyond training, times the training length
BATCH = 16
PROTOCOLS = {"key_profile": PAPER, "lag_profile": PAPER.replace(signal="lag_profile")}
WHOLE = -1  # stands for "all" in the columns sequence, layer and head
COLUMNS = ["step", "signal", "sequence", "layer", "head", "metric", "value"]


@dataclass(frozen=True)
class Yardstick:
    """The fixed sequences that every checkpoint of every run is measured on."""

    text: torch.Tensor  # (sequence, position), whose attention is measured
    validation: torch.Tensor  # (window, position + 1), of other documents, for the validation loss
    long: torch.Tensor  # (window, 4 · position + 1), for the loss beyond the training length
    repeated: torch.Tensor  # (sequence, 2 · PERIOD), random tokens, the second half equal to the first

    @classmethod
    def of(cls, corpus):
        """Take the sequences from a :class:`nbhelpers.zoo.text.Corpus`."""
        generator = torch.Generator().manual_seed(0)
        once = torch.randint(MASK_ID + 1, VOCABULARY, (N_REPEATED, PERIOD), generator=generator)
        return cls(
            text=corpus.windows("measurement", N_SEQUENCES, LENGTH),
            validation=corpus.windows("validation", N_VALIDATION, LENGTH + 1),
            long=corpus.windows("validation", N_LONG, max(LENGTHS) * LENGTH + 1),
            repeated=torch.cat([once, once], 1),
        )


def measure_checkpoint(model, yardstick, *, step, bos, lengths=False, **scalars):
    """Return everything measured of one checkpoint as a tidy table with the columns :data:`COLUMNS`.

    With `bos`, <bos> opens every sequence. `signal` is that of a protocol, "attention" for scores, "model"
    for losses and other `scalars`. A row with sequence −1 is the mean over sequences of a head, one with
    layer and head −1 the mean over heads. With `lengths`, `length_loss_512` is the loss over all positions of
    512 tokens, `end_loss_512` over their last 256.
    """
    ids = yardstick.text.clone()
    if bos:
        ids[:, 0] = BOS_ID
    observation = observe(model, ids, PAPER, progress=False)
    one_back = observation.profiles.coordinates["lag_profile"].index(1)
    before = observation.profiles.lag_profile[..., one_back].double()  # (sequence, layer, head)
    scores = {
        "induction_score": induction_score(model, yardstick.repeated, bos=bos),
        "previous_token_score": before * LENGTH / (LENGTH - 1),  # over the queries that have one
    }
    parts = [_both_means(measure(observation, p), signal) for signal, p in PROTOCOLS.items()]
    groups = observation.profiles.kv_groups
    parts += [_both_means(HeadTable({name: v}, groups), "attention") for name, v in scores.items()]
    scalars["validation_loss"] = float(position_losses(model, yardstick.validation, bos=bos).nanmean())
    if model.config.is_causal:
        scalars |= repeat_losses(model, yardstick.repeated, bos=bos)
    most = model.config.max_position_embeddings or math.inf
    for n in (times * LENGTH for times in LENGTHS if lengths and times * LENGTH <= most):
        losses = position_losses(model, yardstick.long[:, : n + 1], bos=bos)  # (window, position)
        scalars[f"length_loss_{n}"] = float(losses.nanmean())
        scalars[f"end_loss_{n}"] = float(losses[:, -LENGTH:].nanmean())
    frame = pd.DataFrame({"metric": list(scalars), "value": list(scalars.values())})
    parts.append(frame.assign(signal="model", sequence=WHOLE, layer=WHOLE, head=WHOLE))
    small = {"step": "int32", "value": "float32"} | dict.fromkeys(["sequence", "layer", "head"], "int16")
    return pd.concat(parts, ignore_index=True).assign(step=step)[COLUMNS].astype(small)


@torch.inference_mode()
def position_losses(model, windows, *, bos):
    """Return the loss of each prediction in nats, (window, position); NaN where nothing is predicted."""
    ids, labels = inputs_and_labels(windows, causal=model.config.is_causal, bos=bos)
    losses = []
    for start in range(0, len(ids), BATCH):
        logits = model(ids[start : start + BATCH].to(model.device)).logits  # (batch, position, vocabulary)
        part = labels[start : start + BATCH].to(model.device)
        loss = torch.nn.functional.cross_entropy(logits.mT, part, reduction="none")  # 0 where not predicted
        losses.append(loss.masked_fill(part == -100, torch.nan).double().cpu())
    return torch.cat(losses)


def repeat_losses(model, repeated, *, bos):
    """Return the loss on the second saying of random tokens, and by how much the first was worse, in nats."""
    losses = position_losses(model, _with_bos(repeated, bos), bos=False)  # (sequence, 2 · PERIOD − 1)
    second = float(losses[:, -(PERIOD - 1) :].mean())
    return {"repeat_loss": second, "repeat_gain": float(losses[:, : PERIOD - 1].mean()) - second}


def induction_score(model, repeated, *, bos):
    """Return the attention to the token after the earlier occurrence of this one (arXiv:2209.11895)."""
    seen = capture(model, _with_bos(repeated, bos), "stationary_profile", progress=False)
    return seen.stationary_profile[..., PERIOD - 1].double()  # over the second saying


def _with_bos(ids, bos):
    return torch.cat([torch.full_like(ids[:, :1], BOS_ID), ids], 1) if bos else ids


def _both_means(table, signal):
    """Return means over sequences per head, and means over heads per sequence; NaN is left out."""
    frame = table.frame()
    heads = frame.groupby(["layer", "head", "metric"], sort=False)["value"].mean().reset_index()
    sequences = frame.groupby(["sequence", "metric"], sort=False)["value"].mean().reset_index()
    both = [heads.assign(sequence=WHOLE), sequences.assign(layer=WHOLE, head=WHOLE)]
    return pd.concat(both, ignore_index=True).assign(signal=signal)

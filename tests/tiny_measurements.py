"""A small collected zoo with planted effects, as `python -m nbhelpers.zoo.training collect` leaves one."""

import numpy as np
import pandas as pd

from nbhelpers.files import write_parquet
from nbhelpers.kernels.rope import alibi_slopes
from nbhelpers.zoo.settings import arms
from nbhelpers.zoo.tables import MEASUREMENTS, RUNS

N_SEQUENCES, N_LAYERS, N_HEADS = 4, 2, 4
N_STEPS = 2929
STEPS = np.unique([0, *np.round(np.geomspace(1, N_STEPS, 30)).astype(int)])
PARAMETERS = {"pico": 240_000, "micro": 510_000, "nano": 1_050_000, "mini": 2_180_000}
# What training does, per encoding: level of S(0.5) at the end, loss at the training length.
LEVEL = {"rope": 0.10, "prope": 0.11, "alibi": 0.25, "t5": 0.26, "nope": 0.27}
LEVEL |= {"sinusoidal": 0.30, "learned": 0.35}
NGRAMS = {"unigram": 6.4, "bigram": 4.3, "trigram": 3.75}
SCALARS = ("validation_loss", "repeat_loss", "repeat_gain", "train_loss")


def phase(steps, *edges):
    """Up by 1 over each (first, last) step, straight over log step."""
    x = np.log10(steps + 1.0)
    return sum(np.clip((x - np.log10(a)) / (np.log10(b) - np.log10(a)), 0, 1) for a, b in edges)


def planted(settings, generator):
    """Every metric of one run, (sequence, layer, head, step) each, with seed noise of 0.005."""
    shape = (N_SEQUENCES, N_LAYERS, N_HEADS, len(STEPS))
    noise = generator.normal(0, 0.002, shape) + generator.normal(0, 0.005)
    smaller = PARAMETERS["nano"] / PARAMETERS[settings.preset]  # smaller models end higher: a planted trend
    end = LEVEL[settings.encoding] + 0.08 * (not settings.causal) + 0.15 * np.log10(smaller)
    scale = 0.02 + (end - 0.02) * phase(STEPS, (20, 60), (400, 1000)) / 2
    # All arms peak between the ends, by the same 0.5 nats: exploration is not RoPE's alone here.
    peak = 0.57 + 2.0 * phase(STEPS, (50, 300)) - 0.5 * phase(STEPS, (700, 2500))
    support = 130.0 * np.exp(-1.1 * phase(STEPS, (50, 300)))
    slope = alibi_slopes(N_HEADS).numpy()
    steep = -np.log2(slope)[:, None] / 8 if settings.encoding == "alibi" else np.zeros((N_HEADS, 1))
    low = np.clip(0.95 - 0.3 * phase(STEPS, (50, 300)), 0, 1)
    values = {
        "scale_sensitivity_0.5": scale, "scale_sensitivity_0.25": 1.2 * scale, "low_band": low,
        "mid_band": (1 - low) * 0.6, "high_band": (1 - low) * 0.4, "spectral_entropy": peak - steep,
        "frequency_selectivity": 3.2 - peak, "effective_support": support * (1 + steep),
        "sink_mass": 0.02 + 0 * scale, "local_mass_16": 0.25 + 0.3 * phase(STEPS, (50, 300)),
        "positional_entropy": np.log(support),
    }  # fmt: skip
    exact = ("low_band", "mid_band", "high_band", "sink_mass")
    return {name: value + (0 if name in exact else noise) + np.zeros(shape) for name, value in values.items()}


def rows_of(name, values, signal):
    """Means over heads per sequence and over sequences per head, as rows."""
    sequence = values.mean((1, 2)).reshape(N_SEQUENCES, -1)
    head = values.mean(0).reshape(N_LAYERS * N_HEADS, -1)
    parts, heads = [], [(-1, *index) for index in np.ndindex(N_LAYERS, N_HEADS)]
    for part, keys in ((sequence, [(s, -1, -1) for s in range(N_SEQUENCES)]), (head, heads)):
        at, when = (index.ravel() for index in np.indices(part.shape))
        frame = pd.DataFrame(np.array(keys)[at], columns=["sequence", "layer", "head"])
        parts.append(frame.assign(step=STEPS[when], value=part.ravel(), metric=name, signal=signal))
    return pd.concat(parts, ignore_index=True)


def scalar_rows(settings, generator, *, raised=0.0):
    floor = 3.3 + raised + 2 * (LEVEL[settings.encoding] - 0.1) + generator.normal(0, 0.005)
    loss = 7.6 - (7.6 - floor) * phase(STEPS, (10, 1000))
    frames = [pd.DataFrame({"step": STEPS, "value": loss, "metric": metric}) for metric in SCALARS]
    last = {"length_loss_256": floor, "end_loss_256": floor}
    if settings.encoding != "learned":
        for times in (2, 4):  # the higher S, the worse beyond the training length
            names = (f"length_loss_{256 * times}", f"end_loss_{256 * times}")
            last |= dict.fromkeys(names, floor + times * LEVEL[settings.encoding])
    frames.append(pd.DataFrame({"step": N_STEPS, "value": list(last.values()), "metric": list(last)}))
    frame = pd.concat(frames, ignore_index=True).assign(signal="model", sequence=-1, layer=-1, head=-1)
    return frame, {"validation_loss": loss[-1]} | last


def write_zoo(folder, keep=lambda settings: True, untrained=()):
    """Write the runs that `keep` takes, `untrained` arms with a loss near the unigram; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    measured, runs = [], []
    for number, settings in enumerate(s for s in arms() if keep(s)):
        generator = np.random.default_rng([settings.seed, number])
        columns = ("arm", "encoding", "mask", "bos", "preset", "seed")
        about = {"run": settings.name} | {name: getattr(settings, name) for name in columns}
        values = planted(settings, generator)
        parts = [rows_of(name, v, s) for name, v in values.items() for s in ("key_profile", "lag_profile")]
        scores = dict.fromkeys(("induction_score", "previous_token_score"), values["local_mass_16"] * 0.1)
        parts += [rows_of(name, v, "attention") for name, v in scores.items()]
        scalars, final = scalar_rows(settings, generator, raised=2.9 * (about["arm"] in untrained))
        measured.append(pd.concat([*parts, scalars], ignore_index=True).assign(**about))
        ngrams = NGRAMS if settings.causal else dict.fromkeys(NGRAMS, np.nan)
        sizes = {"n_parameters": PARAMETERS[settings.preset], "n_steps": N_STEPS}
        sizes |= {"n_tokens": settings.n_tokens, "warmup_share": settings.warmup_share}
        sizes |= {"position_initializer_range": settings.config().position_initializer_range}
        runs.append(about | sizes | {"seconds": 1000.0} | final | ngrams)
    small = dict.fromkeys(["seed", "sequence", "layer", "head"], "int16")
    small |= {"step": "int32", "value": "float32"}
    frame = pd.concat(measured, ignore_index=True).astype(small)
    told = {"text": {"fingerprint": "planted"}, "runs": len(runs)}
    told |= {"measured_on": {"attention": [N_SEQUENCES, 256]}}
    for table, name in ((frame, MEASUREMENTS), (pd.DataFrame(runs), RUNS)):
        write_parquet(table, folder / name, told, compression="zstd")
    return folder

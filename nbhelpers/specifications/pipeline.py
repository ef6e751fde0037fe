"""Which reading can have made a row of printed numbers? Readings of an untrained network, scored against it.

Table 5 of the paper begins at step 0: its row needs only the network's shape and how its weights are drawn.
"""

import itertools
import math
from dataclasses import dataclass
from importlib import resources

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from nbhelpers.analysis import Observation, observe, part_of
from nbhelpers.arguments import checked, whole
from nbhelpers.hooks.capture import capture
from nbhelpers.hooks.reductions import LocalMass, OfPrefix, resolve
from nbhelpers.kernels.wavelets import dwt_max_level, scale_sensitivity, wavedec
from nbhelpers.protocol import PAPER, SIGNALS
from nbhelpers.sweeps.grid import read_small_yaml

from .curve import CHOICES, OF_ALL, STATISTICS, load_choices, specification_curve

SHIPPED = resources.files("nbhelpers.data").joinpath("pipelines.yaml")
HEAD_WIDTH, PYTHIA_WIDTH, PYTHIA_LAYERS = 128, 4096, 32  # of Pythia-6.9B
SHARED = ("length", *OF_ALL)  # what the numbers of spectra and of wavelets have in common
PRINTED = {  # number → column of Table 5
    "spectral entropy": "spectral_entropy", "selectivity": "frequency_selectivity",
    "low band": "low_band_power", "S(0.5)": "scale_sensitivity_0.5", "S(0.25)": "scale_sensitivity_0.25",
}  # fmt: skip


@checked(width=whole(HEAD_WIDTH, PYTHIA_WIDTH), layers=whole(1, 64))
def untrained_pythia(width=512, *, layers=PYTHIA_LAYERS, seed=0):
    """Return a GPT-NeoX of Pythia-6.9B's depth, head width and initialisation, narrower: fewer heads a layer.

    Weights are normal with sd √(2/(5·width)) (Nguyen & Salazar, arXiv:1910.05895) and 2/(layers·√width) for
    what writes into the residual stream (Wang & Komatsuzaki's GPT-J), the embedding as at full width.
    """
    from transformers import GPTNeoXConfig, GPTNeoXModel

    heads = width // HEAD_WIDTH
    sizes = {"hidden_size": heads * HEAD_WIDTH, "intermediate_size": 4 * heads * HEAD_WIDTH}
    sizes |= {"num_attention_heads": heads, "num_hidden_layers": layers, "vocab_size": 50432}
    model = GPTNeoXModel(GPTNeoXConfig(**sizes, rotary_pct=0.25, max_position_embeddings=2048)).eval()
    generator = torch.Generator().manual_seed(seed)
    writers = ("attention.dense.weight", "dense_4h_to_h.weight")
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim == 2:
                sd = math.sqrt(2 / (5 * (PYTHIA_WIDTH if "embed" in name else width)))
                sd = 2 / (layers * math.sqrt(width)) if name.endswith(writers) else sd
                weights.normal_(0, sd, generator=generator)
    return model


@dataclass(frozen=True)
class Search:
    """Readings to look among, how near is near, and what they gave."""

    tolerance: float  # sd of the log of a printed number about its reading
    readings: dict  # kind → a frame: a row per length and specification, a column per number

    def distances(self, target):
        """Return how far each reading is from printed numbers: the largest |log ratio|, by kind."""
        return {kind: self._logs(kind, target).abs().max(axis=1) for kind in self.readings}

    def posterior(self, target):
        """Return the share of belief in each option of each choice, choice → Series, falling.

        Readings have one prior; those of spectra and of wavelets share length, signal, sink and order. Belief
        that the zero-frequency line is out is added as the choice "DC line".
        """
        fit = {k: -0.5 * (self._logs(k, target) ** 2).sum(axis=1) / self.tolerance**2 for k in self.readings}
        evidence = {k: np.exp(part).groupby(level=list(SHARED)).mean() for k, part in fit.items()}
        joint = evidence["spectra"] * evidence["wavelets"]
        if not joint.sum() > 0:
            raise ValueError("no reading comes near the printed numbers; raise the tolerance")
        shares = {}
        for kind, part in fit.items():
            rows = part.index.to_frame(index=False)
            share = joint.reindex(pd.MultiIndex.from_frame(rows[list(SHARED)])).fillna(0).to_numpy()
            group = np.exp(part).groupby(level=list(SHARED)).transform("sum")
            belief = np.exp(part) / group.where(group > 0, 1) * share / joint.sum()
            if kind == "spectra":
                out = np.where((rows.dc == "drop") | (rows.detrend == "mean"), "out", "in")
                shares["DC line"] = belief.groupby(out).sum()
            shares |= {name: belief.groupby(level=name).sum() for name in belief.index.names}
        return {name: share.sort_values(ascending=False) for name, share in shares.items()}

    def better_targets(self, target, *, n_draws=300, seed=0):
        """Return, by kind, the share of random targets to which some reading is nearer than to `target`."""
        generator, shares = np.random.default_rng(seed), {}
        for kind in self.readings:
            known = self._logs(kind, target).to_numpy()  # (reading, number)
            low, high = np.quantile(np.exp(known), [0.05, 0.95], axis=0)
            draws = np.log(generator.uniform(low, high, (n_draws, len(low))))
            best = np.array([np.abs(known - draw).max(1).min() for draw in draws])
            shares[kind] = float((best < np.abs(known).max(1).min()).mean())
        return shares

    def _logs(self, kind, target):
        numbers = [name for name in PRINTED if name in self.readings[kind]]
        given = np.log([float(target[PRINTED[name]]) for name in numbers])
        return np.log(self.readings[kind][numbers].clip(lower=1e-9)) - given


def search_readings(model, token_ids, *, grid=None, progress=True):
    """Measure attention under every reading of pipelines.yaml, or a dict like it, as a :class:`Search`."""
    raw = grid or read_small_yaml(SHIPPED)
    choices, lengths, found = load_choices(raw["choices"]), raw["lengths"], []
    if max(lengths) > token_ids.shape[1]:
        raise ValueError(f"a reading takes {max(lengths)} tokens, the sequences have {token_ids.shape[1]}")
    printed = {k: {y: f for y, f in every.items() if y in PRINTED} for k, every in STATISTICS.items()}
    seen = _beginnings(model, token_ids, lengths, [*SIGNALS, LocalMass((PAPER.local_distance,))])
    for n in tqdm(lengths, desc="lengths", disable=None if progress else True):
        world = {"prefix": Observation(seen[n], {a: seen[int(a * n)] for a in PAPER.factors})}
        known = {"whole": seen[n], "progress": False}
        for how in choices["scaled_variant"]:
            protocol = PAPER.replace(scaled_variant=how)
            world[how] = world.get(how) or observe(model, token_ids[:, :n], protocol, **known)
        found.append({k: specification_curve(world, choices, k, of) for k, of in printed.items()})
    curves = {k: pd.concat([f[k] for f in found], keys=lengths, names=["length"]) for k in CHOICES}
    return Search(float(raw["tolerance"]), curves)


def sensitivities_by_length(model, token_ids, lengths):
    """Return S(0.5) and S(0.25) of the literal reading, means over all, at many lengths from one pass."""
    seen, found = _beginnings(model, token_ids, lengths, ["key_profile"]), {}
    for n in lengths:
        full, *parts = (wavedec(seen[n // by].key_profile, level=dwt_max_level(n // 4)) for by in (1, 2, 4))
        found[n] = [float(scale_sensitivity(full, part).mean()) for part in parts]
    return pd.DataFrame(found, ["S(0.5)", "S(0.25)"]).T.rename_axis("length")


def _beginnings(model, token_ids, lengths, kept):
    """Return reductions of attention over the first n, n/2 and n/4 tokens, by their number, from one pass."""
    kept, sizes = resolve(kept), {n // by for n in lengths for by in (1, 2, 4)}
    made = {n: [OfPrefix(reduction, n) for reduction in kept] for n in sizes}
    seen = capture(model, token_ids, list(itertools.chain(*made.values())), progress=False)
    return {n: part_of(seen, kept, made[n], token_ids[:, :n]) for n in sizes}

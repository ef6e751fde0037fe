"""Rotations as a model applies them, and the lag kernel of a head: what they make of its mean query and key.

Layouts are not read off a table of families. Turned by one number of tokens, every query and key must change
by the rotation of that number; which frequencies (the model's own `inv_freq`, as they are at this length) in
which dimensions do so is tried, and a layer that none explains is an error.
"""

from dataclasses import dataclass

import torch

from nbhelpers.arguments import checked
from nbhelpers.inputs import zoo
from nbhelpers.inputs.families import family_of, position_encoding_of, rope_of
from nbhelpers.inputs.models import unwrap
from nbhelpers.kernels import rope

from . import proof
from .attention import Recorder, forward, score_blocks, scores_of, takes
from .reductions import EARLY, LEAST_SCORE

PROBED, TURN = 16, 16  # positions that are looked at, and by how many tokens they are turned
NO_KERNEL = (
    "{name}: no kernel from weights. Its positions ({encoding}) are not in the scores as a rotation or a "
    "bias of the lag, so what a head does with distance is known by measuring alone: "
    "capture(..., 'lag_logits')."
)


@dataclass(frozen=True)
class Rotation:
    """What one layer does to its queries and keys at a position."""

    frequencies: (
        torch.Tensor
    )  # (pair,), float64 on the CPU, radians/token; all 0 in a layer that does not rotate
    interleaved: bool = False  # pairs are 2k and 2k + 1, else k and k + number of pairs
    first: int = 0  # the dimension where they begin; those before are not rotated

    def turn(self, x, positions):
        """Return `x`, (..., position, head_dim), rotated by positions (position,) in tokens."""
        turned = rope.rotate(x[..., self.first :], positions, self.frequencies, interleaved=self.interleaved)
        return torch.cat([x[..., : self.first].to(turned.dtype), turned], -1)


@dataclass(frozen=True)
class Moments:
    """Mean queries and keys of the heads before rotation, and what turns and adds to their scores.

    An attention factor (YaRN, longrope) is in the means. Lists have an entry for each layer.
    """

    layers: list  # their numbers
    query: list  # (head, head_dim), float64
    key: list  # (head, head_dim), the key of a KV group for each of its query heads
    rotations: list  # Rotation
    scaling: list  # factor of the scores
    bias: list  # (head, lag), added to the scores (ALiBi, T5); NaN beyond a sliding window
    softcap: list  # or None

    def amplitudes(self, layer):
        """Return the complex amplitudes of the pairs, (head, pair), and what no lag changes, (head,).

        `layer` counts the entries, which in hybrids are fewer than the layers.
        """
        at = self.rotations[layer]
        query, key = self.query[layer] * self.scaling[layer], self.key[layer]
        before = (query[:, : at.first] * key[:, : at.first]).sum(-1)  # (head,)
        query, key = query[:, at.first :], key[:, at.first :]
        pairs, rest = rope.pair_amplitudes(query, key, len(at.frequencies), interleaved=at.interleaved)
        return pairs, before + rest

    def kernels(self, n_lags):
        """Return the score that is expected at each lag from 0 on, (layer, head, lag), float64."""
        longest = min(bias.shape[-1] for bias in self.bias)
        if not 1 <= n_lags <= longest:
            raise ValueError(f"n_lags must be from 1 to {longest}, the tokens that were read; got {n_lags}")
        kernels = []
        for layer, (rotation, cap) in enumerate(zip(self.rotations, self.softcap, strict=True)):
            pairs, rest = self.amplitudes(layer)
            kernel = rope.lag_kernel(rotation.frequencies, torch.arange(n_lags), pairs) + rest[:, None]
            kernel = kernel if cap is None else cap * (kernel / cap).tanh()
            kernels.append(kernel + self.bias[layer][:, :n_lags])
        return torch.stack(kernels)


class _Turned(Recorder):
    """Finds the rotation of each layer from queries and keys of the same tokens at two places."""

    def __init__(self, network, turn, split):
        super().__init__(network)
        self.network, self.turn, self.split, self.found = network, turn, split, []

    def observe(self, module, query, key, value, mask, output, **options):
        here, there = self.split(torch.cat([query, key], 1).double())  # (head, position, head_dim) each
        half = torch.finfo(query.dtype).bits < 32
        tried = [
            ((r.turn(here, torch.tensor(self.turn)) - there).norm() / there.norm(), r)
            for r in _candidates(self.network, here.shape[-1])
        ]
        off, rotation = min(tried, key=lambda pair: float(pair[0]))
        if not off <= (proof.TOLERANCE_HALF if half else proof.TOLERANCE):
            config, at = self._config, len(self.found)
            told = NO_KERNEL.format(name=config.model_type, encoding=position_encoding_of(config))
            raise ValueError(
                f"{told} Turned by {self.turn} tokens, queries and keys of layer {at} miss the nearest of "
                f"{len(tried)} rotations by {float(off):.2g}."
            )
        self.found.append(rotation)


def _candidates(network, width):
    """Yield the rotations that a layer of this width may have: none, and those of the model's frequencies."""
    config = network.config.get_text_config()
    known = [b for name, b in network.named_buffers() if name.endswith("inv_freq") and "original" not in name]
    if isinstance(config, zoo.ZooConfig):
        known += [own for own in [zoo.frequencies(config)] if own is not None]
    elif not known and None not in (base := rope_of(config)):
        known.append(rope.inverse_frequencies(width, theta=base[0], fraction=base[1]))
    yield Rotation(torch.zeros(max(1, width // 2), dtype=torch.float64))
    for frequencies in known:
        rest = width - 2 * len(frequencies)
        if rest >= 0:
            for first in sorted({0, rest}):
                for interleaved in (False, True):
                    yield Rotation(frequencies.cpu().double(), interleaved, first)


class _MeanQueryKey(Recorder):
    """Keeps the mean query and key of each layer before rotation."""

    def __init__(self, network, rotations):
        super().__init__(network)
        self.rotations, self.kept = rotations, []

    def observe(self, module, query, key, value, mask, output, **options):
        rotation, n = self.rotations[len(self.kept)], query.shape[2]
        back = -torch.arange(EARLY, n, device=query.device)
        means = [rotation.turn(x[:, :, EARLY:].double(), back).mean((0, 2)).cpu() for x in (query, key)]
        means[1] = means[1].repeat_interleave(query.shape[1] // key.shape[1], 0)
        plain = {name: option for name, option in options.items() if name != "s_aux"}
        last = [(module, query[:1] * 0, key[:1] * 0, mask if mask is None else mask[:1])]
        [(_, bias, _)] = score_blocks(*last[0], 1, first=n - 1, **plain)  # scores where nothing is said
        bias = bias[0, :, 0].flip(-1).double().cpu()  # (head, lag)
        bias = bias.masked_fill(bias < LEAST_SCORE, torch.nan)
        scaling = scores_of(module, query, mask, scaling=options.get("scaling"))[1]
        self.kept.append((*means, rotation, scaling, bias, options.get("softcap")))
        self.prove(module, query, key, value, mask, output, **options)


@checked
def rotations_of(model, length):
    """Return the :class:`Rotation` of each layer in texts of `length` tokens, scaled as they are there.

    ValueError where queries and keys change with position in another way, or cannot be seen.
    """
    network, length = unwrap(model), max(2, length)
    config = network.config.get_text_config()
    if family_of(config).route == "module" or network.config.is_encoder_decoder:
        raise ValueError(
            f"{config.model_type}: kernels are made of the queries and keys of one stack; this family is an "
            "encoder-decoder or shows capture none (route 'module')."
        )
    turn, n = min(TURN, length // 2), min(PROBED, length - length // 2)
    words = len(network.get_input_embeddings().weight)
    if takes(network, "self", "position_ids"):
        ids = ((torch.arange(n) + words // 2) % words).expand(2, -1)
        start = torch.tensor([[length - n - turn], [length - n]])
        recorder = _Turned(network, turn, lambda x: x)
        inputs = {"attention_mask": torch.ones_like(ids), "position_ids": start + torch.arange(n)}
        forward(network, recorder, ids, **inputs)
    else:  # one word all along: what a head finds is the same everywhere, unless positions are in the stream
        ids = torch.full((1, n + turn), words // 2)
        recorder = _Turned(network, turn, lambda x: (x[:, :, :n], x[:, :, turn : turn + n]))
        forward(network, recorder, ids)
    recorder.layers()
    return recorder.found


@checked
def query_key_moments(model, token_ids):
    """Return the :class:`Moments` of a decoder or encoder over sequences (sequence, position).

    The first :data:`~nbhelpers.hooks.reductions.EARLY` positions are left out. Sequences have no padding.
    """
    network, ids = unwrap(model), torch.as_tensor(token_ids)
    if ids.ndim != 2 or ids.shape[1] <= EARLY:
        told = f"(sequence, position) with more than {EARLY} positions"
        raise ValueError(f"token_ids must be {told}; got {tuple(ids.shape)}")
    recorder = _MeanQueryKey(network, rotations_of(network, ids.shape[1]))
    forward(network, recorder, ids)
    layers = recorder.layers()
    recorder.proof()
    return Moments(layers, *map(list, zip(*recorder.kept, strict=True)))

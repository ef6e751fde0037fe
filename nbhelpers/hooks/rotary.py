"""Rotations as a model applies them, and the lag kernel of a head: what they make of its mean query and key.

No table says which family rotates how: which of the model's own rates (`inv_freq`, as at this length)
turn all queries and keys by a number of tokens, and where, is tried. A layer that none explains is an error.
"""

from dataclasses import dataclass

import torch

from nbhelpers.arguments import checked, refuse
from nbhelpers.inputs import zoo
from nbhelpers.inputs.families import family_of, position_encoding_of, rope_of
from nbhelpers.inputs.models import unwrap
from nbhelpers.kernels import rope

from . import proof
from .attention import Calls, forward, score_blocks, scores_of, takes
from .memory import plan
from .reductions import EARLY, LEAST_SCORE

PROBED, TURN = 16, 16  # positions that are looked at, and by how many tokens they are turned


@dataclass(frozen=True)
class Rotation:
    """What one layer does to its queries and keys at a position."""

    frequencies: torch.Tensor  # (pair,), float64 on the CPU, radians/token; all 0 where nothing rotates
    interleaved: bool = False  # pairs are 2k and 2k + 1, else k and k + number of pairs
    first: int = 0  # the dimension where they begin; those before are not rotated

    def turn(self, x, positions):
        """Return `x`, (..., position, head_dim), rotated by positions (position,) in tokens."""
        turned = rope.rotate(x[..., self.first :], positions, self.frequencies, interleaved=self.interleaved)
        return torch.cat([x[..., : self.first].to(turned.dtype), turned], -1)

    def pairs(self, x):
        """Return the rotated dimensions of `x`, (..., head_dim), as complex numbers (..., pair)."""
        n = len(self.frequencies)
        paired = x[..., self.first : self.first + 2 * n].unflatten(-1, (n, 2) if self.interleaved else (2, n))
        return torch.complex(*paired.unbind(-1 if self.interleaved else -2))


@dataclass(frozen=True)
class Moments:
    """Mean query and key of each head before rotation, and what else makes its scores; lists are by layer."""

    layers: list  # their numbers; in hybrids not all layers are here
    query: list  # (head, head_dim), float64
    key: list  # (head, head_dim), the key of a KV group for each of its query heads
    rotations: list  # Rotation
    scaling: list  # factor of the scores
    bias: list  # (head, lag), added to the scores (ALiBi, T5); NaN beyond a sliding window
    softcap: list  # or None

    def kernels(self, n_lags):
        """Return the expected score at each lag from 0 on, (layer, head, lag): R(l) q̄ · k̄ and the bias."""
        if n_lags > (longest := self.bias[0].shape[-1]):
            raise ValueError(f"n_lags must be from 1 to {longest}, the tokens that were read; got {n_lags}")
        kernels, of_heads = [], (self.query, self.key, self.rotations, self.scaling, self.bias, self.softcap)
        for query, key, rotation, scaling, bias, cap in zip(*of_heads, strict=True):
            every = query[:, None].expand(-1, n_lags, -1)  # (head, lag, head_dim)
            kernel = (rotation.turn(every, torch.arange(n_lags)) @ key[..., None])[..., 0] * scaling
            kernel = kernel if cap is None else cap * (kernel / cap).tanh()
            kernels.append(kernel + bias[:, :n_lags])
        return torch.stack(kernels)

    def parts(self, layer, n_lags):
        """Return what each pair adds to the kernels of the heads of a layer, (head, pair, lag), means off."""
        rotation = self.rotations[layer]
        query, key = rotation.pairs(self.query[layer]), rotation.pairs(self.key[layer])  # (head, pair)
        turns = torch.exp(1j * rotation.frequencies[:, None] * torch.arange(n_lags))  # (pair, lag)
        parts = self.scaling[layer] * ((query * key.conj())[..., None] * turns).real
        return parts - parts.mean(-1, keepdim=True)


def _nearest(network, layer, here, there, turn, tolerance):
    """Return the rotation that takes vectors, (head, position, head_dim), to those `turn` tokens further."""
    tried = []
    for rotation in _candidates(network, here.shape[-1]):
        miss = rotation.turn(here, torch.tensor(turn)) - there
        tried.append((float(miss.norm() / there.norm()), len(tried), rotation))
    off, _, rotation = min(tried)
    if not off <= tolerance:
        config = network.config.get_text_config()
        raise ValueError(
            f"{config.model_type}: no kernel from weights. Its positions ({position_encoding_of(config)}) "
            "are not in the scores as a rotation or a bias of the lag, so distance in a head is known by "
            f"measuring alone: capture(..., 'lag_logits'). Turned by {turn} tokens, layer {layer} misses the "
            f"nearest of {len(tried)} rotations by {off:.2g}."
        )
    return rotation


def _candidates(network, width):
    """Yield the rotations that a layer of this width may have: none, and those of the model's rates."""
    config = network.config.get_text_config()
    known = [b for name, b in network.named_buffers() if name.endswith("inv_freq") and "original" not in name]
    if isinstance(config, zoo.ZooConfig):
        known += [own for own in [zoo.frequencies(config)] if own is not None]
    elif not known and None not in (base := rope_of(config)):
        known.append(rope.inverse_frequencies(width, theta=base[0], fraction=base[1]))
    yield Rotation(torch.zeros(width // 2, dtype=torch.float64))
    for rates in known:
        rest = width - 2 * len(rates)
        for first in sorted({0, rest}) if rest >= 0 else ():
            yield from (Rotation(rates.cpu().double(), pairing, first) for pairing in (False, True))


def _moments_of(rotation, module, query, key, mask, options):
    """Return what :class:`Moments` keeps of a layer, from its queries and keys as the model gives them."""
    n = query.shape[2]
    back = -torch.arange(EARLY, n, device=query.device)
    means = [rotation.turn(x[:, :, EARLY:].double(), back).mean((0, 2)).cpu() for x in (query, key)]
    means[1] = means[1].repeat_interleave(query.shape[1] // key.shape[1], 0)
    plain = {name: option for name, option in options.items() if name != "s_aux"}
    silent = module, query[:1] * 0, key[:1] * 0, mask if mask is None else mask[:1]
    [(_, bias, _)] = score_blocks(*silent, 1, first=n - 1, **plain)  # the last row, nothing asked or said
    bias = bias[0, :, 0].flip(-1).double().cpu()  # (head, lag)
    bias = bias.masked_fill(bias < LEAST_SCORE, torch.nan)
    scaling = scores_of(module, query, mask, scaling=options.get("scaling"))[1]
    return (*means, rotation, scaling, bias, options.get("softcap"))


@torch.inference_mode()
def kept_moments(cache, layer, rotations):
    """Return :class:`Moments` of one layer of an `AttentionCache`, without the model; rotations by layer."""
    kept = _moments_of(rotations[cache.layers.index(layer)], *cache.call(layer))
    return Moments([layer], *([each] for each in kept))


@checked
def rotations_of(model, length):
    """Return the :class:`Rotation` of each layer in texts of `length` tokens, scaled as they are there."""
    network, length = unwrap(model), max(2, length)
    config = network.config.get_text_config()
    if family_of(config).route == "module" or network.config.is_encoder_decoder:
        needs = "kernels are made of the queries and keys of one stack"
        shows = "this family is an encoder-decoder or shows capture none (route 'module')"
        raise ValueError(f"{config.model_type}: {needs}; {shows}.")
    turn, n = min(TURN, length // 2), min(PROBED, length - length // 2)
    n_words, found = len(network.get_input_embeddings().weight), []

    def find(module, query, key, mask, options):
        x = torch.cat([query, key], 1).double()  # of two texts or one, (text, head, position, head_dim)
        here, there = x if len(x) == 2 else (x[0, :, :n], x[0, :, turn:])
        tolerance = proof.TOLERANCE if query.dtype.itemsize >= 4 else proof.TOLERANCE_HALF
        found.append(_nearest(network, len(found), here, there, turn, tolerance))

    recorder = Calls(network, find)
    if takes(network, "self", "position_ids"):
        ids = ((torch.arange(n) + n_words // 2) % n_words).expand(2, -1)
        places = torch.tensor([[length - n - turn], [length - n]]) + torch.arange(n)
        forward(network, recorder, ids, attention_mask=torch.ones_like(ids), position_ids=places)
    else:  # one word all along: what a head finds is the same everywhere, unless positions are in the stream
        forward(network, recorder, torch.full((1, n + turn), n_words // 2))
    recorder.layers()
    return found


@checked
def query_key_moments(model, token_ids):
    """Return :class:`Moments` over sequences (sequence, position) without padding, from :data:`EARLY` on."""
    network = unwrap(model)
    if token_ids.ndim != 2 or token_ids.shape[1] <= EARLY:
        refuse("token_ids", token_ids, f"(sequence, position) with more than {EARLY} positions")
    rotations, batches = rotations_of(network, token_ids.shape[1]), []
    for some in token_ids.split(plan(network, *token_ids.shape).batch_size):
        kept = []
        recorder = Calls(
            network, lambda *call, kept=kept: kept.append(_moments_of(rotations[len(kept)], *call))
        )
        forward(network, recorder, some)
        recorder.proof()
        batches.append([[len(some) / len(token_ids) * mean for mean in layer[:2]] for layer in kept])
    means = ([sum(parts) for parts in zip(*layers, strict=True)] for layers in zip(*batches, strict=True))
    kept = ((*own, *layer[2:]) for own, layer in zip(means, kept, strict=True))
    return Moments(recorder.layers(), *map(list, zip(*kept, strict=True)))

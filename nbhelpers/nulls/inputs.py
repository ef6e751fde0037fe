"""Null models made before attention is reduced: of the model (N1), its rows (N2) and the text (N7)."""

import math

import torch

from nbhelpers.kernels.entropy import require_distribution

__all__ = ["permute_rows", "random_tokens", "random_weights", "shuffled_tokens"]


def random_weights(make, observe, *, seeds):
    """N1: what the same architecture shows with random weights.

    Parameters
    ----------
    make : callable
        Seed to model.
    observe : callable
        Model to Profiles, or to whatever is measured further.
    seeds : sequence of int
        Five or more are advised. Each model is let go before the next is made.

    Returns
    -------
    list
        One observation per seed.

    Raises
    ------
    ValueError
        If there is no seed, or one is given twice.
    """
    seeds = list(seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"random_weights needs one or more different seeds, got {seeds}")
    return [observe(make(seed)) for seed in seeds]


def permute_rows(attn, *, causal, seed=0):
    """N2 of a matrix: the values of each row in random order among the keys that its query sees.

    Parameters
    ----------
    attn : torch.Tensor or array_like, shape (..., query, key)
        Rows sum to 1.
    causal : bool
        Whether query i sees the keys 0 to i only.
    seed : int

    Returns
    -------
    torch.Tensor, shape (..., query, key)
        Of the dtype of `attn`.

    Raises
    ------
    ValueError
        If `attn` is not attention of n queries to n keys, or `causal` is True for bidirectional attention.
    """
    attn = torch.as_tensor(attn)
    if attn.ndim < 2 or attn.shape[-1] != attn.shape[-2]:
        raise ValueError(f"attn has shape {tuple(attn.shape)}; expected (..., query, key) with as many keys")
    require_distribution(attn)
    order = torch.rand(attn.shape, generator=torch.Generator().manual_seed(seed))  # (..., query, key)
    if causal:
        later = torch.ones(attn.shape[-2:], dtype=torch.bool).triu(1)  # (query, key)
        if bool((attn.masked_fill(~later, 0) > 0).any()):
            raise ValueError("causal=True, but some queries attend to later keys; pass causal=False")
        order = order.masked_fill(later, math.inf)
    # Hidden keys sort behind all visible ones, and stably, so they stay where they are.
    return attn.gather(-1, order.argsort(dim=-1, stable=True))


def shuffled_tokens(token_ids, *, seed=0, keep=()):
    """N7: the tokens of each sequence in random order.

    Parameters
    ----------
    token_ids : torch.LongTensor, shape (sequence, position)
        Not modified.
    seed : int
    keep : sequence of int
        Ids that stay where they are: ``tokenizer.all_special_ids``.

    Returns
    -------
    torch.LongTensor, shape (sequence, position)
    """
    ids, free = _free_positions(token_ids, keep)
    generator = torch.Generator().manual_seed(seed)
    for row, movable in zip(ids, free, strict=True):
        own = row[movable]
        row[movable] = own[torch.randperm(len(own), generator=generator)]
    return ids


def random_tokens(token_ids, vocab_size, *, seed=0, keep=()):
    """N7: every token replaced by one drawn from the whole vocabulary.

    Parameters
    ----------
    token_ids : torch.LongTensor, shape (sequence, position)
        Not modified.
    vocab_size : int
        Ids are drawn from 0 to vocab_size − 1, those of `keep` left out.
    seed : int
    keep : sequence of int
        Ids that stay where they are: ``tokenizer.all_special_ids``.

    Returns
    -------
    torch.LongTensor, shape (sequence, position)

    Raises
    ------
    ValueError
        If the vocabulary has nothing outside `keep`.
    """
    ids, free = _free_positions(token_ids, keep)
    drawn_from = torch.tensor(sorted(set(range(vocab_size)) - {int(token) for token in keep}))
    if len(drawn_from) == 0:
        raise ValueError(f"a vocabulary of {vocab_size} ids has none outside keep={list(keep)}")
    picks = torch.randint(len(drawn_from), ids.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(free, drawn_from[picks], ids)


def _free_positions(token_ids, keep):
    """Return a copy of the ids (sequence, position) and where a token may be exchanged."""
    ids = torch.as_tensor(token_ids).clone()
    if ids.ndim != 2 or ids.is_floating_point():
        raise ValueError(
            f"token_ids must be integers (sequence, position), got {ids.dtype} {tuple(ids.shape)}"
        )
    return ids, ~torch.isin(ids, torch.tensor(list(keep), dtype=ids.dtype))

"""Unigram, bigram and trigram models of the training tokens: what a transformer has to beat."""

import numpy as np
import pandas as pd

ORDERS = ("unigram", "bigram", "trigram")


def ngram_probabilities(tokens, ends, windows, vocab_size):
    """Yield what n-gram models give every token but the first of windows (window, position + 1), by order.

    Interpolated models with absolute discounting (Ney, Essen and Kneser 1994), each (window, position):
    p(w | h) = max(c(h w) − D, 0) / c(h) + D · N(h ·) / c(h) · p(w | shorter h), N(h ·) being the different
    words seen after h, D = n₁ / (n₁ + 2 n₂) of the n-grams seen once and twice; below the unigram stands the
    uniform distribution, and near the start of a window a lower order. No n-gram spans two documents, which
    end in `tokens` at `ends`.
    """
    tokens, ends, windows = (np.asarray(ids, dtype=np.int64) for ids in (tokens, ends, windows))
    document = np.searchsorted(ends, np.arange(len(tokens)), side="right")
    result = np.full(windows[:, 1:].shape, 1 / vocab_size)
    for n in range(1, len(ORDERS) + 1):

        def coded(columns):  # n-grams, a column for each of their words, as one number each
            return sum(column * vocab_size**k for k, column in enumerate(reversed(columns)))

        n_grams = len(tokens) - n + 1
        whole = document[:n_grams] == document[n - 1 :]
        grams = pd.Series(coded([tokens[k : k + n_grams] for k in range(n)])[whole]).value_counts()
        after = grams.groupby(grams.index // vocab_size)
        first = max(n - 1, 1)  # the first token that has n − 1 before it
        code = coded([windows[:, first - back : windows.shape[1] - back] for back in reversed(range(n))])
        count = _look_up(grams, code)
        total, different = (_look_up(of, code // vocab_size) for of in (after.sum(), after.size()))
        once, twice = (grams == 1).sum(), (grams == 2).sum()
        discount, seen = once / (once + 2 * twice) if once else 0.5, np.maximum(total, 1)
        lower = result[:, first - 1 :]
        mixed = np.maximum(count - discount, 0) / seen + discount * different / seen * lower
        result[:, first - 1 :] = np.where(total > 0, mixed, lower)
        yield result.copy()


def _look_up(counts, codes):
    return counts.reindex(codes.ravel(), fill_value=0).to_numpy().reshape(codes.shape)

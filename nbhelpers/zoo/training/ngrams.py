"""Unigram, bigram and trigram models of the training tokens: what a transformer has to beat."""

import numpy as np
import pandas as pd

ORDERS = {"unigram": 1, "bigram": 2, "trigram": 3}


class NGram:
    """Interpolated n-gram model with absolute discounting (Ney, Essen and Kneser 1994), up to trigrams.

    p(w | h) = max(c(h w) − D, 0) / c(h) + D · N(h ·) / c(h) · p(w | shorter h), N(h ·) being the different
    words seen after h, D = n₁ / (n₁ + 2 n₂) of the n-grams seen once and twice; below the unigram stands the
    uniform distribution. No n-gram spans two documents, which end in `tokens` at `ends`.
    """

    def __init__(self, tokens, ends, vocab_size):
        self.vocab_size = vocab_size
        tokens, ends = np.asarray(tokens, dtype=np.int64), np.asarray(ends, dtype=np.int64)
        document = np.searchsorted(ends, np.arange(len(tokens)), side="right")
        self.counts = []  # of each order: n-grams, their histories, the different words after these
        for order in ORDERS.values():
            n = len(tokens) - order + 1
            whole = document[:n] == document[order - 1 :]
            grams = self._coded([tokens[k : k + n] for k in range(order)])[whole]
            grams = pd.Series(grams).value_counts()
            after = grams.groupby(grams.index // vocab_size)
            self.counts.append((grams, after.sum(), after.size()))

    def probabilities(self, windows, order):
        """Return the probability (window, position) of every token but the first of (window, position + 1).

        Given order − 1 before it; near the start of a window a lower order stands in.
        """
        windows = np.asarray(windows, dtype=np.int64)
        result = np.full(windows[:, 1:].shape, 1 / self.vocab_size)
        for n in range(1, order + 1):
            first = max(n - 1, 1)  # the first token that has n − 1 before it
            parts = [windows[:, first - back : windows.shape[1] - back] for back in reversed(range(n))]
            grams, histories, followers = self.counts[n - 1]
            code, lower = self._coded(parts), result[:, first - 1 :]
            count = _look_up(grams, code)
            total, different = (_look_up(of, code // self.vocab_size) for of in (histories, followers))
            once, twice = (grams == 1).sum(), (grams == 2).sum()
            discount, seen = once / (once + 2 * twice) if once else 0.5, np.maximum(total, 1)
            mixed = np.maximum(count - discount, 0) / seen + discount * different / seen * lower
            result[:, first - 1 :] = np.where(total > 0, mixed, lower)
        return result

    def _coded(self, columns):
        """Return n-grams, a column for each of their words, as one number each."""
        return sum(column * self.vocab_size**k for k, column in enumerate(reversed(columns)))


def _look_up(counts, codes):
    return counts.reindex(codes.ravel(), fill_value=0).to_numpy().reshape(codes.shape)


def baselines(corpus, windows):
    """Return the losses of unigram, bigram and trigram in nats per token, by name, on some windows."""
    model = NGram(corpus.tokens["train"], corpus.ends["train"], corpus.vocab_size)
    return {name: float(-np.log(model.probabilities(windows, n)).mean()) for name, n in ORDERS.items()}

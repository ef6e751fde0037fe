"""Unigram, bigram and trigram models of the training tokens: what a transformer has to beat."""

import numpy as np


class NGram:
    """Interpolated n-gram model with absolute discounting (Ney, Essen and Kneser 1994), up to trigrams.

    Each order takes the discount D = n₁ / (n₁ + 2 n₂) off every count, n₁ and n₂ being the n-grams seen once
    and twice, and gives what was taken to the order below:
    p(w | h) = max(c(h w) − D, 0) / c(h) + D · N(h ·) / c(h) · p(w | shorter h), N(h ·) being the different
    words seen after h. Below the unigram stands the uniform distribution. No n-gram spans two documents,
    which end in `tokens` at `ends`.
    """

    def __init__(self, tokens, ends, vocab_size):
        self.vocab_size = vocab_size
        tokens, ends = np.asarray(tokens, dtype=np.int64), np.asarray(ends, dtype=np.int64)
        document = np.searchsorted(ends, np.arange(len(tokens)), side="right")
        self.orders = [_Order(tokens, document, order, vocab_size) for order in (1, 2, 3)]

    def probabilities(self, windows, order):
        """Return the probability of every token but the first of each window, given order − 1 before it.

        Near the start of a window, where there is less before it, a lower order stands in. Windows have shape
        (window, position + 1), the result (window, position).
        """
        windows = np.asarray(windows, dtype=np.int64)
        result = np.full(windows[:, 1:].shape, 1 / self.vocab_size)
        for n in range(1, order + 1):
            first = max(n - 1, 1)  # the first token that has n − 1 before it
            history = np.zeros_like(windows[:, first:])
            for back in range(n - 1, 0, -1):
                history = history * self.vocab_size + windows[:, first - back : windows.shape[1] - back]
            lower = result[:, first - 1 :]
            result[:, first - 1 :] = self.orders[n - 1].interpolate(history, windows[:, first:], lower)
        return result


class _Order:
    """Counts of one order: n-grams as one number each, sorted."""

    def __init__(self, tokens, document, order, vocab_size):
        self.vocab_size = vocab_size
        n = len(tokens) - order + 1
        code = np.zeros(n, dtype=np.int64)
        for k in range(order):
            code = code * vocab_size + tokens[k : k + n]
        whole = document[:n] == document[order - 1 : order - 1 + n]
        self.code, self.count = np.unique(code[whole], return_counts=True)
        once, twice = (self.count == 1).sum(), (self.count == 2).sum()
        self.discount = once / (once + 2 * twice) if once else 0.5
        # Everything below is per history: its total count and how many different tokens follow it.
        self.history, first = np.unique(self.code // vocab_size, return_index=True)
        self.total = np.add.reduceat(self.count, first)
        self.followers = np.diff(np.append(first, len(self.code)))

    def interpolate(self, history, token, lower):
        """Return p(token | history), the shapes of all three being equal."""
        count = _look_up(self.code, self.count, history * self.vocab_size + token)
        total = _look_up(self.history, self.total, history)
        followers = _look_up(self.history, self.followers, history)
        seen = np.maximum(total, 1)
        mixed = np.maximum(count - self.discount, 0) / seen + self.discount * followers / seen * lower
        return np.where(total > 0, mixed, lower)


def _look_up(keys, values, wanted):
    """Return the value of each wanted key, 0 where it is not among the sorted keys."""
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def baselines(corpus, windows):
    """Return the losses of unigram, bigram and trigram in nats per token, by name, on some windows."""
    model = NGram(corpus.tokens["train"], corpus.ends["train"], corpus.vocab_size)
    orders = {"unigram": 1, "bigram": 2, "trigram": 3}
    return {name: float(-np.log(model.probabilities(windows, n)).mean()) for name, n in orders.items()}

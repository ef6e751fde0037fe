from collections import Counter

import numpy as np
import pytest

from nbhelpers.zoo.training.ngrams import ngram_probabilities

VOCABULARY = 12


@pytest.fixture(scope="module")
def tokens():
    """A few documents with repetitions, and a word (11) that is never seen."""
    rng = np.random.default_rng(0)
    return rng.choice(11, 300, p=np.arange(11, 0, -1) / 66), np.array([7, 8, 120, 300])


def slow_probability(tokens, ends, word, history):
    documents = np.split(tokens, ends[:-1])
    p = 1 / VOCABULARY
    for order in range(1, len(history) + 2):
        starts = [(d, i) for d in documents for i in range(len(d) - order + 1)]
        grams = Counter(tuple(d[i : i + order].tolist()) for d, i in starts)
        once, twice = (sum(c == k for c in grams.values()) for k in (1, 2))
        discount = once / (once + 2 * twice) if once else 0.5
        before = tuple(history[len(history) - order + 1 :])
        total = sum(c for gram, c in grams.items() if gram[:-1] == before)
        followers = sum(gram[:-1] == before for gram in grams)
        if total:
            p = max(grams[(*before, word)] - discount, 0) / total + discount * followers / total * p
    return p


@pytest.mark.parametrize("order", [1, 2, 3])
def test_equal_to_counting_in_dictionaries_and_distributions(tokens, order):
    def probabilities(windows):
        return list(ngram_probabilities(*tokens, windows, VOCABULARY))[order - 1]

    windows = np.random.default_rng(1).integers(0, VOCABULARY, (6, 8))
    got = probabilities(windows)
    for row, column in np.ndindex(*got.shape):
        history = windows[row, max(0, column + 2 - order) : column + 1].tolist()
        expected = slow_probability(*tokens, windows[row, column + 1], history)
        assert got[row, column] == pytest.approx(expected, rel=1e-12)
    for history in ([0, 1], [11, 3], [0, 11]):  # 11 is never seen
        every = np.array([[*history, word] for word in range(VOCABULARY)])
        assert probabilities(every)[:, -1].sum() == pytest.approx(1, abs=1e-12)

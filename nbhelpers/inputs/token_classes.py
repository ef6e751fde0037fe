"""What kind of token each is that a model predicts, for losses by class."""

import itertools
from importlib import resources

import numpy as np

from nbhelpers.arguments import checked

_WORDS = resources.files("nbhelpers.data") / "text" / "function_words.txt"
FUNCTION_WORDS = frozenset(_WORDS.read_text(encoding="utf-8").split())
STARTS = ("Ġ", "▁")  # how pieces of byte-level and SentencePiece vocabularies begin a word
CLASSES = ("function word", "content word", "word continuation", "repeated bigram", "sentence start")
THIRDS = ("first third", "middle third", "last third")


@checked
def token_classes(tokenizer, token_ids):
    """Return which tokens after the first are of each class, {class: (sequence, position − 1) bool}.

    Words are of letters: a continuation begins neither with a space nor after anything but a letter, a
    function word is one whole token of :data:`FUNCTION_WORDS`, other beginnings of words are content words.
    A bigram is repeated if the sequence had it before. The token after `.`, `!` or `?` starts a sentence.
    Thirds are of the positions. A token may be of several classes, or of none but its third.
    """
    n_sequences, length = token_ids.shape
    found = {name: np.zeros((n_sequences, length - 1), bool) for name in ("all", *CLASSES, *THIRDS)}
    for row, ids in enumerate(token_ids.tolist()):
        pieces = tokenizer.convert_ids_to_tokens(ids)
        bare = [piece.lstrip("".join(STARTS)) for piece in pieces]
        goes_on = [False]  # a word of the piece before
        goes_on += [
            not piece.startswith(STARTS) and piece[:1].isalpha() and before[-1:].isalpha()
            for before, piece in itertools.pairwise(pieces)
        ]
        seen = set()
        for at in range(1, length):
            bigram, whole = (ids[at - 1], ids[at]), at + 1 == length or not goes_on[at + 1]
            word, function = bare[at].isalpha(), whole and bare[at].lower() in FUNCTION_WORDS
            kinds = {
                "all": True,
                "word continuation": goes_on[at],
                "function word": word and not goes_on[at] and function,
                "content word": word and not goes_on[at] and not function,
                "repeated bigram": bigram in seen,
                "sentence start": any(mark in pieces[at - 1] for mark in ".!?"),
                THIRDS[3 * (at - 1) // (length - 1)]: True,
            }
            seen.add(bigram)
            for name, holds in kinds.items():
                found[name][row, at - 1] = holds
    return found

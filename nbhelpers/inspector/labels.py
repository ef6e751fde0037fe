"""Tokens as short labels that a figure's font can draw."""

import functools

from matplotlib import font_manager, ft2font

MOST_LABELS = 32  # tokens that can be named along an axis
LONGEST_LABEL = 12  # characters of a token
MISSING, NEW_LINE, SPACE, EMPTY = "\u25a1", "\u21b5", "\u00b7", "\u2205"


def readable(token):
    """Return a token as a label: visible blanks, a box for what the font lacks, at most 12 characters.

    Parameters
    ----------
    token : str

    Returns
    -------
    str
    """
    known = _characters()
    text = token.replace("\n", NEW_LINE).replace("\t", " ").replace(" ", SPACE) or EMPTY
    text = "".join(character if ord(character) in known else MISSING for character in text)
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"


@functools.cache
def _characters():
    """Return the code points that the font of the figures can draw."""
    return frozenset(ft2font.FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())

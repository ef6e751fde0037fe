"""Attention that learned nothing: ``from nbhelpers import nulls``, then ``nulls.uniform(profiles)``.

The null models are here and listed in ``nulls.NULLS``; `surrogates` holds the signals they are made of,
`controls` the untrained models and shuffled texts that a model is shown beside, and `summary` a table in one
row per metric beside uniform attention.
"""

from .models import *  # noqa: F403
from .models import __all__ as __all__

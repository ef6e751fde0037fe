"""Attention that learned nothing: ``from nbhelpers import nulls``, then ``nulls.uniform(profiles)``.

The null models are listed in ``nulls.NULLS``; `controls` holds what a model is shown beside.
"""

from .models import *  # noqa: F403
from .models import __all__ as __all__

"""Every defensible reading at once: a number under each specification of a grid, for a model and its nulls.

The method is the specification curve of Simonsohn, Simmons & Nelson (Nature Human Behaviour 4, 2020).
"""

from .curve import (  # noqa: F401
    distinct,
    joint_inference,
    load_choices,
    observe_variants,
    shapley_shares,
    specification_curve,
)
from .pipeline import search_readings, sensitivities_by_length, untrained_pythia  # noqa: F401
from .worlds import claims_hold, curve_figure, explore, measure_worlds, slug, write_worlds  # noqa: F401

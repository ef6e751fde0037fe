"""Every defensible reading at once: a number under each specification of a grid, for a model and its nulls.

The method is the specification curve of Simonsohn, Simmons & Nelson (Nature Human Behaviour 4, 2020).
"""

from .curve import (
    distinct,
    joint_inference,
    load_choices,
    map_variants,
    observe_variants,
    shapley_shares,
    specification_curve,
)
from .pipeline import search_readings, sensitivities_by_length, untrained_pythia
from .worlds import Worlds, claims_hold, curve_figure, explore, measure_worlds, slug, write_worlds

__all__ = [
    "Worlds", "claims_hold", "curve_figure", "distinct", "explore", "joint_inference", "load_choices",
    "map_variants", "measure_worlds", "observe_variants", "search_readings", "sensitivities_by_length",
    "shapley_shares", "slug", "specification_curve", "untrained_pythia", "write_worlds",
]  # fmt: skip

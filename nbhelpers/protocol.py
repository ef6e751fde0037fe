"""Every decision that turns an attention matrix into a number, to be read, hashed and changed: a `Protocol`.

:data:`PAPER` is the literal reading of arXiv:2410.18067, which leaves most of them open.
"""

import csv
import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise

from nbhelpers.arguments import OPTIONS, WAVELETS, checked, log_base, one_of, several, share, whole

SIGNALS = OPTIONS["signal"][:3]  # what is kept of attention and can be measured again
BANDS = ("low_band", "mid_band", "high_band")

# For each field: what the paper says or leaves open, and why PAPER fills it as it does.
with resources.files("nbhelpers.data").joinpath("protocol.csv").open(encoding="utf-8") as file:
    REASONS = {field: said for field, *said in list(csv.reader(file))[1:]}


def _count(low):
    """Return the rule of a whole number that may come as 16.0, so that equal choices have one hash."""
    return lambda name, n: whole(low)(name, int(n) if isinstance(n, float) and n.is_integer() else n)


@checked(
    **{name: one_of(*options) for name, options in OPTIONS.items()},
    wavelet=one_of(*WAVELETS),
    edges=several(share, rising=True),
    factors=several(share),
    log_base=log_base,
    local_distance=_count(1),
    entropy_windows=several(_count(2)),
)
@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Choices that turn attention into numbers; immutable, comparable, hashable.

    `signal` is what is analysed of a head: ``key_profile`` (mean attention each key receives, over queries),
    ``last_query`` (the last row), ``lag_profile`` (mean attention at each distance) or ``rows`` (every row
    while attention streams by, metrics averaged over rows). `sink` keeps key 0, or removes it and divides the
    signal by what remains. `detrend`, `window`, `pad`, `sided` and `dc` are as in
    :func:`nbhelpers.kernels.spectra.psd`, `wavelet` and `mode` as in
    :func:`nbhelpers.kernels.wavelets.wavedec`, `alignment` of unequal lengths as in
    :func:`nbhelpers.kernels.wavelets.align`. `edges` of bands are fractions of the Nyquist frequency (eq. 2),
    `log_base` that of all entropies, natural if None. `level` is the deepest that the shortest scaled variant
    allows, or each signal's own. `order` ``metric then mean`` keeps one number per sequence, ``mean then
    metric`` averages the signals over sequences first. `factors` are the alphas of eq. 10, `scaled_variant`
    how x_alpha is drawn from x. Keys at most `local_distance` tokens from the query count as local (Fig. 1);
    `entropy_windows` are in tokens (Table 2).
    """

    signal: str = "key_profile"
    sink: str = "keep"
    detrend: str = "none"
    window: str = "hann"
    pad: int | str = 1
    sided: str = "one"
    dc: str = "keep"
    edges: tuple[float, ...] = (0.25, 0.75)
    log_base: float | None = None
    wavelet: str = "db2"
    mode: str = "symmetric"
    level: str = "shortest"
    order: str = "metric then mean"
    factors: tuple[float, ...] = (0.5, 0.25)
    scaled_variant: str = "prefix"
    alignment: str = "concatenate-truncate"
    local_distance: int = 16
    entropy_windows: tuple[int, ...] = (16, 32, 64)

    @property
    def entropy_unit(self):
        """Unit of entropies, by the base of their logarithm."""
        return {None: "nats", math.e: "nats", 2.0: "bits"}.get(self.log_base, f"base {self.log_base}")

    def replace(self, **changes):
        """Return a copy with some fields changed; unknown fields raise ``TypeError``."""
        return dataclasses.replace(self, **changes)

    def to_dict(self):
        """Return the fields as plain JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def hash(self):
        """Twelve digits that change when any field does; `dc` counts where not "keep", as in old records."""
        told = {name: value for name, value in self.to_dict().items() if (name, value) != ("dc", "keep")}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def spectrum_options(self):
        """The keyword arguments of :func:`nbhelpers.kernels.spectra.psd`."""
        return {name: getattr(self, name) for name in ("window", "pad", "detrend", "sided", "dc")}

    @property
    def band_names(self):
        """Names of the bands between the edges: low, mid and high for three, else their limits."""
        if len(self.edges) == 2:
            return list(BANDS)
        return [f"band_{low:g}_{high:g}" for low, high in pairwise([0.0, *self.edges, 1.0])]

    @checked
    def shortest(self, length):
        """Return the length that sets the wavelet level: the shortest variant's, or `length` itself."""
        if self.level == "own" or not self.factors:
            return length
        # 0.7 * 90 is 62.99999999999999 in floating point.
        return max(1, int(min(self.factors) * length + 1e-9))

    def explain(self):
        """Return rows (field, value, what the paper says, why PAPER's value), ready for a table."""
        literal, (said, why) = PAPER.to_dict(), ("the paper", "the literal choice, and why")
        rows = zip(self.to_dict().items(), REASONS.values(), strict=True)
        return [{"field": f, "value": v, said: s, why: f"{literal[f]}: {r}"} for (f, v), (s, r) in rows]


PAPER = Protocol()

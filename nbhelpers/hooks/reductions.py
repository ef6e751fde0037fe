"""What is kept of attention while it streams by: one small array per head instead of the matrix."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import torch

from nbhelpers.arguments import one_of, several
from nbhelpers.kernels import rows, spectra, wavelets
from nbhelpers.kernels.checks import log_base
from nbhelpers.profiles import sum_over_second_half
from nbhelpers.protocol import PAPER

EARLY = 8  # positions at the start of a text that means over scores, queries and keys leave out
LEAST_SCORE = -3e4  # what is below is masked: -65504 where the mask is float16


@dataclass(frozen=True)
class Layout:
    """The shape of the attention of one layer for one batch, and the device it lies on."""

    batch: int
    n_heads: int
    n_queries: int
    n_keys: int
    causal: bool
    device: torch.device
    last_query: tuple  # per sequence, the index of its last query that is not padding
    n_real: torch.Tensor  # and how many such queries there are
    weight: torch.Tensor | None = None  # (batch, query), 1 for these and 0 for padding; None without padding

    def zeros(self, *shape):
        """Return float32 zeros, of shape (batch, head) and then `shape`."""
        return torch.zeros(self.batch, self.n_heads, *shape, device=self.device)


@dataclass(frozen=True)
class Block:
    """Consecutive query rows of a layer's attention."""

    attn: torch.Tensor  # float32, (batch, head, row, key); keys beyond the last column have exactly zero
    scores: torch.Tensor | None  # what the softmax was taken of; None beside sinks or where it is not known
    start: int  # index of the first row among the queries
    weight: torch.Tensor | None  # (batch, row), 1 for real queries, 0 for padding; None without padding

    @property
    def n_rows(self):
        """Number of query rows in the block."""
        return self.attn.shape[-2]

    def row_sum(self, values):
        """Sum (batch, head, row, ...) over the real rows."""
        if self.weight is None:
            return values.sum(2)
        weight = self.weight[:, None, :].reshape(len(self.weight), 1, -1, *[1] * (values.ndim - 3))
        return (values * weight).sum(2)

    @cached_property
    def entropies(self):
        """Positional entropy of each row in nats, (batch, head, row) (eq. 6)."""
        if self.scores is None:
            return -torch.xlogy(self.attn, self.attn).sum(-1)
        # log p = s − log Z, so H = log Z − Σ p s: no logarithm per entry. The largest entry tells log Z.
        log_z = self.scores.amax(-1) - self.attn.amax(-1).log()  # (batch, head, row)
        return log_z - torch.linalg.vecdot(self.attn, self.scores)


class Reduction:
    """What becomes of a layer's attention, block after block; by default a mean over the real queries."""

    name: str
    axis: str | None = None

    def coordinates(self, layout):
        """Return what the positions of the own axis mean."""
        return []

    def start(self, layout):
        """Return the state for a layer: a tensor (batch, head, ...), or any object."""
        return layout.zeros(*([len(self.coordinates(layout))] if self.axis else []))

    def update(self, state, block, layout):
        """Add a block to the state, in place."""
        raise NotImplementedError

    def finish(self, state, layout):
        """Return the array (batch, head, *own axis*)."""
        return state / layout.n_real.view(-1, *[1] * (state.ndim - 1))


REDUCTIONS = {}


def register_reduction(cls):
    """Make a :class:`Reduction` subclass available to ``capture`` by its name (a class decorator)."""
    REDUCTIONS[cls.name] = cls
    return cls


def resolve(reductions):
    """Return reduction objects for names, classes' instances or None (the key profile)."""
    reductions = ["key_profile"] if reductions is None else reductions
    reductions = [reductions] if isinstance(reductions, (str, Reduction)) else reductions
    named = one_of(*sorted(REDUCTIONS))
    rule = several(lambda at, r: r if isinstance(r, Reduction) else REDUCTIONS[named(at, r)](), least=1)
    made = rule("reductions", reductions)
    if len({reduction.name for reduction in made}) < len(made):
        raise ValueError(f"A reduction was asked for twice: {[reduction.name for reduction in made]}.")
    return made


@register_reduction
class KeyProfile(Reduction):
    """Mean attention that each key receives, over the real queries: sums to 1 over keys."""

    name, axis = "key_profile", "key"

    def coordinates(self, layout):
        return list(range(layout.n_keys))

    def update(self, state, block, layout):
        state[..., : block.attn.shape[-1]] += block.row_sum(block.attn)


@register_reduction
class LastQuery(KeyProfile):
    """The attention of the last real query."""

    name = "last_query"

    def update(self, state, block, layout):
        for entry, last in enumerate(layout.last_query):
            if block.start <= last < block.start + block.n_rows:
                state[entry, :, : block.attn.shape[-1]] = block.attn[entry, :, last - block.start]

    def finish(self, state, layout):
        return state


@register_reduction
class LagProfile(Reduction):
    """Mean attention at each distance query − key, negative too if not causal, over the real queries."""

    name, axis = "lag_profile", "lag"

    def coordinates(self, layout):
        return list(range(0 if layout.causal else 1 - layout.n_keys, layout.n_keys))

    def start(self, layout):
        if layout.n_queries != layout.n_keys:
            needs = f"{self.name} needs queries and keys of one sequence"
            has = f"this attention has {layout.n_queries} queries and {layout.n_keys} keys (cross-attention)"
            raise ValueError(f"{needs}; {has}. Ask for key_profile or last_query.")
        # Index m of the state holds key − query = m − (n − 1).
        return layout.zeros(layout.n_keys if layout.causal else 2 * layout.n_keys - 1)

    def update(self, state, block, layout):
        attn = block.attn if block.weight is None else block.attn * block.weight[:, None, :, None]
        rows = attn.shape[2]
        attn = attn[..., : block.start + rows] if layout.causal else attn  # the rest is 0
        zero = layout.n_keys - 1 - block.start  # index of key − row = 0
        # Diagonals that meet every row line up without a copy when rows stand one element further apart.
        shape, strides = (*attn.shape[:3], attn.shape[3] - rows + 1), list(attn.stride())
        strides[2] += 1
        end = zero + shape[3]
        state[..., zero:end] += attn.as_strided(shape, strides, attn.storage_offset()).sum(2)
        corner = rows - 1  # as many begin below the first row, and as many end above the last
        state[..., zero - corner : zero] += _diagonals_below(attn[..., :corner])
        if not layout.causal:
            state[..., end : end + corner] += _diagonals_below(attn[..., shape[3] :].flip(2, 3)).flip(-1)

    def finish(self, state, layout):
        return super().finish(state, layout).flip(-1)


def _diagonals_below(corner):
    """Return the sums along the diagonals under the main one, (batch, head, key), lowest first; the corner
    is (batch, head, row, key) with one key less than rows."""
    batch, heads, rows, n = corner.shape
    padded = torch.nn.functional.pad(corner, (n, 0))  # (batch, head, row, n zeros + key)
    strides = (heads * rows * 2 * n, rows * 2 * n, 2 * n + 1, 1)
    return padded.as_strided((batch, heads, rows, n), strides).sum(2)


@register_reduction
class LocalMass(LagProfile):
    """Mean attention to keys at most `distance` tokens away (0, powers of two, those asked for; Fig. 1)."""

    name, axis = "local_mass", "distance"

    def __init__(self, distances=(16,)):
        self.distances = tuple(distances)

    def coordinates(self, layout):
        powers = [2**k for k in range(layout.n_keys.bit_length()) if 2**k < layout.n_keys]
        return sorted({0, *powers, *self.distances})

    def finish(self, state, layout):
        lags = super().finish(state, layout)  # (batch, head, lag)
        centre = 0 if layout.causal else layout.n_keys - 1
        reach = [lags[..., max(0, centre - d) : centre + d + 1].sum(-1) for d in self.coordinates(layout)]
        return torch.stack(reach, -1)


@register_reduction
class StationaryProfile(LagProfile):
    """Mean attention at each distance back, 0 to n // 2 − 1, over the real queries of the last n // 2.

    All of these queries see all of these distances, and none of them is key 0: neither the mask nor the first
    token is in it. It sums to less than 1. Zeros where padding leaves no query.
    """

    name, axis = "stationary_profile", "lag back"

    def coordinates(self, layout):
        return list(range(layout.n_keys // 2))

    def start(self, layout):
        super().start(layout)  # which refuses cross-attention
        return layout.zeros(layout.n_keys // 2)

    def update(self, state, block, layout):
        weight = None if block.weight is None else block.weight[:, None, :, None]  # (batch, 1, row, 1)
        state += sum_over_second_half(block.attn, layout.n_keys, block.start, weight)

    def finish(self, state, layout):
        n = layout.n_keys
        if layout.weight is None:
            return state / max(n // 2, 1)
        return state / layout.weight[:, n - n // 2 :].sum(-1).clamp_min(1)[:, None, None]


class OfPrefix(Reduction):
    """A reduction of the first `length` tokens alone, in causal attention without padding."""

    def __init__(self, reduction, length):
        self.reduction, self.length = reduction, length

    name = property(lambda self: f"{self.reduction.name} of {self.length}")
    axis = property(lambda self: self.reduction.axis)

    def _own(self, layout):
        if not layout.causal or layout.weight is not None:
            needs = "needs causal attention without padding; capture the prefix."
            raise ValueError(f"{self.name} tokens {needs}")
        n, last = self.length, (self.length - 1,) * layout.batch
        n_real = torch.full_like(layout.n_real, n)
        return dataclasses.replace(layout, n_queries=n, n_keys=n, last_query=last, n_real=n_real)

    def coordinates(self, layout):
        return self.reduction.coordinates(self._own(layout))

    def start(self, layout):
        return self.reduction.start(self._own(layout))

    def update(self, state, block, layout):
        rows = self.length - block.start
        if rows > 0:
            both = block.attn, block.scores
            attn, scores = (None if x is None else x[..., :rows, : self.length] for x in both)
            self.reduction.update(state, Block(attn, scores, block.start, None), self._own(layout))

    def finish(self, state, layout):
        return self.reduction.finish(state, self._own(layout))


@register_reduction
class LagLogits(LagProfile):
    """Mean score before the softmax at each distance, over real queries and the keys that they see.

    Key 0 and the first :data:`EARLY` queries are left out, since the first token is like no other. NaN where
    no pair is left, and where scores are not known (the module route, learned sinks).
    """

    name = "lag_logits"

    def start(self, layout):
        return [super(LagLogits, self).start(layout) for _ in range(2)]

    def update(self, state, block, layout):
        for own, values in zip(state, counted_scores(block), strict=False):
            super().update(own, dataclasses.replace(block, attn=values), layout)

    def finish(self, state, layout):
        total, count = (super(LagLogits, self).finish(own, layout) for own in state)
        return total / count.where(count > 0, torch.nan)


def counted_scores(block):
    """Return the scores that `LagLogits` takes, 0 for others, and where they are, (batch, head, row, key)."""
    if block.scores is None:
        return ()
    seen = block.scores > LEAST_SCORE
    seen[..., 0] = False
    seen[:, :, : max(0, EARLY - block.start)] = False
    return block.scores.where(seen, 0.0), seen.float()


@register_reduction
class LogitVariance(Reduction):
    """Variance of the scores before the softmax over the pairs that `LagLogits` takes; NaN where it is."""

    name = "logit_variance"

    def start(self, layout):
        return layout.zeros(3).double()

    def update(self, state, block, layout):
        if block.scores is not None:
            score, one = counted_scores(block)
            state += block.row_sum(torch.stack([one.sum(-1), score.sum(-1), (score**2).sum(-1)], -1))

    def finish(self, state, layout):
        count, total, squares = state.unbind(-1)
        return (squares / count - (total / count) ** 2).float()  # 0 / 0 is NaN


@register_reduction
class RowEntropy(Reduction):
    """Mean positional entropy of the real rows, in nats (eq. 6)."""

    name = "row_entropy"

    def update(self, state, block, layout):
        state += block.row_sum(block.entropies)


@register_reduction
class RowMetrics(Reduction):
    """Means over the real rows of the metrics of each row (eqs. 2, 3, 5 to 9) under a protocol.

    A row is a signal of n_keys samples, zero for keys that a causal row cannot see. Spectral metrics leave
    out rows without any power (under a Hann window, a row that sees only key 0).
    """

    name, axis = "row_metrics", "metric"

    def __init__(self, protocol=PAPER):
        self.protocol = protocol

    def length(self, layout):
        """Return the samples of a row: the keys, without key 0 if the protocol drops the sink."""
        return layout.n_keys - (self.protocol.sink != "keep")

    def level(self, layout):
        """Return the wavelet level: what the shortest scaled variant, or the row itself, allows."""
        return wavelets.dwt_max_level(self.protocol.shortest(self.length(layout)), self.protocol.wavelet)

    def coordinates(self, layout):
        spectral = ["spectral_entropy", "frequency_selectivity", *self.protocol.band_names]
        levels = [f"wavelet_entropy_{name}" for name in wavelets.level_names(self.level(layout))]
        return [*spectral, "positional_entropy", *levels, "position_spectrum_correlation"]

    def start(self, layout):
        protocol = self.protocol
        frequency = spectra.frequencies(self.length(layout), pad=protocol.pad, sided=protocol.sided)
        return {
            "bands": rows.band_runs(frequency, protocol.edges),
            "spectral": layout.zeros(3 + len(protocol.edges)),
            "entropy": layout.zeros(),
            "wavelet": layout.zeros(self.level(layout) + 1),
            "moments": layout.zeros(6).double(),  # count, x, y, xx, yy, xy over the rows with power
        }

    def update(self, state, block, layout):
        protocol, length = self.protocol, self.length(layout)
        if protocol.sink == "keep":
            signal, entropies = block.attn, block.entropies  # without trailing zeros, (batch, head, row, key)
        else:  # the first row may have no key left
            signal = rows.drop_sink(block.attn)
            entropies = -torch.xlogy(signal, signal).sum(-1)
        # The metrics do not see the scale of a row, (batch, head, row, freq).
        spectrum = rows.row_psd(signal, length, relative=True, **protocol.spectrum_options)
        metrics, valid = rows.row_spectral_metrics(spectrum, state["bands"], base=protocol.log_base)
        x = entropies / log_base(protocol.log_base)  # (batch, head, row)
        options = {"wavelet": protocol.wavelet, "mode": protocol.mode, "base": protocol.log_base}
        coefficients = rows.row_wavelet_entropies(signal, length, level=self.level(layout), **options)
        xd, y = x.double(), metrics[..., 0].double()
        moments = torch.stack([torch.ones_like(y), xd, y, xd * xd, y * y, xd * y], -1) * valid[..., None]
        state["spectral"] += block.row_sum(metrics)
        state["entropy"] += block.row_sum(x)
        state["wavelet"] += block.row_sum(coefficients)
        state["moments"] += block.row_sum(moments)

    def finish(self, state, layout):
        count, x, y, xx, yy, xy = state["moments"].unbind(-1)  # (batch, head) each
        correlation = (count * xy - x * y) / ((count * xx - x * x) * (count * yy - y * y)).sqrt()
        spectral = state["spectral"] / count[..., None]
        others = torch.cat([state["entropy"][..., None], state["wavelet"]], -1) / layout.n_real[:, None, None]
        return torch.cat([spectral, others, correlation[..., None]], -1).float()

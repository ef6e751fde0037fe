"""What the heads of a band are for, and whether it says which can go: the numbers of C15 and C16.

An effect is the loss that is added where the output of heads is replaced by its mean over other passages.
Nothing here runs a model: measured and planted effects are told apart by nothing.
"""

import numpy as np
from scipy.stats import rankdata

from nbhelpers.stats import CORRELATION, pearson, student_interval

CLASSES = ("all", "function word", "word continuation", "sentence start", "repeated bigram")
ROLES = {  # of C15: a band, and the classes of tokens that are to need its heads more than other tokens do
    "C15_syntax": ("high_band", (1, 2)),
    "C15_sentences": ("mid_band", (3,)),
    "C15_discourse": ("low_band", (4,)),
}
PLANTED_ROLES = {  # correlation, over the heads of a layer, of each band with its role; whether C15 holds
    "each band has its role": ((0.6, 0.6, 0.6), True),
    "each band has little but its role": ((0.85, 0.85, 0.85), True),
    "no band has a role": ((0.0, 0.0, 0.0), False),
    "traces of roles": ((0.1, 0.1, 0.1), False),
    "the low band has no role": ((0.7, 0.7, 0.0), False),
    "the opposite roles": ((-0.6, -0.6, -0.6), False),
}
PLANTED_ORDERS = {  # rank correlation of band and of norm with what a head is worth; whether C16 holds
    "the band knows, the norm does not": (0.9, 0.0, True),
    "the band knows more than the norm": (0.85, 0.4, True),
    "neither knows": (0.0, 0.0, False),
    "the band knows a little": (0.15, 0.0, False),
    "the norm knows more": (0.6, 0.95, False),
}


def roles(sums):
    """Return the loss added in the tokens of each role less that in all tokens, (role, condition), nats.

    `sums` are the losses added, (condition, class of :data:`CLASSES`); the last row counts the tokens.
    """
    mean = sums[:-1] / sums[-1]
    of = [sums[:-1, at].sum(-1) / sums[-1, at].sum() for at in (list(own) for _, own in ROLES.values())]
    return np.stack(of) - mean[:, 0]


def measure_roles(shares, heads, groups):
    """Return the Estimates of C15, by name of criterion.

    `shares` are the heads' shares of power, (layer, head) by band; `heads` the sums of :func:`roles` for each
    head alone, (passage, layer · head + 1, class); `groups` those of one head of each layer at a time: of the
    band of each role, then drawn at random. Intervals are over layers, those of groups over passages.
    """
    found = {}
    for (name, (band, _)), role in zip(ROLES.items(), roles(heads.mean(0)), strict=True):
        ranks = [rankdata(each, axis=1) for each in (shares[band], role.reshape(shares[band].shape))]
        r = pearson(*ranks, axis=1)  # (layer,)
        found[name] = student_interval(r[np.isfinite(r)], possible=CORRELATION)
    found["C15_groups"] = student_interval(groups, lambda sums: beyond_random(sums).mean())
    return {name: estimate.widened() for name, estimate in found.items()}


def beyond_random(sums):
    """Return by how many sd of the random groups that of each band loses more in its role, (role,)."""
    n, of = len(ROLES), roles(sums)
    return (of[:, :n].diagonal() - of[:, n:].mean(1)) / of[:, n:].std(1, ddof=1)


def measure_orders(band, norm, drawn):
    """Return the Estimates of C16, by name of criterion, from losses added when heads are removed in order.

    Of bands (order, share, passage) the cheapest order counts; `norm` is (share, passage), `drawn`
    (draw, share, passage). Costs are means over the shares; intervals are over passages.
    """
    band, norm, drawn = (np.asarray(each).mean(-2) for each in (band, norm, drawn))  # (..., passage)
    least = [each[each.mean(1).argmin()] for each in (band, drawn)]
    costs = np.stack([*least, norm, drawn.mean(0)], 1)  # (passage, 4)
    own, luckiest, beside, over = (
        student_interval(costs, of)
        for of in (
            lambda cost: cost[0] / cost[3],
            lambda cost: cost[1] / cost[3],
            lambda cost: (cost[0] - cost[1]) / cost[3],
            lambda cost: (cost[0] - cost[2]) / cost[3],
        )
    )
    return {"C16_random": own.against(luckiest, beside), "C16_norm": over}


def planted_roles(kind, *, n_passages=8, n_layers=30, n_heads=9, n_random=200, noise=1.0, seed=0):
    """Return what :func:`measure_roles` takes, of a kind of :data:`PLANTED_ROLES`.

    Roles have heavy tails, heads differ in worth; `noise` is of one passage, in sd of the roles.
    """
    draw = np.random.default_rng([seed, *kind.encode()])
    shares = draw.dirichlet((6, 3, 2), (n_layers, n_heads))[..., ::-1]  # (layer, head, band): high, mid, low
    spread, rest = (
        (each - each.mean(1, keepdims=True)) / each.std(1, keepdims=True)
        for each in (shares, draw.standard_t(5, shares.shape))
    )
    r = np.array(PLANTED_ROLES[kind][0])
    role, worth = r * spread + np.sqrt(1 - r**2) * rest, draw.lognormal(size=shares.shape[:2])
    members = np.concatenate([shares.argmax(1).T, draw.integers(n_heads, size=(n_random, n_layers))])
    layer, n_tokens = np.arange(n_layers), np.array([1000, 300, 100, 40, 60])

    def sums(role, worth, size):
        mean = worth[:, None] + role[:, [0, 0, 0, 1, 2]] * (np.arange(5) > 0)  # (condition, class)
        scatter = noise * size * draw.normal(size=(n_passages, *mean.shape))
        counts = np.broadcast_to(n_tokens, (n_passages, 1, 5))
        return np.concatenate([(mean + scatter) * n_tokens, counts], 1)

    heads = sums(role.reshape(-1, 3), worth.ravel(), 1.0)
    groups = sums(role[layer, members].sum(1), worth[layer, members].sum(1), n_layers**0.5)
    return (
        dict(zip(("high_band", "mid_band", "low_band"), shares.transpose(2, 0, 1), strict=True)),
        heads,
        groups,
    )


def planted_orders(kind, *, n_passages=8, n_heads=270, n_random=20, noise=0.3, seed=0):
    """Return what :func:`measure_orders` takes, of a kind of :data:`PLANTED_ORDERS`."""
    draw, shares = np.random.default_rng([seed, *kind.encode()]), (0.25, 0.5, 0.75)
    worth = draw.normal(size=n_heads)
    known = [r * worth + np.sqrt(1 - r**2) * draw.normal(size=n_heads) for r in PLANTED_ORDERS[kind][:2]]
    orders = [known[0].argsort(), (-known[0]).argsort(), known[1].argsort()]
    orders += [draw.permutation(n_heads) for _ in range(n_random)]
    cost = np.array(
        [[np.exp(worth[order[: int(s * n_heads)]]).sum() ** 1.5 for s in shares] for order in orders]
    )
    added = cost[..., None] * np.exp(noise * draw.normal(size=(*cost.shape, n_passages)))
    return added[:2], added[2], added[3:]

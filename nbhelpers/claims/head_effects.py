"""What the heads of a band are for, and which can go: C15 and C16, from the loss that mean ablation adds."""

import numpy as np
import pandas as pd
import scipy

from nbhelpers.stats import CORRELATION, pearson, student_interval

CLASSES = ("all", "function word", "word continuation", "sentence start", "repeated bigram")
ROLES = {  # of C15: a band, and the classes of tokens that are to need its heads more than other tokens do
    "C15_syntax": ("high_band", (1, 2)),
    "C15_sentences": ("mid_band", (3,)),
    "C15_discourse": ("low_band", (4,)),
}
SHARES = (0.25, 0.5, 0.75)  # of the heads, removed in order


def effect_sums(table, classes):
    """Return the nats of a table of `measure_changes`, (passage, change, class); the last change: tokens."""
    names, n_passages = table.name.unique(), table.passage.nunique()
    wanted = pd.MultiIndex.from_product([range(n_passages), names, classes])
    known = table.set_index(["passage", "name", "class"]).loc[wanted]
    nats, n = (known[of].to_numpy(float).reshape(n_passages, -1, len(classes)) for of in ("nats", "tokens"))
    return np.concatenate([nats, n[:, :1]], 1)


def order_losses(table):
    """Return the loss that orders of heads add, (order, share of :data:`SHARES`, passage), nats."""
    sums = effect_sums(table, ["all"])[..., 0]  # (passage, change + 1)
    return (sums[:, :-1] / sums[:, -1:]).T.reshape(-1, len(SHARES), len(sums))


def measure_effects(heads, groups, orders):
    """Return the Estimates of C15 and C16, by criterion, from tables of `measure_changes` and facts."""
    shares = {band: np.array(heads[1]["bands"][band]) for band, _ in ROLES.values()}  # (layer, head) each
    loss = order_losses(orders[0])
    of_roles = measure_roles(shares, *(effect_sums(table, CLASSES) for table, _ in (heads, groups)))
    return of_roles | measure_orders(loss[:2], loss[2], loss[3:])


def roles(sums):
    """Return the loss added in each role's tokens less that in all, of sums (condition + tokens, class)."""
    of = [sums[:-1, at].sum(-1) / sums[-1, at].sum() for at in (list(own) for _, own in ROLES.values())]
    return np.stack(of) - sums[:-1, 0] / sums[-1, 0]


def measure_roles(shares, heads, groups):
    """Return the Estimates of C15, by name of criterion; intervals are over layers, of groups over passages.

    `shares` are those of power, (layer, head) by band; `heads` the sums of :func:`roles` for each head alone,
    (passage, layer · head + 1, class); `groups` those of one head a layer: of a role's band, or random.
    """
    found = {}
    for (name, (band, _)), role in zip(ROLES.items(), roles(heads.mean(0)), strict=True):
        both = shares[band], role.reshape(shares[band].shape)
        ranks = [scipy.stats.rankdata(each, axis=1) for each in both]
        r = pearson(*ranks, axis=1)  # (layer,)
        found[name] = student_interval(r[np.isfinite(r)], possible=CORRELATION)
    found["C15_groups"] = student_interval(groups, lambda sums: beyond_random(sums).mean())
    return {name: estimate.widened() for name, estimate in found.items()}


def beyond_random(sums):
    """Return by how many sd of the random groups that of each band loses more in its role, (role,)."""
    n, of = len(ROLES), roles(sums)
    return (of[:, :n].diagonal() - of[:, n:].mean(1)) / of[:, n:].std(1, ddof=1)


def measure_orders(band, norm, drawn):
    """Return Estimates of C16 from losses (order or draw, share, passage); the cheapest band counts."""
    band, norm, drawn = (np.asarray(each).mean(-2) for each in (band, norm, drawn))  # (..., passage)
    least = [each[each.mean(1).argmin()] for each in (band, drawn)]
    costs = np.stack([*least, norm, drawn.mean(0)], 1)  # (passage, 4)
    weights = np.array([[1, 0, 0], [0, 1, 0], [1, -1, 0], [1, 0, -1]])
    ratios = student_interval(costs, lambda cost: weights @ cost[:3] / cost[3])
    ends = zip(*ratios[:3], strict=True)
    own, luckiest, beside, over = (ratios._replace(value=v, low=a, high=b) for v, a, b in ends)
    return {"C16_random": own.against(luckiest, beside), "C16_norm": over}

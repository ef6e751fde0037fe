import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from nbhelpers.claims import head_effects as he


def slow_role(sums, condition, classes):
    lost, n = sum(sums[condition, k] for k in classes), sum(sums[-1, k] for k in classes)
    return lost / n - sums[condition, 0] / sums[-1, 0]


def test_numbers_of_c15_are_those_of_a_slow_loop():
    draw, n_tokens = np.random.default_rng(3), [[50.0, 20, 9, 3, 7]]
    shares = {band: draw.random((4, 5)) for band, _ in he.ROLES.values()}
    heads, groups = (np.stack([[*draw.random((n, 5)), *n_tokens] for _ in range(3)]) for n in (20, 12))
    found, gains = he.measure_roles(shares, heads, groups), []
    for at, (name, (band, classes)) in enumerate(he.ROLES.items()):
        roles = [[slow_role(heads.sum(0), 5 * la + h, classes) for h in range(5)] for la in range(4)]
        r = [spearmanr(shares[band][la], roles[la]).statistic for la in range(4)]
        assert found[name].value == pytest.approx(np.mean(r))
        assert (found[name].n, found[name].low < np.mean(r) < found[name].high) == (4, True)
        own, *drawn = (slow_role(groups.sum(0), g, classes) for g in (at, *range(3, 12)))
        gains.append((own - np.mean(drawn)) / np.std(drawn, ddof=1))
    assert found["C15_groups"].value == pytest.approx(np.mean(gains))


def test_numbers_of_c16_are_ratios_of_means_over_shares_and_passages():
    band = [[[3.0, 5.0], [5.0, 7.0]], [[1.0, 2.0], [3.0, 2.0]]]  # (order, share, passage): mean 5 and 2
    norm, drawn = [[1.0, 1.0], [1.0, 1.0]], [[[2.0, 4.0], [3.0, 3.0]], [[5.0, 5.0], [5.0, 5.0]]]
    found = he.measure_orders(*(np.repeat(each, 2, -1) for each in (band, norm, drawn)))
    assert found["C16_random"].value == 2 / 4
    assert (found["C16_random"].null, found["C16_random"].gap.value) == (3 / 4, -1 / 4)
    assert found["C16_norm"].value == (2 - 1) / 4


def test_losses_of_orders_are_nats_over_tokens_of_each_order_share_and_passage():
    names = [f"{order} {share}" for order in ("rising", "falling", "norm") for share in he.SHARES]
    rows = [(name, "all", p, 10 + p, 100 * at + p) for at, name in enumerate(names) for p in (0, 1)]
    table = pd.DataFrame(rows, columns=["name", "class", "passage", "tokens", "nats"])
    loss = he.order_losses(
        table.sample(frac=1, random_state=0).sort_values("name", key=lambda n: n.map(names.index))
    )
    assert loss.shape == (3, 3, 2)
    assert loss[1, 2, 1] == (100 * names.index("falling 0.75") + 1) / 11

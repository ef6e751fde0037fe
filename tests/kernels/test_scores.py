import numpy as np
import pytest
import torch

from nbhelpers.kernels.scores import read_by_rule

PREVIOUS, DUPLICATE, INDUCTION = range(3)


def slowly(attn, ids, rule):
    found = []
    for query in range(len(attn)):
        earlier = [key for key in range(query) if ids[key] == ids[query]]
        if rule == PREVIOUS:
            keys = [query - 1] if query else []
        else:
            keys = earlier if rule == DUPLICATE else [key + 1 for key in earlier]
        if keys:
            found.append(sum(attn[query][key] for key in keys))
    return np.mean(found) if found else np.nan


@pytest.mark.parametrize("n_queries", [30, 12])
def test_scores_equal_a_slow_loop(n_queries):
    generator = np.random.default_rng(1)
    ids = generator.integers(0, 7, 30)
    attn = np.tril(generator.uniform(size=(2, 3, 30, 30)))[..., :n_queries, :n_queries]
    got = read_by_rule(torch.tensor(attn), torch.tensor(ids)[None])
    assert got.shape == (2, 3, 3)
    for layer, head, rule in np.ndindex(got.shape):
        assert float(got[layer, head, rule]) == pytest.approx(slowly(attn[layer, head], ids, rule), rel=1e-12)


def test_planted_heads_have_their_score_and_no_other():
    ids, attn = torch.tensor([[3, 5, 3]]), torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.25, 0.5, 0.25]])
    assert read_by_rule(attn, ids).tolist() == [0.5, 0.25, 0.5]
    period, n = 20, 40
    ids = torch.cat([torch.arange(period)] * 2)[None]
    rows = torch.arange(n)
    heads = torch.zeros(3, n, n)
    heads[PREVIOUS, rows, (rows - 1).clamp_min(0)] = 1
    heads[DUPLICATE, rows, (rows - period).clamp_min(0)] = 1
    heads[INDUCTION, rows, (rows - period + 1).clamp_min(0)] = 1  # what copies a repeated passage
    assert (read_by_rule(heads, ids).round() == torch.eye(3)).all()
    assert read_by_rule(heads, ids).diagonal().tolist() == [1, 1, 1]
    assert torch.isnan(read_by_rule(heads, torch.arange(n)[None])[:, 1:]).all(), "no token comes twice"

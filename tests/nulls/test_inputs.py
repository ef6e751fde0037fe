import pytest
import torch

from nbhelpers.nulls import nulls


def attention(*shape, causal, seed=0):
    z = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if causal:
        z = z.masked_fill(torch.ones(shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return z.softmax(-1)


@pytest.mark.parametrize("causal", [True, False])
def test_permuted_rows_keep_their_values_within_what_the_query_sees(causal):
    attn = attention(3, 2, 12, 12, causal=causal)
    before = attn.clone()
    made = nulls.permute_rows(attn, causal=causal, seed=1)
    for i in range(12):
        seen = i + 1 if causal else 12
        kept = made[..., i, :seen].sort(-1).values
        assert torch.equal(kept, attn[..., i, :seen].sort(-1).values)
        assert not made[..., i, seen:].any()
    assert (made != attn).float().mean() > (0.35 if causal else 0.8)
    assert torch.equal(attn, before)
    assert torch.equal(made, nulls.permute_rows(attn, causal=causal, seed=1))
    assert not torch.equal(made, nulls.permute_rows(attn, causal=causal, seed=2))


def test_permuted_rows_leave_no_trace_of_position():
    attn = torch.zeros(3000, 6, 6)
    attn[..., 0] = 1  # everything on the sink
    mean = nulls.permute_rows(attn, causal=True, seed=0).mean(0)
    expected = torch.ones(6, 6).tril() / torch.arange(1.0, 7.0)[:, None]
    assert (mean - expected).abs().max() < 0.04


def test_a_bidirectional_matrix_is_refused_as_causal():
    attn = attention(5, 5, causal=False)
    with pytest.raises(ValueError, match="attend to later keys; pass causal=False"):
        nulls.permute_rows(attn, causal=True)
    with pytest.raises(ValueError, match=r"shape \(4, 5\)"):
        nulls.permute_rows(attn[:4], causal=False)
    with pytest.raises(ValueError, match="sum to 1"):
        nulls.permute_rows(2 * attn, causal=False)


def test_random_weights_makes_and_lets_go_one_model_after_another():
    alive, most = set(), []

    class Model:
        def __init__(self, seed):
            self.seed = seed
            alive.add(id(self))
            most.append(len(alive))

        def __del__(self):
            alive.discard(id(self))

    assert nulls.random_weights(Model, lambda model: 10 * model.seed, seeds=range(3)) == [0, 10, 20]
    assert max(most) == 1
    for seeds in ([], [1, 1]):
        with pytest.raises(ValueError, match="one or more different seeds"):
            nulls.random_weights(Model, id, seeds=seeds)


@pytest.fixture
def ids():
    """Sequences with 0 and 1 as special tokens at both ends and one inside."""
    ids = torch.arange(2, 22).repeat(3, 1)
    ids[:, 0], ids[:, -1], ids[1, 7] = 0, 1, 1
    return ids


def test_shuffled_tokens_are_the_same_tokens(ids):
    before = ids.clone()
    made = nulls.shuffled_tokens(ids, seed=0, keep=[0, 1])
    assert torch.equal(made.sort(-1).values, ids.sort(-1).values)
    special = (ids == 0) | (ids == 1)
    assert torch.equal(made[special], ids[special])
    assert (made[~special] != ids[~special]).float().mean() > 0.8
    assert not torch.equal(made[0], made[2]), "every sequence is shuffled in its own way"
    assert torch.equal(ids, before)
    assert torch.equal(made, nulls.shuffled_tokens(ids, seed=0, keep=[0, 1]))
    assert not torch.equal(made, nulls.shuffled_tokens(ids, seed=1, keep=[0, 1]))
    assert (nulls.shuffled_tokens(ids, seed=0) != ids)[:, 0].any(), "without keep nothing stays"


def test_random_tokens_are_drawn_evenly_from_the_rest(ids):
    made = nulls.random_tokens(ids, 24, seed=0, keep=[0, 1])
    special = (ids == 0) | (ids == 1)
    assert torch.equal(made[special], ids[special])
    drawn = nulls.random_tokens(torch.full((100, 60), 5), 12, seed=0, keep=[0, 1])
    count = torch.bincount(drawn.flatten(), minlength=12)
    assert count[:2].tolist() == [0, 0]
    assert (count[2:] - 600).abs().max() < 5 * 600**0.5
    assert torch.equal(made, nulls.random_tokens(ids, 24, seed=0, keep=[0, 1]))
    assert not torch.equal(made, nulls.random_tokens(ids, 24, seed=1, keep=[0, 1]))
    with pytest.raises(ValueError, match="2 ids has none outside"):
        nulls.random_tokens(ids, 2, keep=[0, 1])
    with pytest.raises(ValueError, match=r"integers \(sequence, position\)"):
        nulls.random_tokens(ids[0], 24)

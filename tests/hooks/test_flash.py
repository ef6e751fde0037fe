from unittest import mock

import pytest
import torch
from device_traffic import Largest
from tiny_models import capture_quietly, make_model, make_padding, make_tokens

from nbhelpers.hooks import flash
from nbhelpers.hooks.reductions import KeyProfile


def by_matrix(query, key, scaling, causal):
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1).double()
    scores = query.double() @ key.mT * scaling
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1).sum(-2)  # (batch, head, key)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n_kv", [4, 2, 1])
@pytest.mark.parametrize("length", [1, 7, 64, 130])
@pytest.mark.parametrize("spread", [1.0, 6.0])  # 6: almost all attention on single keys
def test_sums_equal_those_of_the_matrix(causal, n_kv, length, spread):
    generator = torch.Generator().manual_seed(0)
    query = spread * torch.randn(2, 4, length, 16, generator=generator)
    key = torch.randn(2, n_kv, length, 16, generator=generator)
    expected = by_matrix(query, key, 0.3, causal)
    found = flash.key_sums(query, key, scaling=0.3, causal=causal)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.sum(-1), torch.full((2, 4), float(length)))  # every query gives 1


def test_32k_tokens_take_memory_in_proportion():
    heads, length, width = 4, 32768, 16
    query = torch.empty(1, heads, length, width, device="meta")
    key = torch.empty(1, 2, length, width, device="meta")
    with Largest() as made:
        assert flash.key_sums(query, key, scaling=0.3, causal=True).shape == (1, heads, length)
    assert made.entries == heads * length * (width + 8)


@pytest.fixture
def everywhere(monkeypatch):
    """Let the fused passes run at any length and on the CPU, and count how often they do."""
    sums = mock.Mock(wraps=flash.key_sums)
    monkeypatch.setattr(flash, "pays", lambda layout: True)
    monkeypatch.setattr(flash, "key_sums", sums)
    return sums


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_capture_through_the_passes_equals_one_by_blocks(everywhere, monkeypatch, family):
    model, ids = make_model(family), make_tokens(33)
    got = capture_quietly(model, ids)
    assert everywhere.called, "the passes were not used"
    monkeypatch.undo()
    torch.testing.assert_close(got.key_profile, capture_quietly(model, ids).key_profile, rtol=1e-5, atol=1e-5)


def test_blocks_are_used_where_the_passes_do_not_suit(everywhere, llama):
    ids = make_tokens(24)
    capture_quietly(llama, ids, ["key_profile", "lag_profile"])
    capture_quietly(llama, ids, attention_mask=make_padding(24, "right"))
    capture_quietly(make_model("gpt_oss"), ids)  # sinks
    capture_quietly(make_model("t5"), ids)  # position bias
    capture_quietly(llama, ids, type("Mine", (KeyProfile,), {})())
    assert not everywhere.called
    layout = type("Square", (), {"n_queries": 9, "n_keys": 9})
    assert flash.suits([KeyProfile()], layout, None, None, {"softcap": None})
    assert not flash.suits([KeyProfile()], layout, None, None, {"softcap": 50.0})

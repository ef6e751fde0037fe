"""Models that do not fit one place: refused with numbers, or spread over memory and disk."""

import sys

import psutil
import pytest
import torch
from tiny_models import save_llama

from nbhelpers import capture, load_model
from nbhelpers.hooks.ablation import token_losses
from nbhelpers.hooks.recompute import cache_attention
from nbhelpers.inputs import devices as placement


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved Llama of 6 layers, about 1.7 MB in float32."""
    return save_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 64, (3, 40), generator=torch.Generator().manual_seed(0))


def quietly(model, ids, **options):
    return capture(model, ids, ["key_profile", "lag_profile"], progress=False, **options)


@pytest.mark.parametrize("limit", [400_000, 1_000_000])  # bytes, of the 1.7 million of the model
def test_a_model_larger_than_the_limit_gives_the_same_profiles(folder, ids, tmp_path, limit):
    whole = load_model(folder, device="cpu")
    spread = load_model(folder, device="spread", max_memory={"cpu": limit}, offload=tmp_path / "offload")
    assert sum(p.nbytes for p in whole.model.parameters()) > limit
    kept = sum(p.nbytes for p in spread.model.parameters() if p.device.type != "meta")
    assert kept <= limit, "the rest waits on disk"
    assert any(p.device.type == "meta" for p in spread.model.parameters())
    expected, found = quietly(whole, ids), quietly(spread, ids)
    for name in expected.arrays:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-7)
    assert all(p.device.type == "meta" for p in spread.model.model.layers[-1].parameters()), "and does after"


def test_a_spread_model_has_a_cache_of_its_weights(folder, ids, tmp_path):
    cache = tmp_path / "cache"
    spread = load_model(folder, device="spread", max_memory={"cpu": 400_000}, offload=tmp_path / "offload")
    found = quietly(spread, ids, cache=cache)
    files = sorted(cache.rglob("*.safetensors"))
    assert files
    times = [file.stat().st_mtime_ns for file in files]
    again = quietly(spread, ids, cache=cache)
    assert [file.stat().st_mtime_ns for file in files] == times, "found, not captured again"
    torch.testing.assert_close(again.key_profile, found.key_profile)


def test_losses_and_kept_attention_of_a_spread_model(folder, ids, tmp_path):
    whole = load_model(folder, device="cpu")
    spread = load_model(folder, device="spread", max_memory={"cpu": 10_000}, offload=tmp_path / "offload")
    assert next(spread.model.parameters()).device.type == "meta", "the embedding waits too"
    torch.testing.assert_close(token_losses(spread, ids), token_losses(whole, ids))
    found, expected = (cache_attention(model, ids[:1]) for model in (spread, whole))
    torch.testing.assert_close(found.layer(5), expected.layer(5), rtol=0, atol=1e-6)


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(folder, monkeypatch):
    monkeypatch.setattr(placement, "free_memory", lambda device: 2**20)
    with pytest.raises(MemoryError, match=r"take 0.00 GB in float32, and 0.00 GB are.*'spread'"):
        load_model(folder, device="cpu")


def test_limits_belong_to_a_spread_model(folder):
    with pytest.raises(ValueError, match="max_memory and offload belong to device='spread'"):
        load_model(folder, device="cpu", max_memory={"cpu": 10**9})


def test_random_weights_are_drawn_whole(folder):
    with pytest.raises(ValueError, match=r"random:.*one device"):
        load_model(f"random:{folder}", device="spread")


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be asked for what it keeps")
def test_freed_memory_goes_back_to_the_system():
    def resident():
        return psutil.Process().memory_info().rss / 2**20

    del [torch.ones(5 * 2**20)][0]  # 20 MB: once they are freed, smaller tensors come from the heap
    pieces = [torch.ones(2**18) for _ in range(200)]  # 1 MB each
    above = torch.ones(2**10)  # so that the heap cannot shrink from its end
    held = resident()
    del pieces
    if held - resident() > 100:
        pytest.skip("this malloc keeps nothing of what is freed")
    placement.return_freed_memory()
    assert held - resident() > 150
    assert above.sum() == 2**10

import pytest
import torch
from tiny_models import capture_quietly, make_tokens

from nbhelpers import load_model
from nbhelpers.hooks.ablation import token_losses
from nbhelpers.hooks.recompute import cache_attention
from nbhelpers.inputs import devices, memory

IDS, NAMES = make_tokens(40, n=3), ["key_profile", "lag_profile"]


def load_spread(model, folder, limit):
    return load_model(model, device="spread", max_memory={"cpu": limit}, offload=folder / "offload")


@pytest.mark.parametrize("limit", [400_000, 1_000_000])  # bytes, of the 1.7 million of the model
def test_a_model_larger_than_the_limit_gives_the_same_profiles(saved_llama, tmp_path, limit):
    whole = load_model(saved_llama, device="cpu")
    spread = load_spread(saved_llama, tmp_path, limit)
    assert sum(p.nbytes for p in whole.model.parameters()) > limit
    kept = sum(p.nbytes for p in spread.model.parameters() if p.device.type != "meta")
    assert kept <= limit, "the rest waits on disk"
    assert any(p.device.type == "meta" for p in spread.model.parameters())
    expected, found = (capture_quietly(each, IDS, NAMES) for each in (whole, spread))
    for name in expected.arrays:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-7)
    assert all(p.device.type == "meta" for p in spread.model.model.layers[-1].parameters()), "and does after"


def test_losses_and_kept_attention_of_a_spread_model(saved_llama, tmp_path):
    whole = load_model(saved_llama, device="cpu")
    spread = load_spread(saved_llama, tmp_path, 10_000)
    assert next(spread.model.parameters()).device.type == "meta", "the embedding waits too"
    torch.testing.assert_close(token_losses(spread, IDS), token_losses(whole, IDS))
    found, expected = (cache_attention(model, IDS[:1]) for model in (spread, whole))
    torch.testing.assert_close(found.layer(5), expected.layer(5), rtol=0, atol=1e-6)


def test_a_spread_model_has_a_cache_of_its_weights(saved_llama, tmp_path):
    spread = load_spread(saved_llama, tmp_path, 400_000)
    asked = {"reductions": NAMES, "cache": tmp_path / "cache"}
    found = capture_quietly(spread, IDS, **asked)
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    time = file.stat().st_mtime_ns
    assert torch.equal(capture_quietly(spread, IDS, **asked).key_profile, found.key_profile)
    assert file.stat().st_mtime_ns == time, "found, not captured again"


@pytest.mark.parametrize(
    ("membership", "group", "files"),
    [
        ("0::/", ".", {"max": 5000, "current": 3000}),  # version 2, seen from inside a container
        ("0::/a/b", "a", {"max": 5000, "current": 3000}),  # the limit of a group above
        ("4:cpu,memory:/docker/x", "memory", {"limit_in_bytes": 5000, "usage_in_bytes": 3000}),  # version 1
        ("4:memory:/job\n0::/", "memory/job", {"limit_in_bytes": 5000, "usage_in_bytes": 3000}),
    ],
)
def test_a_limit_of_a_container_counts_as_memory_does(tmp_path, monkeypatch, membership, group, files):
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")
    unlimited = devices.free_memory(torch.device("cpu"))
    (tmp_path / "membership").write_text(f"9:name=systemd:/\n{membership}\n")
    (tmp_path / group).mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (tmp_path / group / f"memory.{name}").write_text(f"{value}\n")
    stat = "anon 2000\ninactive_file 700\ntotal_inactive_file 700\n"
    (tmp_path / group / "memory.stat").write_text(stat)
    assert devices.free_memory(torch.device("cpu")) == 5000 - (3000 - 700)
    _, options = devices.place("spread")
    assert options["max_memory"]["cpu"] == 5000 - (3000 - 700)
    limit = next(name for name in files if name in ("max", "limit_in_bytes"))
    (tmp_path / group / f"memory.{limit}").write_text("max\n" if limit == "max" else f"{2**63 - 4096}\n")
    assert devices.free_memory(torch.device("cpu")) > unlimited / 2


def test_refusals(saved_llama, monkeypatch):
    with pytest.raises(ValueError, match="belong to device='spread'"):
        load_model(saved_llama, device="cpu", max_memory={"cpu": 10**9})
    with pytest.raises(ValueError, match="need one device"):
        load_model(f"random:{saved_llama}", device="spread")
    monkeypatch.setattr(devices, "free_memory", lambda device: 2**20)
    with pytest.raises(MemoryError, match=r"take 0.00 GB in float32, .*'spread'"):
        load_model(saved_llama, device="cpu")

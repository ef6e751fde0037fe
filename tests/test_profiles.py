import copy
import json
import pickle

import pytest
import torch
from draws import attention
from refusals import refusals
from safetensors.torch import save
from tiny_models import eager_attention
from tolerances import assert_close

from nbhelpers.hooks.capture import capture
from nbhelpers.profiles import Profiles

MODEL = {"name": "tiny", "rope_theta": 5000.0}
FACTS = {"model": MODEL, "n_sequences": 3, "reductions": [{"name": "row_psd"}]}


def make(n=3, *, seed=0, n_layers=2, provenance=FACTS, **changes):
    generator = torch.Generator().manual_seed(seed)
    psd, entropy = (torch.rand(n, n_layers, 4, *bins, generator=generator) for bins in ([5], []))
    axes = ("sequence", "layer", "head")
    fields = {
        "arrays": {"row_psd": psd, "row_entropy": entropy},
        "axes": {"row_psd": (*axes, "freq"), "row_entropy": axes},
        "coordinates": {"row_psd": [0.0, 0.1, 0.2, 1 / 3, 0.5], "row_entropy": []},
        "n_real": torch.arange(8, 8 + n),
        "kv_groups": [0, 0, 1, 1],
        "provenance": provenance,
    }
    return Profiles(**(fields | changes))


def assert_equal(got, expected):
    assert got.arrays.keys() == expected.arrays.keys()
    for name in expected.arrays:
        assert got[name].dtype == torch.float32
        assert torch.equal(got[name], expected[name])
    assert torch.equal(got.n_real, expected.n_real)
    for fact in ("axes", "coordinates", "kv_groups", "provenance"):
        assert getattr(got, fact) == getattr(expected, fact)


def test_by_item_and_by_attribute():
    profiles = make()
    assert profiles.row_psd is profiles["row_psd"]
    assert "row_psd" in profiles
    assert "key_profile" not in profiles
    assert profiles.n_sequences == 3
    assert profiles.nbytes == 4 * 3 * 2 * 4 * (5 + 1)
    with pytest.raises(AttributeError, match=r"captured: row_psd, row_entropy"):
        _ = profiles.key_profile
    with pytest.raises(KeyError, match=r"there is row_psd, row_entropy"):
        profiles["key_profile"]


def test_copies_and_files_are_whole_and_facts_are_added_to_one(tmp_path):
    profiles = make()
    for again in (copy.deepcopy(profiles), pickle.loads(pickle.dumps(profiles))):
        assert_equal(again, profiles)
    named = profiles.with_provenance(seed=4, n_sequences=2)
    assert named.provenance == FACTS | {"seed": 4, "n_sequences": 2}
    assert profiles.provenance == FACTS
    assert named.row_psd is profiles.row_psd
    profiles = make()
    turned = {name: array.mT.contiguous().mT for name, array in profiles.arrays.items()}
    assert not turned["row_psd"].is_contiguous()
    path = make(arrays=turned).save(tmp_path / "deep" / "er" / "profiles.safetensors")
    assert_equal(Profiles.load(path), profiles)


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "later format"])
def test_a_file_that_cannot_be_read(tmp_path, damage):
    path = make().save(tmp_path / "profiles.safetensors")
    later = {"nbhelpers": json.dumps({"format": "nbhelpers-profiles-9"})}
    message, broken = {
        "truncated": ("is damaged", path.read_bytes()[:-9]),
        "empty": ("is damaged", b""),
        "foreign": ("not a nbhelpers-profiles-2 file", save({"weight": torch.rand(3)})),
        "later format": ("not a nbhelpers-profiles-2", save({"weight": torch.rand(3)}, later)),
    }[damage]
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=message):
        Profiles.load(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no file"):
        Profiles.load(path)


def test_concatenate():
    parts = [make(3, seed=1), make(1, seed=2), make(2, seed=3)]
    joined = Profiles.concatenate(parts)
    assert joined.n_sequences == joined.provenance["n_sequences"] == 6
    assert parts[0].provenance["n_sequences"] == 3
    assert torch.equal(joined.row_psd[3], parts[1].row_psd[0])
    assert torch.equal(joined.row_entropy[4:], parts[2].row_entropy)
    assert joined.n_real.tolist() == [8, 9, 10, 8, 8, 9]
    assert_equal(Profiles.concatenate(parts[:1]), parts[0])
    assert_equal(Profiles.concatenate([Profiles.concatenate(parts[:2]), parts[2]]), joined)


def test_concatenate_refuses_what_does_not_belong_together():
    for changes, differing in (
        ({"coordinates": {"row_psd": [0.0, 0.1, 0.2, 0.3, 0.4], "row_entropy": []}}, "coordinates"),
        ({"n_layers": 3}, "layers or heads"),
        ({"kv_groups": [0, 1, 2, 3]}, "KV groups"),
        ({"provenance": FACTS | {"model": {"name": "other"}}}, "model"),
        ({"provenance": FACTS | {"reductions": [{"name": "row_psd", "protocol": "0f"}]}}, "reductions"),
    ):
        with pytest.raises(ValueError, match=f"These profiles differ in {differing}: "):
            Profiles.concatenate([make(), make(**changes)])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_from_attention_is_the_slow_loop(n, causal):
    attn = attention(2, 3, 4, n, n, causal=causal, scale=2)
    before = attn.clone()
    made = Profiles.from_attention(attn, causal=causal, kv_groups=[0, 0, 1, 1], provenance={"model": "m"})
    lags = list(range(0 if causal else 1 - n, n))
    by_lag = torch.zeros(2, 3, 4, len(lags), dtype=torch.float64)
    for i in range(n):
        for j in range(i + 1 if causal else n):
            by_lag[..., lags.index(i - j)] += attn[..., i, j] / n
    late = range(n - n // 2, n)
    back = [sum(attn[..., i, i - d] for i in late) / max(len(late), 1) for d in range(n // 2)]
    by_lag_back = torch.stack(back, -1) if back else attn[..., 0, :0]
    distances = [d for d in (0, 1, 2, 4, 8, 16, 32) if d < n or d in (0, 16)]
    near = [[k for k, lag in enumerate(lags) if abs(lag) <= d] for d in distances]
    expected = {
        "key_profile": attn.mean(-2),
        "last_query": attn[..., -1, :],
        "lag_profile": by_lag,
        "stationary_profile": by_lag_back,
        "local_mass": torch.stack([by_lag[..., within].sum(-1) for within in near], -1),
    }
    assert list(made.arrays) == list(expected)
    for name, array in expected.items():
        assert_close(made[name], array)
    assert (made.coordinates["lag_profile"], made.coordinates["local_mass"]) == (lags, distances)
    assert made.n_real.tolist() == [n, n]
    assert (made.kv_groups, made.provenance) == ([0, 0, 1, 1], {"model": "m"})
    assert torch.equal(attn, before)
    half = Profiles.from_attention(attn.bfloat16().requires_grad_(), causal=causal)  # as calls give it
    assert {(array.dtype, array.requires_grad) for array in half.arrays.values()} == {(torch.float32, False)}


def test_from_attention_is_what_capture_keeps(tiny_llama):
    ids = torch.randint(2, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    names = ["key_profile", "last_query", "lag_profile", "stationary_profile", "local_mass"]
    captured = capture(tiny_llama, ids, names, progress=False)
    attn = torch.from_numpy(eager_attention(tiny_llama.model, ids)).float()
    made = Profiles.from_attention(attn, causal=True, kv_groups=captured.kv_groups)
    for fact in ("axes", "coordinates", "kv_groups"):
        assert getattr(made, fact) == getattr(captured, fact)
    for name in names:
        assert_close(made[name], captured[name])


ATTN = attention(2, 3, 4, 6, 6, scale=2)


test_bad_input_is_refused = refusals(
    (lambda: make(arrays={"row_psd": torch.rand(3, 2, 4)}), r"row_psd has shape \(3, 2, 4\)"),
    (lambda: Profiles.from_attention(ATTN, causal=True), "pass causal=False"),
    (lambda: Profiles.from_attention(ATTN[..., 1:, :], causal=False), r"\(2, 3, 4, 5, 6\)"),
    (lambda: Profiles.from_attention(ATTN[0], causal=False), r"\(3, 4, 6, 6\)"),
    (lambda: Profiles.from_attention(2 * ATTN, causal=False), "sum to 1"),
    (lambda: Profiles.from_attention(ATTN - 1 / 6, causal=False), "negative"),
    (lambda: Profiles.from_attention(ATTN * torch.nan, causal=False), "NaN"),
)

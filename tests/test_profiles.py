"""Profiles: names, axes, and what a file gives back."""

import copy
import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from tolerances import assert_close

from nbhelpers.hooks.capture import capture
from nbhelpers.profiles import Profiles

FACTS = {
    "model": {"name": "tiny", "rope_theta": 5000.0},
    "n_sequences": 3,
    "reductions": [{"name": "row_psd"}],
}


def make(n=3, *, seed=0, n_layers=2, provenance=FACTS, **changes):
    generator = torch.Generator().manual_seed(seed)
    fields = {
        "arrays": {
            "row_psd": torch.rand(n, n_layers, 4, 5, generator=generator),
            "row_entropy": torch.rand(n, n_layers, 4, generator=generator),
        },
        "axes": {
            "row_psd": ("sequence", "layer", "head", "freq"),
            "row_entropy": ("sequence", "layer", "head"),
        },
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
    assert got.axes == expected.axes
    assert got.coordinates == expected.coordinates
    assert torch.equal(got.n_real, expected.n_real)
    assert got.kv_groups == expected.kv_groups
    assert got.provenance == expected.provenance


def test_by_item_and_by_attribute():
    profiles = make()
    assert profiles.row_psd is profiles["row_psd"]
    assert "row_psd" in profiles
    assert "key_profile" not in profiles
    assert profiles.n_sequences == 3
    assert profiles.nbytes == 4 * 3 * 2 * 4 * (5 + 1)
    assert repr(profiles) == "Profiles(row_psd (3, 2, 4, 5), row_entropy (3, 2, 4); 0.0 MB)"


def test_what_was_not_captured_is_named():
    profiles = make()
    with pytest.raises(AttributeError, match=r"no 'key_profile' \(captured: row_psd, row_entropy\)"):
        _ = profiles.key_profile
    with pytest.raises(KeyError, match=r"'key_profile' was not captured; there is row_psd, row_entropy"):
        profiles["key_profile"]
    assert not hasattr(profiles, "_private")


def test_axes_must_fit_the_arrays():
    with pytest.raises(ValueError, match=r"row_entropy has shape \(3, 2, 4, 1\)"):
        make(arrays={"row_psd": torch.rand(3, 2, 4, 5), "row_entropy": torch.rand(3, 2, 4, 1)})


def test_facts_are_added_to_a_copy():
    profiles = make()
    told = profiles.with_provenance(seed=4, n_sequences=2)
    assert told.provenance == FACTS | {"seed": 4, "n_sequences": 2}
    assert profiles.provenance == FACTS
    assert told.row_psd is profiles.row_psd


def test_a_copy_and_a_pickle_are_whole():
    for again in (copy.deepcopy(make()), pickle.loads(pickle.dumps(make()))):
        assert_equal(again, make())


def test_a_file_gives_everything_back(tmp_path):
    profiles = make()
    path = profiles.save(tmp_path / "deep" / "er" / "profiles.safetensors")
    assert path.exists()
    assert_equal(Profiles.load(path), profiles)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file is left


def test_a_file_of_what_is_not_contiguous(tmp_path):
    profiles = make()
    turned = make(
        arrays={
            name: array.flip(0).transpose(1, 2).contiguous().transpose(1, 2)
            for name, array in profiles.arrays.items()
        }
    )
    assert not turned.row_psd.is_contiguous()
    assert_equal(Profiles.load(turned.save(tmp_path / "turned")), turned)


def test_saving_again_replaces_and_a_failure_does_not(tmp_path):
    path = tmp_path / "profiles.safetensors"
    make(seed=1).save(path)
    make(seed=2).save(path)
    with pytest.raises(TypeError, match="JSON"):
        make(seed=3, provenance={"model": object()}).save(path)
    assert_equal(Profiles.load(path), make(seed=2))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "text"])
def test_a_damaged_file(tmp_path, damage):
    path = make().save(tmp_path / "profiles.safetensors")
    content = path.read_bytes()
    broken = {
        "truncated": content[:-9],
        "header": content[:8] + b"\xff" * 20 + content[28:],
        "empty": b"",
        "text": b"hello",
    }
    path.write_bytes(broken[damage])
    with pytest.raises(FileNotFoundError, match=r"no profiles at .*nowhere"):
        Profiles.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"profiles.safetensors is damaged .*delete it and capture again"):
        Profiles.load(path)


@pytest.mark.parametrize("metadata", [None, {"nbhelpers": json.dumps({"format": "nbhelpers-profiles-9"})}])
def test_a_foreign_safetensors_file(tmp_path, metadata):
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.rand(3)}, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"weights.safetensors is not a nbhelpers-profiles-1 file"):
        Profiles.load(path)


def test_concatenate():
    parts = [make(3, seed=1), make(1, seed=2), make(2, seed=3)]
    joined = Profiles.concatenate(parts)
    assert joined.n_sequences == joined.provenance["n_sequences"] == 6
    assert parts[0].provenance["n_sequences"] == 3
    assert torch.equal(joined.row_psd[3], parts[1].row_psd[0])
    assert torch.equal(joined.row_entropy[4:], parts[2].row_entropy)
    assert joined.n_real.tolist() == [8, 9, 10, 8, 8, 9]
    assert (joined.axes, joined.coordinates, joined.kv_groups) == (
        parts[0].axes,
        parts[0].coordinates,
        [0, 0, 1, 1],
    )
    assert_equal(Profiles.concatenate(parts[:1]), parts[0])
    assert_equal(Profiles.concatenate([Profiles.concatenate(parts[:2]), parts[2]]), joined)


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"coordinates": {"row_psd": [0.0, 0.1, 0.2, 0.3, 0.4], "row_entropy": []}}, "coordinates"),
        ({"n_layers": 3}, "layers or heads"),
        ({"arrays": {}, "axes": {}}, "axes, layers or heads"),
        ({"kv_groups": [0, 1, 2, 3]}, "KV groups"),
        ({"provenance": FACTS | {"model": {"name": "other"}}}, "model"),
        ({"provenance": FACTS | {"reductions": [{"name": "row_psd", "protocol": "0f"}]}}, "reductions"),
        ({"provenance": FACTS | {"dtype": "bfloat16"}}, "dtype"),
    ],
)
def test_concatenate_refuses_what_does_not_belong_together(changes, differing):
    with pytest.raises(ValueError, match=f"These profiles differ in {differing}: "):
        Profiles.concatenate([make(), make(**changes)])
    with pytest.raises(ValueError, match="at least one"):
        Profiles.concatenate([])


# From whole matrices


def random_attention(n, *, causal, dtype=torch.float64):
    z = 2 * torch.randn(2, 3, 4, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = z.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf) if causal else z
    return z.softmax(-1).to(dtype)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_from_attention_is_the_slow_loop(n, causal):
    attn = random_attention(n, causal=causal)
    before = attn.clone()
    made = Profiles.from_attention(attn, causal=causal, kv_groups=[0, 0, 1, 1], provenance={"model": "m"})
    lags = list(range(0 if causal else 1 - n, n))
    by_lag = torch.zeros(2, 3, 4, len(lags), dtype=torch.float64)
    for i in range(n):
        for j in range(i + 1 if causal else n):
            by_lag[..., lags.index(i - j)] += attn[..., i, j] / n
    distances = [d for d in (0, 1, 2, 4, 8, 16, 32) if d < n or d in (0, 16)]
    near = [[k for k, lag in enumerate(lags) if abs(lag) <= d] for d in distances]
    expected = {
        "key_profile": attn.mean(-2),
        "last_query": attn[..., -1, :],
        "lag_profile": by_lag,
        "local_mass": torch.stack([by_lag[..., within].sum(-1) for within in near], -1),
    }
    assert list(made.arrays) == list(expected)
    for name, array in expected.items():
        assert_close(made[name], array)
    assert (made.coordinates["lag_profile"], made.coordinates["local_mass"]) == (lags, distances)
    assert made.n_real.tolist() == [n, n]
    assert (made.kv_groups, made.provenance) == ([0, 0, 1, 1], {"model": "m"})
    assert torch.equal(attn, before)


def test_from_attention_is_what_capture_keeps(tiny_llama):
    ids = torch.randint(2, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    names = ["key_profile", "last_query", "lag_profile", "local_mass"]
    captured = capture(tiny_llama, ids, names, progress=False)
    network = tiny_llama.model
    usual = network.config._attn_implementation
    network.set_attn_implementation("eager")
    with torch.inference_mode():
        attn = torch.stack(network(ids, output_attentions=True, use_cache=False).attentions, 1)
    network.set_attn_implementation(usual)
    made = Profiles.from_attention(attn, causal=True, kv_groups=captured.kv_groups)
    assert (made.axes, made.coordinates, made.kv_groups) == (
        captured.axes,
        captured.coordinates,
        captured.kv_groups,
    )
    for name in names:
        assert_close(made[name], captured[name])


def test_from_attention_upcasts_half_precision():
    made = Profiles.from_attention(random_attention(9, causal=True, dtype=torch.bfloat16), causal=True)
    assert {array.dtype for array in made.arrays.values()} == {torch.float32}
    assert made.kv_groups == [0, 1, 2, 3]


def test_from_attention_refuses_what_is_no_attention():
    attn = random_attention(6, causal=False)
    with pytest.raises(ValueError, match="attend to later keys; pass causal=False"):
        Profiles.from_attention(attn, causal=True)
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4, 5, 6\)"):
        Profiles.from_attention(attn[..., 1:, :], causal=False)
    with pytest.raises(ValueError, match=r"shape \(3, 4, 6, 6\)"):
        Profiles.from_attention(attn[0], causal=False)
    for wrong, why in ((2 * attn, "sum to 1"), (attn - 1 / 6, "negative"), (attn * torch.nan, "NaN")):
        with pytest.raises(ValueError, match=why):
            Profiles.from_attention(wrong, causal=False)

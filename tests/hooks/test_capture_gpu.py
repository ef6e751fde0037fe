import copy

import pytest
import torch
from device_traffic import gpu_marks
from tiny_models import assert_same_profiles, capture_quietly, make_model, make_padding, make_tokens

from nbhelpers import analyze
from nbhelpers.hooks.ablation import token_losses
from nbhelpers.hooks.recompute import cache_attention
from nbhelpers.hooks.reductions import REDUCTIONS, RowMetrics
from nbhelpers.protocol import PAPER

pytestmark = gpu_marks()
EVERYTHING = list(REDUCTIONS)
ROWS = PAPER.replace(signal="rows", level="own")
PROTOCOLS = [PAPER, PAPER.replace(order="mean then metric"), ROWS]
PROTOCOLS += [ROWS.replace(sided="two", detrend="mean", mode="periodization")]


@pytest.fixture(scope="module")
def model():
    return make_model(positions=32768, hidden_size=64, intermediate_size=128)  # on the CPU


@pytest.fixture(scope="module")
def on_gpu(model):
    return copy.deepcopy(model).cuda()


@pytest.mark.parametrize("length", [5, 64, 300])
def test_equal_to_the_cpu(model, on_gpu, length):
    ids = make_tokens(length, n=3)
    wanted = [*(name for name in EVERYTHING if name != "row_metrics"), RowMetrics(PAPER.replace(level="own"))]
    got, expected = (capture_quietly(each, ids, wanted) for each in (on_gpu, model))
    for name in expected.arrays:
        torch.testing.assert_close(got[name], expected[name], rtol=5e-4, atol=5e-5, equal_nan=True)


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("family", ["llama", "bert", "bloom", "gpt_oss", "t5"])
def test_every_route_and_padding_equal_the_cpu(family, side):
    ids = make_tokens(40)
    mask = None if side is None else make_padding(40, side)
    names = ["key_profile", "lag_profile", "last_query", "row_entropy", "local_mass"]
    models = (make_model(family).to(device) for device in ("cuda", "cpu"))
    got, expected = (capture_quietly(each, ids, names, attention_mask=mask, chunk=16) for each in models)
    assert_same_profiles(got, expected, tolerance=5e-5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_signal_is_measured_alike(model, on_gpu, protocol):
    ids = make_tokens(64, n=3)
    got, expected = (analyze(each, ids, protocol, progress=False).frame() for each in (on_gpu, model))
    assert got.drop(columns="value").equals(expected.drop(columns="value"))
    values = (torch.tensor(frame.value.to_numpy()) for frame in (got, expected))
    torch.testing.assert_close(*values, rtol=1e-3, atol=1e-4, equal_nan=True)


def test_hidden_states_are_unchanged_and_losses_and_kept_attention_equal_the_cpu(on_gpu, model):
    ids, seen = make_tokens(64, n=3).cuda(), []
    with torch.inference_mode():
        plain = on_gpu.base_model(ids)[0]
    handle = on_gpu.base_model.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    capture_quietly(on_gpu, ids)
    handle.remove()
    assert torch.equal(seen[0], plain)
    ids = make_tokens(64, n=1)
    assert (token_losses(on_gpu, ids) - token_losses(model, ids)).abs().max() < 1e-3
    got, expected = (cache_attention(each, ids).layer(1) for each in (on_gpu, model))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_bfloat16_is_upcast_before_the_scores(model):
    half = copy.deepcopy(model).to("cuda", torch.bfloat16)
    profiles = capture_quietly(half, make_tokens(128, n=3), ["key_profile", "row_entropy"])
    assert profiles.key_profile.dtype == torch.float32
    assert (profiles.key_profile.sum(-1) - 1).abs().max() < 1e-5

import contextlib

import pytest
import tiny_models as tiny
import torch
from device_traffic import needs_gpus
from torch._subclasses.fake_tensor import FakeTensorMode

from nbhelpers import load_model
from nbhelpers.hooks.attention import Recorder, gathered
from nbhelpers.hooks.reductions import resolve
from nbhelpers.kernels import rows

NAMES = ["key_profile", "lag_profile", "last_query", "row_entropy", "local_mass"]
LAYERS_ON = [0, 0, 1, 0]
LENGTH = 24


@pytest.fixture
def two_devices(monkeypatch):
    """Two devices without hardware, lazy:0 and lazy:1, on which torch works out shapes and devices alone.

    An operation on tensors of both is an error, as it is on two GPUs.
    """
    autocast = torch.autocast
    without = {"lazy": lambda **_: contextlib.nullcontext()}  # which autocast does not know
    chosen = lambda kind, **o: without.get(kind, lambda **p: autocast(kind, **p))(**o)  # noqa: E731
    monkeypatch.setattr(torch, "autocast", chosen)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    rows._window.cache_clear()
    with FakeTensorMode():
        yield [torch.device("lazy", index) for index in (0, 1)]
    rows._window.cache_clear()


@pytest.mark.parametrize("by", ["scores", "probabilities"])
def test_each_layer_is_reduced_where_it_lies(two_devices, by):
    recorder = Recorder(tiny.make_model(), resolve(NAMES), chunk=8)
    for device in (two_devices[index] for index in LAYERS_ON):
        if by == "scores":
            query, key = (torch.ones(2, n, LENGTH, 8, device=device) for n in (4, 2))
            output = torch.ones(2, LENGTH, 4, 8, device=device)
            recorder.observe(torch.nn.Identity(), query, key, key, None, output)
        else:
            recorder.observe_probabilities(torch.ones(2, 4, LENGTH, LENGTH, device=device))
    differences = [recorder.differences] if by == "scores" else []
    for layers in [*recorder.arrays.values(), recorder.errors, *differences]:
        assert [layer.device.index for layer in layers] == LAYERS_ON
        assert gathered(layers, 0).device.type == "cpu"
        assert len(gathered(layers, 0)) == len(LAYERS_ON)


def assert_profiles_of_one_device(spread, folder, *, n_devices):
    hooked = [getattr(layer, "_hf_hook", None) for layer in spread.model.model.layers]
    assert len({hook.execution_device for hook in hooked}) == n_devices
    whole, ids = load_model(folder, device="cuda:0"), tiny.make_tokens(LENGTH, n=3)
    for mask in (None, tiny.make_padding(LENGTH, "left", n=3), tiny.make_padding(LENGTH, "right", n=3)):
        options = {"reductions": [*NAMES, "row_metrics"], "attention_mask": mask}
        found, expected = (tiny.capture_quietly(model, ids, **options) for model in (spread, whole))
        tiny.assert_same_profiles(found, expected, 1e-5)


@needs_gpus(2)
def test_layers_on_two_gpus(saved_llama):
    spread = load_model(saved_llama, device="spread", max_memory={0: 1_000_000, 1: 10**9})
    assert_profiles_of_one_device(spread, saved_llama, n_devices=2)


@needs_gpus()
def test_layers_on_a_gpu_and_in_memory(saved_llama):
    spread = load_model(saved_llama, device="spread", max_memory={0: 1_000_000, "cpu": 10**9})
    assert any(parameter.device.type == "meta" for parameter in spread.model.parameters()), "some wait"
    assert_profiles_of_one_device(spread, saved_llama, n_devices=1)

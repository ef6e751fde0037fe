import contextlib

import pytest
import torch
from device_traffic import needs_gpus, traffic
from tiny_models import make_model, make_padding, make_tokens

from nbhelpers.hooks.attention import Recorder, innermost_attention, interface_route, module_route
from nbhelpers.hooks.reductions import REDUCTIONS, RowMetrics, resolve
from nbhelpers.protocol import PAPER

OTHER = PAPER.replace(sided="two", detrend="mean", mode="periodization", sink="drop_renormalise", level="own")
LENGTH = 40


def everything(protocol=PAPER):
    made = resolve(list(REDUCTIONS))
    for reduction in made:
        if hasattr(reduction, "protocol"):
            reduction.protocol = protocol.replace(level="own")
    return made


@pytest.fixture
def shapes_only(monkeypatch):
    """The device `meta`; autocast, which does not know it, is left out there."""
    autocast, enabled = torch.autocast, torch.is_autocast_enabled

    def without(device_type, *args, **options):
        return contextlib.nullcontext() if device_type == "meta" else autocast(device_type, *args, **options)

    monkeypatch.setattr(torch, "autocast", without)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind != "meta" and enabled(kind))
    return torch.device("meta")


def recorder_of(model, reductions, *, mask=None):
    return Recorder(model, reductions, attention_mask=mask, chunk=16)


def route_of(model):
    return module_route if model.config.model_type == "bloom" else interface_route


@torch.inference_mode()
def forward(model, recorder, ids, mask=None):
    with route_of(model)(model, recorder) as extra:
        model.base_model(ids, attention_mask=mask, **extra)


def traffic_of_capture(model, reductions, device, *, mask=None):
    ids, on_device = make_tokens(LENGTH).to(device), None
    if mask is not None:  # as wide as the scores, or Llama looks whether anything is hidden
        wide = torch.zeros(len(ids), 1, LENGTH, LENGTH, device=device)
        on_device = wide if model.config.model_type == "llama" else mask.to(device)
    recorder = recorder_of(model, reductions, mask=mask)
    with traffic() as plain, torch.inference_mode():
        model.base_model(ids, attention_mask=on_device, output_attentions=route_of(model) is module_route)
    with traffic() as captured:
        forward(model, recorder, ids, on_device)
    assert all(len(layers) == 2 for layers in recorder.arrays.values()), "two layers were reduced"
    for entry in plain:
        captured.remove(entry)
    return captured


@pytest.mark.parametrize("protocol", [PAPER, OTHER], ids=["paper", "other"])
@pytest.mark.parametrize("family", ["llama", "bert", "bloom"])
def test_no_number_passes(shapes_only, family, protocol):
    model = make_model(family).to(shapes_only)
    assert traffic_of_capture(model, everything(protocol), shapes_only) == []


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_padding_is_brought_to_the_device_once(shapes_only, family, side):
    model = make_model(family).to(shapes_only)
    found = traffic_of_capture(model, everything(), shapes_only, mask=make_padding(LENGTH, side))
    assert [entry for entry in found if entry != "read from cpu"] == ["copy from cpu to meta"]


class Leaking(RowMetrics):
    name = "leaking"

    def __init__(self, leak):
        super().__init__(PAPER.replace(level="own"))
        self._leak = leak

    def update(self, state, block, layout):
        super().update(state, block, layout)
        self._leak(block.attn)


LEAKS = {
    "upload of a tensor": (lambda attn: torch.arange(3).to(attn.device), "copy from cpu to meta"),
    "upload of numbers": (lambda attn: torch.tensor([1.0], device=attn.device), "copy from cpu to meta"),
    "upload of an index": (lambda attn: attn[..., torch.arange(3)], "devices mixed by index"),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_seen_in_every_block(shapes_only, leak):
    act, entry = LEAKS[leak]
    found = traffic_of_capture(make_model().to(shapes_only), [Leaking(act)], shapes_only)
    assert found == [entry] * 6, "two layers of three blocks"


@pytest.mark.parametrize("leak", [lambda a: a.sum().item(), lambda a: bool(a.any()), lambda a: a.cpu()])
def test_what_the_host_reads_is_an_error(shapes_only, leak):
    with pytest.raises((RuntimeError, NotImplementedError), match=r"meta tensors?"):
        traffic_of_capture(make_model().to(shapes_only), [Leaking(leak)], shapes_only)


@needs_gpus()
def test_the_host_waits_for_nothing_between_layers():
    """CUDA itself raises where a call would wait, between the first layer and the last."""
    model, ids = make_model(positions=4096, std=0.02).cuda(), make_tokens(2048).cuda()
    reductions = everything(OTHER)
    forward(model, recorder_of(model, reductions), ids)  # windows and cuFFT plans are made once
    modules = innermost_attention(model)
    handles = [
        modules[0].register_forward_hook(lambda *_: torch.cuda.set_sync_debug_mode("error")),
        modules[-1].register_forward_hook(lambda *_: torch.cuda.set_sync_debug_mode("default")),
    ]
    try:
        forward(model, recorder_of(model, reductions), ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        for handle in handles:
            handle.remove()

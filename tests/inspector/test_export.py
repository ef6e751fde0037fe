import json
import re

import numpy as np
import pytest

from nbhelpers.inspector.export import STEPS, pack_layer, pack_reading, to_bytes, to_page
from nbhelpers.inspector.reading import read_text
from nbhelpers.plots import LEAST_ATTENTION, block_max, draw_heads
from nbhelpers.protocol import PAPER

TEXT = "the whale and the sea costs $5 and $6 and the ship that sails the sea " * 3


@pytest.fixture(scope="module")
def reading(tiny_llama):
    return read_text(tiny_llama, TEXT, length=64)


def unpacked(packed, name):
    at, shape = packed["places"][name]
    return np.frombuffer(packed["bytes"], np.float32)[at : at + int(np.prod(shape))].reshape(shape)


def probability(byte):
    return np.where(byte == 0, 0.0, LEAST_ATTENTION ** ((STEPS + 1 - byte.astype(float)) / STEPS))


def test_bytes_are_within_half_a_step_and_only_what_is_below_the_scale_is_zero():
    values = np.r_[0, LEAST_ATTENTION * 0.97, LEAST_ATTENTION, 1, np.logspace(-4, 0, 2000)].astype(np.float32)
    codes = np.frombuffer(to_bytes(values[None, None], causal=False), np.uint8)
    assert codes[:4].tolist() == [0, 0, 1, STEPS + 1]
    off = np.abs(np.log10(probability(codes[4:]) / values[4:]))
    allowed = 0.5 * 4 / STEPS + np.log10(1 + 2.0**-8)  # half a step, and what the upper bits leave out
    assert off.max() < allowed


@pytest.mark.parametrize("causal", [True, False])
def test_each_entry_of_each_head_has_its_place(causal):
    attn = np.random.default_rng(0).uniform(size=(3, 5, 5)).astype(np.float32)
    codes = np.frombuffer(to_bytes(attn, causal=causal), np.uint8)
    order = [(h, q, k) for h in range(3) for q in range(5) for k in range(q + 1 if causal else 5)]
    assert len(codes) == len(order)
    for code, place in zip(codes, order, strict=True):
        assert probability(code) == pytest.approx(attn[place], rel=0.03)


def test_a_layer_and_a_reading_are_packed_as_they_were_measured(reading):
    layer, shown = pack_layer(reading, 1, wait=True), pack_reading(reading)
    view, kernels = reading.head(1, 2), reading.kernels(1)
    for name, wanted in (("key", view.key_profile), ("lag", view.lag_profile), ("psd", view.psd)):
        np.testing.assert_array_equal(unpacked(layer["arrays"], name)[2], wanted.astype(np.float32))
    np.testing.assert_array_equal(unpacked(layer["arrays"], "measured"), kernels.measured.astype(np.float32))
    values = unpacked(shown["arrays"], "values")  # (metric, layer, head)
    for at, metric in enumerate(shown["metrics"]):
        np.testing.assert_allclose(values[at], reading.values(metric["name"]), rtol=1e-6)
    text = reading.model.tokenizer.decode(reading.token_ids[0])
    assert "".join(piece for _, piece in shown["pieces"]) == text
    assert shown["edges"] == [2]  # 4 query heads share 2 KV heads
    assert [name for name in shown["six"] if name not in reading.metrics] == []
    json.dumps({name: part for name, part in shown.items() if name != "arrays"}, allow_nan=False)


CHANGES = [{"signal": "lag_profile", "sided": "two"}, {"sink": "drop_renormalise", "edges": (0.5,)}]


@pytest.mark.parametrize("changes", [*CHANGES, {"wavelet": "haar"}])
def test_every_protocol_can_be_packed_and_drawn(reading, changes):
    changed = reading.under(PAPER.replace(**changes))
    shown, layer = pack_reading(changed), pack_layer(changed, 0, wait=True)
    n_positions = shown["arrays"]["places"]["positions"][1][0]
    assert len(layer["scalograms"]) == 4 * len(shown["levels"]) * n_positions
    figure = draw_heads([changed.head(0, 1), changed.head(1, 0)], changed.protocol.signal)
    lines = [line for ax in figure.subfigs[1].axes for line in ax.get_lines()]
    assert len(lines) == 3 * 3


def test_a_planted_sink_is_in_every_row_of_an_exported_picture():
    for n in (300, 1024, 2048):
        attn = np.zeros((n, n), np.float32)
        attn[:, n // 3] = 0.6
        small = block_max(attn)
        assert (len(small) <= 600, (small.max(1) == np.float32(0.6)).all()) == (True, True)
        assert (small > 0.5).sum() == len(small)


def test_hostile_text_ends_no_script_of_the_page():
    evil = "</script><script>alert(1)</script>"
    page = to_page("render()", "p {}", {"text": evil, "bytes": b"abc"}, evil)
    state = re.search(r'<script type="application/json" id="nbh-state">(.*?)</script>', page).group(1)
    assert json.loads(state)["text"] == evil
    assert "<script>alert" not in page

import functools
import importlib.metadata
import importlib.util
import sys
import tempfile
from unittest import mock

import numpy as np
import pytest
import torch
from slow_metrics import slow_row_metrics
from tiny_models import assert_same_profiles, capture_quietly, make_model, make_padding, make_tokens
from tolerances import assert_metric

from nbhelpers.hooks import fused
from nbhelpers.hooks.reductions import Layout, RowEntropy, RowMetrics
from nbhelpers.kernels import rows, spectra
from nbhelpers.protocol import PAPER

needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba, which compiles the loops, is not installed"
)
OTHER = {"window": "boxcar", "edges": (0.1, 0.5, 0.9), "log_base": 2, "wavelet": "sym2", "level": "own"}
ROWS = ["row_metrics", "row_entropy"]


def attention_of(n, batch=1, heads=2):
    n_real, last = torch.tensor([n] * batch), (n - 1,) * batch
    query, key = 1.5 * torch.randn(2, batch, heads, n, 16, generator=torch.Generator().manual_seed(n))
    return query, key[:, : heads // 2], Layout(batch, heads, n, n, True, query.device, last, n_real)


@needs_numba
@pytest.mark.parametrize("protocol", [PAPER, PAPER.replace(**OTHER)], ids=["paper", "other"])
@pytest.mark.parametrize("n", [4, 8, 31, 64, 257])
def test_the_loops_equal_an_oracle(n, protocol):
    query, key, layout = attention_of(n, *((2, 4) if n < 100 else ()))  # the oracle is slow
    reductions = [RowMetrics(protocol), RowEntropy()]
    with torch.inference_mode():
        found, last = fused.measure(fused.compiled(reductions), reductions, query, key, layout, 0.25)
    scores = 0.25 * query.double() @ key.double().repeat_interleave(2, 1).mT
    attn = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    expected = [[slow_row_metrics(head, range(n), protocol) for head in one] for one in attn.numpy()]
    assert_metric(found["row_metrics"], expected)
    positional = np.array(expected)[..., len(protocol.edges) + 3]
    assert_metric(found["row_entropy"], positional * np.log(protocol.log_base or np.e))
    assert_metric(last, attn[:, :, -last.shape[2] :])


@needs_numba
@pytest.mark.parametrize("spread", [1, 10, 20])
def test_what_a_window_leaves_beside_a_sink_keeps_its_digits(spread):
    # As in test_rows: 200 heads of one row each, key 0 above all; at 20 the rest is about 1e-23.
    scores = spread * torch.randn(200, 64, generator=torch.Generator().manual_seed(3))
    scores[:, 0] = scores.amax(-1) + 2 * spread
    below = (scores - scores[:, :1]).double().numpy()
    others, kernels = np.exp(below[:, 1:]).sum(-1), fused.compiled([RowMetrics()])
    attn = np.exp(below) / (1 + others[:, None])
    tapered, entropy = torch.empty(200, 64), np.empty(200, np.float32)
    taper, sums, zeros = np.hanning(64).astype(np.float32), np.zeros((200, 11)), np.zeros(4, np.float32)
    kernels.add_rows(scores.numpy(), 63, 1, taper, zeros, zeros, tapered.numpy(), entropy, np.zeros((200, 2)))
    transforms = torch.view_as_real(torch.fft.rfft(tapered)).flatten(1).numpy()
    kernels.add_spectra(transforms, np.array([0, 8, 24, 33]), 1, entropy, sums)
    power = torch.from_numpy(abs(np.fft.rfft(attn * np.hanning(64))) ** 2)
    expected, _ = rows.row_spectral_metrics(power, rows.band_runs(spectra.frequencies(64), (0.25, 0.75)))
    assert_metric(sums[:, :5], expected)
    assert_metric(entropy / (np.log1p(others) - (attn * below).sum(-1)), np.ones(200))


@needs_numba
@pytest.mark.parametrize("length", [2, 3, 32, 512, 1009, 2048])
def test_a_capture_by_loops_equals_one_by_blocks(length):
    model, ids = make_model(layers=1, positions=2048), make_tokens(length, n=2 if length < 600 else 1)
    names = [*ROWS, "lag_profile"]  # the last goes through blocks in either case
    got, expected = (capture_quietly(model, ids, names, fused=choice) for choice in (True, False))
    assert torch.equal(got.row_metrics.isnan(), expected.row_metrics.isnan())
    assert bool(got.row_metrics.isnan().any()) == (length < 4), "single samples have no spread"
    for name in ROWS:
        assert_metric(got[name].nan_to_num(), expected[name].nan_to_num())
    assert torch.equal(got.lag_profile, expected.lag_profile)
    assert got.provenance["fused"] == [0]
    assert got.provenance["proof"] < 1e-5
    assert got.provenance["versions"]["numba"] == importlib.metadata.version("numba")
    assert not {"fused"} & expected.provenance.keys()


@needs_numba
@pytest.mark.parametrize("names", [ROWS, [*ROWS, "key_profile"]], ids=len)
def test_what_the_loops_made_is_proved(monkeypatch, llama, names):
    right = fused.measure
    wrong = lambda *given: (right(*given)[0], right(*given)[1].roll(1, -1))  # noqa: E731
    monkeypatch.setattr(fused, "measure", wrong)
    with pytest.raises(RuntimeError, match=r"layers \[0, 1\] is not the one that the model uses"):
        capture_quietly(llama, make_tokens(32), names)


@needs_numba
@torch.inference_mode()
def test_threads_change_no_digit_and_keep_their_numbers():
    before, found, wanted, given = torch.get_num_threads(), [], [RowMetrics()], attention_of(300)
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(fused.measure(fused.compiled(wanted), wanted, *given, 0.25)[0]["row_metrics"])
            assert torch.get_num_threads() == n
            assert set(fused._threads(n).map(lambda _: torch.get_num_threads(), range(9))) == {1}
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


PADDED = {"attention_mask": make_padding(24, "right")}
OTHER_WAYS = {"llama": PADDED, "mistral": {}, "gemma2": {}, "gpt_oss": {}, "bloom": {}, "bert": {}}
OTHER_WAYS |= {"t5": {"stream": "decoder"}}  # before: a window, a cap, a sink, no interface, no causal mask


@needs_numba
@pytest.mark.parametrize("family", [*OTHER_WAYS, "float64"])
def test_what_is_not_plain_goes_through_blocks(family):
    model = make_model("llama").double() if family == "float64" else make_model(family)
    options = OTHER_WAYS.get(family, {})
    found = [capture_quietly(model, make_tokens(24), ROWS, fused=f, **options) for f in (True, False)]
    assert found[0].provenance["fused"] == []
    assert_same_profiles(*found, tolerance=0)


def test_other_protocols_and_reductions_do_not_ask_for_numba(monkeypatch):
    monkeypatch.setattr(fused, "_kernels", lambda: pytest.fail("asked for the loops"))
    others = {"sink": "drop_renormalise", "detrend": "mean", "pad": 2, "sided": "two", "dc": "drop"}
    for name, value in [*others.items(), ("mode", "zero"), ("wavelet", "haar"), ("wavelet", "db3")]:
        assert fused.compiled([RowMetrics(PAPER.replace(**{name: value})), RowEntropy()]) is None
    assert fused.compiled([type("Mine", (RowMetrics,), {})()]) is None


@pytest.mark.parametrize("absent", ["numba", pytest.param("cannot cache function", marks=needs_numba)])
def test_without_numba_or_a_folder_rows_go_through_blocks_and_one_line_says_so(monkeypatch, llama, absent):
    monkeypatch.setattr(fused, "_kernels", functools.cache(fused._kernels.__wrapped__))
    monkeypatch.delitem(sys.modules, "nbhelpers.kernels.fused", raising=False)
    monkeypatch.delattr("nbhelpers.kernels.fused", raising=False)
    if absent == "numba":
        monkeypatch.setitem(sys.modules, "numba", None)
    else:  # numba tries each folder with a file
        monkeypatch.setattr(tempfile, "TemporaryFile", mock.Mock(side_effect=PermissionError))
    with pytest.warns(UserWarning, match=f"{absent}.*nbhelpers\\[fast\\]") as said:
        found, _ = (capture_quietly(llama, make_tokens(24), ROWS) for _ in range(2))
    assert [str(warning.message).count("\n") for warning in said] == [0], "one line, once"
    assert "fused" not in found.provenance
    assert_same_profiles(found, capture_quietly(llama, make_tokens(24), ROWS, fused=False), tolerance=0)

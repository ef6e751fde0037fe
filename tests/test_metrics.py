"""analyze against float64 numpy and PyWavelets from the paper's definitions; closed forms; refusals."""

import numpy as np
import pandas as pd
import pytest
import pywt
import torch
from tiny_models import captured_matrix, eager_attention, make_model, make_tokens, make_uniform

from nbhelpers.hooks.capture import capture
from nbhelpers.hooks.reductions import RowMetrics
from nbhelpers.inputs.text import scaled_variant
from nbhelpers.metrics import Signals, analyze, measure_signals
from nbhelpers.protocol import PAPER
from nbhelpers.table import AVERAGED, COLUMNS, HeadTable

LENGTH = 64
TOLERANCE = 5e-5  # relative where the value is above 1


@pytest.fixture(scope="module")
def llama():
    return make_model("llama")


def measure(model, ids, protocol=PAPER, **options):
    return analyze(model, ids, protocol, progress=False, **options)


# --- the oracle: one signal at a time, from the equations


def slow_metrics(signal, variants, *, window=np.hanning, windows=(16, 32, 64)):
    """Eqs. 1-11 of one signal and its scaled variants (factor → signal), literally, in float64."""
    power = abs(np.fft.rfft(signal * window(len(signal)))) ** 2  # eq. 1
    frequency = np.fft.rfftfreq(len(signal)) / 0.5  # in units of Nyquist
    share = power / power.sum()
    found = {
        "spectral_entropy": -sum(p * np.log(p) for p in share if p > 0),  # eq. 7
        "frequency_selectivity": power.max() / np.delete(power, power.argmax()).sum(),  # eq. 3
        "low_band": share[frequency < 0.25].sum(),  # eq. 2
        "mid_band": share[(frequency >= 0.25) & (frequency < 0.75)].sum(),
        "high_band": share[frequency >= 0.75].sum(),
        "positional_entropy": -sum(a * np.log(a) for a in signal if a > 0),  # eq. 6
        "effective_support": 1 / (signal**2).sum(),
        "sink_mass": signal[0],
    }
    for size in windows:
        parts = [signal[at : at + size] for at in range(0, len(signal) - size + 1, size)]
        parts = [part / part.sum() for part in parts if part.sum() > 0]
        if parts:
            entropies = [-sum(a * np.log(a) for a in part if a > 0) / np.log(size) for part in parts]
            found[f"window_entropy_{size}"] = np.mean(entropies)
    shortest = min([len(signal), *map(len, variants.values())])
    level = pywt.dwt_max_level(shortest, "db2")
    coefficients = pywt.wavedec(signal, "db2", "symmetric", level)  # eq. 4
    for name, c in zip([f"a{level}", *(f"d{k}" for k in range(level, 0, -1))], coefficients, strict=True):
        found[f"wavelet_entropy_{name}"] = -sum(e * np.log(e) for e in c**2 if e > 0)  # eq. 5
    for factor, variant in variants.items():  # eq. 10
        u, v = (np.concatenate(pywt.wavedec(x, "db2", "symmetric", level)) for x in (signal, variant))
        n = min(len(u), len(v))
        cosine = u[:n] @ v[:n] / np.sqrt((u[:n] @ u[:n]) * (v[:n] @ v[:n]))
        found[f"scale_sensitivity_{factor:g}"] = 1 - cosine
    return found


def assert_metric(got, expected, name=""):
    assert got.shape == expected.shape
    worst = (abs(got - expected) / np.maximum(1, abs(expected))).max()
    assert worst <= TOLERANCE, f"{name}: off by {worst:.3g}"


def assert_table(table, signals, variants, **options):
    """Each metric of the table is the slow one of (sequence, layer, head, position)."""
    slow = {}
    for at in np.ndindex(signals.shape[:3]):
        for name, value in slow_metrics(
            signals[at], {f: v[at] for f, v in variants.items()}, **options
        ).items():
            slow.setdefault(name, np.zeros(signals.shape[:3]))[at] = value
    for name, expected in slow.items():
        assert_metric(table.values(name), expected, name)
    return set(table.metrics) - set(slow)


def key_profiles(model, ids):
    return eager_attention(model, ids).mean(-2)


def test_paper_protocol_against_the_definitions(llama):
    ids = make_tokens(LENGTH, n=3)
    table = measure(llama, ids, corpus="random words", seed=4)
    variants = {factor: key_profiles(llama, ids[:, : int(factor * LENGTH)]) for factor in (0.5, 0.25)}
    rest = assert_table(table, key_profiles(llama, ids), variants)
    assert rest == {"reconstruction_error", "local_mass_16"}
    assert (
        0 < table.values("reconstruction_error").max() < 1e-6
    )  # float32 rounding of an orthogonal transform
    attn = eager_attention(llama, ids)
    near = np.tril(attn, 16) - np.tril(attn, -17)
    assert_metric(table.values("local_mass_16"), near.sum(-1).mean(-1))


def test_the_last_query(llama):
    ids = make_tokens(LENGTH)
    table = measure(llama, ids, PAPER.replace(signal="last_query"))

    def last(tokens):
        return eager_attention(llama, tokens)[..., -1, :]

    assert_table(table, last(ids), {f: last(ids[:, : int(f * LENGTH)]) for f in (0.5, 0.25)})


def lag_profiles(attn):
    n = attn.shape[-1]
    return np.stack([np.trace(attn, -lag, -2, -1) for lag in range(n)], -1) / n


def test_the_lag_profile(llama):
    ids = make_tokens(LENGTH)
    table = measure(llama, ids, PAPER.replace(signal="lag_profile"))
    signals = {f: lag_profiles(eager_attention(llama, ids[:, : int(f * LENGTH)])) for f in (1, 0.5, 0.25)}
    frame = table.frame.replace({"metric": {"self_mass": "sink_mass"}})  # the first entry is lag 0, not key 0
    assert "sink_mass" not in table.metrics
    assert_table(HeadTable(frame), signals.pop(1), signals)


def test_lag_zero_of_an_encoder_is_in_the_middle():
    model, ids = make_model("bert"), make_tokens(LENGTH)
    table = measure(model, ids, PAPER.replace(signal="lag_profile"))
    attn = eager_attention(model, ids)
    assert_metric(table.values("self_mass"), np.trace(attn, 0, -2, -1) / LENGTH)


def test_every_row(llama):
    ids, protocol = make_tokens(LENGTH), PAPER.replace(signal="rows")
    table = measure(llama, ids, protocol)
    profiles = capture(llama, ids, RowMetrics(protocol), progress=False)
    names = profiles.coordinates["row_metrics"]
    assert table.metrics == [*names, "local_mass_16"]
    for k, name in enumerate(names):
        assert np.array_equal(table.values(name), profiles.row_metrics[..., k].double().numpy())
    entropies = (
        -np.where((a := eager_attention(llama, ids)) > 0, a * np.log(np.maximum(a, 1e-300)), 0)
        .sum(-1)
        .mean(-1)
    )
    assert_metric(table.values("positional_entropy"), entropies)


@pytest.mark.parametrize("sink", ["keep", "drop_renormalise"])
def test_the_flattened_matrix(llama, sink):
    ids = make_tokens(24)
    table = measure(llama, ids, PAPER.replace(signal="flattened", sink=sink))
    attn = eager_attention(llama, ids)
    if sink != "keep":
        attn = attn[..., 1:]
        total = attn.sum(-1, keepdims=True)
        attn = attn / np.where(total > 0, total, 1)
    flat = attn.reshape(*attn.shape[:3], -1)
    rest = assert_table_without_sink(table, flat / flat.sum(-1, keepdims=True), sink)
    assert rest == {"reconstruction_error", "local_mass_16"}


def assert_table_without_sink(table, signals, sink):
    frame = table.frame
    if sink != "keep":  # the metric is not there; add what the oracle expects
        assert "sink_mass" not in table.metrics
        first = frame[frame.metric == "positional_entropy"].assign(
            metric="sink_mass", value=signals[..., 0].ravel()
        )
        frame = pd.concat([frame, first], ignore_index=True)
    return assert_table(HeadTable(frame), signals, {})


@pytest.mark.parametrize("signal", ["key_profile", "last_query"])
def test_without_the_sink(llama, signal):
    ids = make_tokens(LENGTH)
    table = measure(llama, ids, PAPER.replace(signal=signal, sink="drop_renormalise", factors=()))
    attn = eager_attention(llama, ids)
    kept = (attn.mean(-2) if signal == "key_profile" else attn[..., -1, :])[..., 1:]
    assert_table_without_sink(table, kept / kept.sum(-1, keepdims=True), "drop_renormalise")


@pytest.mark.parametrize("how", ["stride", "random"])
def test_other_ways_to_draw_the_variants(llama, how):
    ids = make_tokens(LENGTH)
    table = measure(llama, ids, PAPER.replace(scaled_variant=how), seed=7)
    variants = {f: key_profiles(llama, scaled_variant(ids, f, how=how, seed=7)) for f in (0.5, 0.25)}
    assert_table(table, key_profiles(llama, ids), variants)


def test_mean_then_metric(llama):
    ids = make_tokens(LENGTH, n=4)
    table = measure(llama, ids, PAPER.replace(order="mean then metric"))
    signals = {f: key_profiles(llama, ids[:, : int(f * LENGTH)]) for f in (1, 0.5, 0.25)}
    # First the mean over sequences, then each mean with one sequence left out.
    averages = {
        f: np.stack([s.mean(0), *[np.delete(s, i, axis=0).mean(0) for i in range(4)]])
        for f, s in signals.items()
    }
    assert_table(table, averages.pop(1), averages)
    assert table.averaged
    assert sorted(table.frame.sequence.unique()) == [AVERAGED, 0, 1, 2, 3]
    assert table.summary(n_boot=10).n_sequences.unique().tolist() == [4]
    near = np.tril(eager_attention(llama, ids), 16) - np.tril(eager_attention(llama, ids), -17)
    assert_metric(table.values("local_mass_16")[0], near.sum(-1).mean(-1).mean(0))


# --- closed forms and identities


@pytest.mark.parametrize(
    ("n", "half", "quarter"),
    [(32, 0.035, 0.087), (64, 0.031, 0.082), (128, 0.026, 0.073), (256, 0.023, 0.065)],
)
def test_uniform_causal_attention_has_the_closed_form(n, half, quarter):
    # Key j gets sum_{i >= j} 1 / (n (i + 1)); the values printed in the specification of the paper.
    table = measure(make_uniform(), make_tokens(n, n=1))
    exact = np.array([sum(1 / (i + 1) for i in range(j, n)) / n for j in range(n)])
    variants = {
        f: np.array([sum(1 / (i + 1) for i in range(j, m)) / m for j in range(m)])
        for f, m in ((0.5, n // 2), (0.25, n // 4))
    }
    for name, value in slow_metrics(exact, variants).items():
        assert_metric(table.values(name), np.full((1, 2, 4), value), name)
    assert table.values("scale_sensitivity_0.5") == pytest.approx(half, abs=5.01e-4)
    assert table.values("scale_sensitivity_0.25") == pytest.approx(quarter, abs=5.01e-4)


def test_uniform_causal_attention_under_the_other_boundary_modes():
    for mode, half, quarter in (("periodization", 0.066, 0.222), ("zero", 0.225, 0.399)):
        table = measure(make_uniform(), make_tokens(256, n=1), PAPER.replace(mode=mode))
        assert table.values("scale_sensitivity_0.5") == pytest.approx(half, abs=5.01e-4)
        assert table.values("scale_sensitivity_0.25") == pytest.approx(quarter, abs=5.01e-4)


def test_uniform_attention_has_the_spectrum_of_the_specification():
    # n = 128: H_s 0.57, S 3.21, all power in the low band.
    table = measure(make_uniform(), make_tokens(128, n=1))
    assert table.values("spectral_entropy") == pytest.approx(0.57, abs=5e-3)
    assert table.values("frequency_selectivity") == pytest.approx(3.21, abs=1e-2)
    assert table.values("low_band") == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("length", [1, 2, 17, 40])
def test_the_profile_of_a_prefix_is_that_of_the_first_rows(llama, length):
    ids = make_tokens(LENGTH)
    full = captured_matrix(llama, ids)
    prefix = capture(llama, ids[:, :length], progress=False).key_profile.double().numpy()
    assert abs(prefix - full[..., :length, :length].mean(-2)).max() <= 1e-6


def test_an_encoder_has_no_prefix_identity():
    model, ids = make_model("bert"), make_tokens(LENGTH)
    prefix = capture(model, ids[:, :16], progress=False).key_profile.double().numpy()
    assert abs(prefix - captured_matrix(model, ids)[..., :16, :16].mean(-2)).max() > 1e-3


# --- the table


def test_frame_and_provenance(llama):
    ids = make_tokens(LENGTH, n=3)
    table = measure(llama, ids, corpus="random words", seed=4)
    frame = table.frame
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 3 * 2 * 4 * len(table.metrics)
    assert frame.groupby("head").kv_group.unique().map(list).tolist() == [[0], [0], [1], [1]]
    assert not frame.duplicated(["sequence", "layer", "head", "metric"]).any()
    assert frame.value.dtype == float
    facts = table.provenance
    assert (facts["corpus"], facts["seed"], facts["length"], facts["n_sequences"]) == (
        "random words",
        4,
        LENGTH,
        3,
    )
    assert facts["protocol_hash"] == PAPER.hash
    assert facts["protocol"] == PAPER.to_dict()
    assert (facts["device"], facts["dtype"], facts["model"]["family"]) == ("cpu", "float32", "llama")
    assert {"torch", "transformers", "nbhelpers"} <= set(facts["versions"])


def test_a_rerun_gives_the_identical_table(llama, tmp_path):
    ids, protocol = make_tokens(LENGTH), PAPER.replace(scaled_variant="random")
    runs = [
        measure(llama, ids, protocol, seed=3, **options)
        for options in ({}, {}, {"cache": tmp_path}, {"cache": tmp_path})
    ]
    for other in runs[1:]:
        pd.testing.assert_frame_equal(other.frame, runs[0].frame, check_exact=True)
        assert other.provenance == runs[0].provenance
    other_seed = measure(llama, ids, protocol, seed=4)
    assert (other_seed.values("scale_sensitivity_0.5") != runs[0].values("scale_sensitivity_0.5")).any()
    assert np.array_equal(other_seed.values("spectral_entropy"), runs[0].values("spectral_entropy"))


def test_a_table_survives_its_file(llama, tmp_path):
    table = measure(llama, make_tokens(LENGTH))
    back = HeadTable.from_parquet(table.to_parquet(tmp_path / "heads.parquet"))
    pd.testing.assert_frame_equal(back.frame, table.frame, check_exact=True)
    assert back.provenance == table.provenance


def test_a_loaded_model_and_a_list_of_ids(tiny_llama):
    ids = make_tokens(LENGTH)
    loaded, bare = measure(tiny_llama, ids), measure(tiny_llama.model, ids.tolist())
    pd.testing.assert_frame_equal(loaded.frame, bare.frame, check_exact=True)


def test_windows_longer_than_the_signal_are_left_out(llama):
    assert [m for m in measure(llama, make_tokens(40)).metrics if m.startswith("window")] == [
        "window_entropy_16",
        "window_entropy_32",
    ]


# --- refusals


@pytest.mark.parametrize("length", [8, 23])
def test_too_short_for_the_wavelet(llama, length):
    short = int(length * 0.25)
    with pytest.raises(
        ValueError, match=rf"shortest variant has {short} tokens.*db2.*these have {length}.*\(0\.5, 0\.25\)"
    ):
        measure(llama, make_tokens(length))
    assert measure(llama, make_tokens(24)).metrics  # 6 tokens are enough


def test_too_short_for_a_variant(llama):
    with pytest.raises(ValueError, match=r"alpha 0\.25 of 3 tokens leaves none"):
        measure(llama, make_tokens(3))


@pytest.mark.parametrize("signal", ["rows", "flattened"])
def test_streamed_signals_cannot_be_averaged_first(llama, signal):
    with pytest.raises(
        ValueError,
        match=rf"signal='{signal}'.*order='mean then metric' cannot be had.*key_profile, last_query",
    ):
        measure(llama, make_tokens(24), PAPER.replace(signal=signal, order="mean then metric"))


def test_lags_have_no_sink(llama):
    with pytest.raises(ValueError, match=r"lags, not keys.*'drop_renormalise'.*sink='keep'"):
        measure(llama, make_tokens(24), PAPER.replace(signal="lag_profile", sink="drop_renormalise"))


def test_padding_is_refused(llama):
    with pytest.raises(ValueError, match="one length without padding; call it once per length"):
        measure(llama, make_tokens(24), attention_mask=torch.ones(2, 24))


def test_what_capture_refuses_is_refused(llama):
    with pytest.raises(ValueError, match="257 tokens"):
        measure(llama, make_tokens(257))


def test_signals_are_measured_without_a_model():
    # What the null models use: one signal in, all metrics of it out.
    signal = torch.softmax(
        torch.randn(1, 1, 2, LENGTH, generator=torch.Generator().manual_seed(0)), -1
    ).double()
    before = signal.clone()
    found = measure_signals(
        Signals(signal, {0.5: signal[..., :32] / signal[..., :32].sum(-1, keepdim=True)}, PAPER)
    )
    assert torch.equal(signal, before)
    expected = slow_metrics(
        signal[0, 0, 1].numpy(), {0.5: (signal[0, 0, 1, :32] / signal[0, 0, 1, :32].sum()).numpy()}
    )
    assert {name: float(found[name][0, 0, 1]) for name in expected} == pytest.approx(expected, rel=1e-9)

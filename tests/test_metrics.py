import numpy as np
import pytest
import torch
from slow_metrics import slow_metrics

from nbhelpers.metrics import METRICS, Signals, find_metric, measure_signals, metric_label
from nbhelpers.protocol import PAPER

LENGTH = 64


@pytest.fixture(scope="module")
def signals():
    logits = torch.randn(1, 1, 2, LENGTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    half = logits[..., : LENGTH // 2].softmax(-1)
    return Signals(logits.softmax(-1), {0.5: half}, PAPER, local_mass={8: logits.softmax(-1)[..., 0]})


def test_every_metric_is_its_equation(signals):
    before = signals.signal.clone()
    found = measure_signals(signals)
    assert torch.equal(signals.signal, before)
    expected = slow_metrics(signals.signal[0, 0, 1].numpy(), {0.5: signals.scaled[0.5][0, 0, 1].numpy()})
    assert {name: float(found[name][0, 0, 1]) for name in expected} == pytest.approx(expected, rel=1e-9)
    assert set(found) - set(expected) == {"reconstruction_error", "local_mass_8"}
    assert 0 < found["reconstruction_error"].max() < 1e-6  # float32 rounding of an orthogonal transform
    assert torch.equal(found["local_mass_8"], signals.local_mass[8])


def test_the_protocol_says_which_metrics_there_are(signals):
    for changes, there, missing in (
        ({"edges": (0.5,)}, ["band_0_0.5", "band_0.5_1"], ["low_band", "mid_band", "high_band"]),
        ({"signal": "lag_profile"}, ["self_mass", "low_band"], ["sink_mass"]),
        ({"sink": "drop_renormalise"}, [], ["sink_mass", "self_mass"]),
        ({"entropy_windows": (8, 65)}, ["window_entropy_8"], ["window_entropy_65"]),
    ):
        found = measure_signals(Signals(signals.signal, signals.scaled, PAPER.replace(**changes)))
        assert set(there) <= set(found)
        assert not set(missing) & set(found)


def test_every_name_finds_its_own_entry():
    names = [metric.name.replace("*", "16") for metric in METRICS]
    assert len(set(names)) == len(METRICS)
    for name, metric in zip(names, METRICS, strict=True):
        found = find_metric(name)
        assert (found.name, found.unit, found.function) == (name, metric.unit, metric.function)
        assert "*" not in found.label
        assert "_" not in found.label


def test_labels_name_the_unit():
    labels = {
        "positional_entropy": "positional entropy (nats)",
        "band_0.5_1": "band 0.5–1 of Nyquist (relative band power)",
        "scale_sensitivity_0.25": "scale sensitivity S(0.25)",
        "local_mass_16": "attention within 16 tokens (share)",
        "of_no_entry": "of no entry",
        "mean of $H_s$ (nats)": "mean of $H_s$ (nats)",
    }
    assert {name: metric_label(name) for name in labels} == labels


def test_the_unit_of_an_entropy_is_that_of_the_protocols_logarithm():
    bits, other = PAPER.replace(log_base=2), PAPER.replace(log_base=10)
    for name in ("spectral_entropy", "positional_entropy", "wavelet_entropy_d1"):
        assert [find_metric(name, p).unit for p in (PAPER, bits, other)] == ["nats", "bits", "base 10.0"]
    assert metric_label("spectral_entropy", PAPER, bits, bits) == "spectral entropy (nats or bits)"
    assert metric_label("validation_loss", bits) == "validation loss (nats/token)"


def test_too_short_for_the_wavelet():
    signal = torch.full((1, 1, 1, 8), 1 / 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"shortest variant has 2 tokens.*db2.*these have 8"):
        measure_signals(Signals(signal, {0.25: signal[..., :2] * 4}, PAPER))
    assert np.isfinite(float(measure_signals(Signals(signal, {}, PAPER))["wavelet_entropy_d1"]))

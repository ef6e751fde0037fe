import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import captured_matrix, make_model

import nbhelpers
from nbhelpers.protocol import PAPER
from nbhelpers.zoo import measure
from nbhelpers.zoo.measure import WHOLE, Yardstick, measure_checkpoint
from nbhelpers.zoo.text import BOS_ID, MASK_ID, inputs_and_labels

LENGTH, PERIOD = measure.LENGTH, measure.PERIOD


@pytest.fixture
def yardstick(moby_dick, small_yardstick):
    return Yardstick.of(moby_dick)


def make(encoding="nope", *, uniform=False, std=0.1, **options):
    options |= {"position_encoding": encoding, "vocab_size": 2048}
    model = make_model("nbhelpers_zoo", std=std, **options)
    with torch.no_grad():
        for layer in model.model.layers if uniform else ():
            layer.attention.query_key_value.weight[:32] = 0  # the queries
    return model


def one(frame, metric, **where):
    asked = pd.Series({"metric": metric} | where)
    return frame[(frame[asked.index] == asked).all(axis=1)].value.item()


def test_induction_score_reads_the_token_after_the_earlier_occurrence(yardstick):
    model = make("rope", std=0.3)
    matrix = captured_matrix(model, yardstick.repeated)  # (sequence, layer, head, query, key)
    queries = np.arange(PERIOD, 2 * PERIOD)
    expected = matrix[..., queries, queries - PERIOD + 1].mean(-1)
    got = measure.induction_score(model, yardstick.repeated, bos=False)
    assert abs(got.numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("bos", [False, True])
def test_scores_of_uniform_attention(yardstick, bos):
    model = make(uniform=True)
    first = PERIOD + bos
    expected = np.mean([1 / (query + 1) for query in range(first, first + PERIOD)])
    got = measure.induction_score(model, yardstick.repeated, bos=bos)
    assert got.shape == (2, 2, 4)
    assert abs(got.numpy() - expected).max() < 1e-7
    frame = measure_checkpoint(model, yardstick, step=0, bos=bos)
    previous = np.mean([1 / (query + 1) for query in range(1, LENGTH)])
    assert one(frame, "previous_token_score", layer=1, head=2) == pytest.approx(previous, rel=1e-5)
    sink = np.mean([1 / (query + 1) for query in range(LENGTH)])
    assert one(frame, "sink_mass", layer=0, head=0) == pytest.approx(sink, rel=1e-5)


def slow_loss(model, ids, labels):
    with torch.inference_mode():
        log_p = model(ids).logits.double().log_softmax(-1)
    told = labels != -100
    return float(-log_p[told].gather(-1, labels[told][:, None]).mean())


@pytest.mark.parametrize(("causal", "bos"), [(True, False), (True, True), (False, False)])
def test_validation_loss(yardstick, causal, bos):
    model = make("rope", is_causal=causal)
    ids, labels = inputs_and_labels(yardstick.validation, causal=causal, bos=bos)
    got = measure.position_losses(model, yardstick.validation, bos=bos)
    assert float(got.nanmean()) == pytest.approx(slow_loss(model, ids, labels), rel=1e-5)


@pytest.mark.parametrize("bos", [False, True])
def test_repeat_losses_are_of_the_second_and_the_first_saying(yardstick, bos, monkeypatch):
    n = 2 * PERIOD - 1 + bos  # predictions: of tokens 1 … if there is no BOS, else of 0 …
    known = torch.arange(n, dtype=torch.float64).repeat(2, 1)
    monkeypatch.setattr(measure, "position_losses", lambda model, windows, bos: known)
    got = measure.repeat_losses(make(), yardstick.repeated, bos=bos)
    second = np.mean(range(n - (PERIOD - 1), n))
    assert got["repeat_loss"] == pytest.approx(second)
    assert got["repeat_gain"] == pytest.approx(np.mean(range(PERIOD - 1)) - second)


def test_losses_beyond_the_training_length(yardstick):
    frame = measure_checkpoint(make("alibi"), yardstick, step=9, bos=False, lengths=True, tokens=7)
    lengths = (LENGTH, 2 * LENGTH, 4 * LENGTH)
    names = [f"{kind}_loss_{n}" for n in lengths for kind in ("length", "end")]
    assert frame.metric.tolist()[-6:] == names
    assert one(frame, "length_loss_256") == one(frame, "end_loss_256")
    window = yardstick.long[:, : 2 * LENGTH + 1]
    expected = measure.position_losses(make("alibi"), window, bos=False)[:, LENGTH:].mean()
    assert one(frame, "end_loss_512") == pytest.approx(float(expected))
    assert one(frame, "tokens", signal="model", step=9) == 7
    frame = measure_checkpoint(make("learned"), yardstick, step=9, bos=False, lengths=True)
    assert [name for name in frame.metric if name in names] == names[:2]


def test_table_of_a_checkpoint(yardstick):
    model = make("rope", std=0.3)
    frame = measure_checkpoint(model, yardstick, step=12, bos=False)
    assert list(frame.columns) == measure.COLUMNS
    table = nbhelpers.analyze(model, yardstick.text, PAPER, progress=False)
    for metric in ("spectral_entropy", "scale_sensitivity_0.25", "wavelet_entropy_d2"):
        values = table.values(metric)  # (sequence, layer, head)
        part = frame[(frame.metric == metric) & (frame.signal == "key_profile")]
        heads, sequences = part[part.sequence == WHOLE], part[part.layer == WHOLE]
        assert heads.value.to_numpy().reshape(2, 4) == pytest.approx(values.mean(0), rel=1e-5)
        assert sequences.value.to_numpy() == pytest.approx(values.mean((1, 2)), rel=1e-5)
    counts = frame.groupby(["signal", "metric"]).size()
    assert set(counts[["key_profile", "lag_profile", "attention"]]) == {2 * 4 + len(yardstick.text)}


def test_bos_opens_every_sequence_that_is_measured(yardstick):
    model = make("rope", std=0.3)
    with_bos = dataclasses.replace(yardstick, text=yardstick.text.clone())
    with_bos.text[:, 0] = BOS_ID
    got = measure_checkpoint(model, yardstick, step=0, bos=True)
    expected = measure_checkpoint(model, with_bos, step=0, bos=False)
    same = expected.signal == "key_profile"
    assert got[same].value.tolist() == expected[same].value.tolist()


def test_the_yardstick_is_held_out_and_fixed(moby_dick, yardstick):
    again = Yardstick.of(moby_dick)
    for name, tensor in vars(yardstick).items():
        assert torch.equal(getattr(again, name), tensor)
    assert yardstick.repeated.min() > MASK_ID  # no special token among the random ones
    for name, split in (("text", "measurement"), ("validation", "validation"), ("long", "validation")):
        tokens = moby_dick.tokens[split]
        for window in getattr(yardstick, name):
            places = (tokens[: len(tokens) - len(window) + 1] == window[0]).nonzero()[:, 0]
            assert any(torch.equal(tokens[p : p + len(window)].long(), window) for p in places)

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models as tiny

from nbhelpers.__main__ import main
from nbhelpers.head_kernels import dilation, head_kernels
from nbhelpers.stats import agreement

LENGTH, LAGS = 40, 20


@pytest.fixture(scope="module")
def made():
    model = tiny.make_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    early, late = tiny.make_tokens(LENGTH, 3), tiny.make_tokens(LENGTH, 4, seed=2)
    return head_kernels(model, early, late, progress=False)


def test_own_heads_are_told_from_others_and_from_exchanged_ones(made):
    measured = made.measured.mean(0)  # (layer, head, lag)
    own, other = [], []
    for layer in range(2):
        for one in range(4):
            for two in range(4):
                r, explained = agreement(made.computed[layer, one], measured[layer, two])
                (own if one == two else other).append((r, explained))
    for found, pairs in ((made.median(), own), (made.median_of_others(), other)):
        assert [each.value for each in found] == pytest.approx(np.median(pairs, 0))
        assert all(each.low < each.value < each.high and each.n == 4 for each in found)
    assert made.median(made.measured.mean(0))[1].value == pytest.approx(1)
    planted = np.random.default_rng(0).normal(size=(16, 8, LAGS))
    seen = SimpleNamespace(kv_groups=[0, 0, 1, 1, 2, 2, 3, 3])
    for measured, lowest in ((planted, True), (np.roll(planted, 3, 0), False)):
        one = type(made)(made.moments, seen, planted, measured[None])
        assert (one.exchange_p(n_draws=99) == 0.01) == lowest


def test_a_table_counts_the_fewest_strongest_pairs(made):
    table = made.table()
    rates = made.moments.rotations[0].frequencies.numpy()
    for row in table.itertuples():
        query, key = (each[row.layer][row.head].numpy() for each in (made.moments.query, made.moments.key))
        lags, parts = np.arange(LAGS), []
        for k, rate in enumerate(rates):  # dimensions k and k + 4 are a pair
            cos, sin = np.cos(rate * lags), np.sin(rate * lags)
            turned = query[k] * cos - query[k + 4] * sin, query[k + 4] * cos + query[k] * sin
            parts.append((turned[0] * key[k] + turned[1] * key[k + 4]) / np.sqrt(8))
        parts = np.array(parts) - np.mean(parts, -1, keepdims=True)
        computed = made.computed[row.layer, row.head]
        np.testing.assert_allclose(parts.sum(0), computed - computed.mean(), atol=1e-9)
        order = np.argsort(-parts.var(-1))
        left = [(parts[order[n:]].sum(0) ** 2).sum() for n in range(5)]  # without the n strongest
        n = next(n for n in range(1, 5) if left[n] <= 0.1 * left[0])
        assert (row.pairs_needed, row.strongest_wavelength) == (n, pytest.approx(2 * np.pi / rates[order[0]]))
        assert row.explained == pytest.approx(made.agreement()[1][row.layer, row.head])


def test_refusals():
    model = tiny.make_model("llama")
    with pytest.raises(ValueError, match=r"passages of one length; got \(\(2, 40\), \(2, 30\)\)"):
        head_kernels(model, tiny.make_tokens(40), tiny.make_tokens(30))
    with pytest.raises(ValueError, match="logits of this family are not known: a learned sink"):
        head_kernels(tiny.make_model("gpt_oss"), tiny.make_tokens(40), tiny.make_tokens(40), progress=False)


def test_the_command_writes_table_and_figure_or_says_why_not(tmp_path, capsys):
    settings = ["--sequences", "3", "--length", "64", "--out", str(tmp_path)]
    assert main(["kernels", "zoo:rope@step1000", *settings]) == 0
    assert "median over heads, own kernel: r 0.9" in capsys.readouterr().out
    with (tmp_path / "kernels.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 16
    assert (tmp_path / "kernels.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["kernels", "zoo:learned", *settings]) == 2
    assert "no kernel from weights" in capsys.readouterr().err


def test_a_curve_read_at_a_power_of_alpha_has_that_exponent():
    lag, curves = np.arange(1, 121), []
    for g in (0, 0.33, 1):
        curves.append([np.cos(lag * scale / 9) - lag * scale / 90 for scale in (1, 0.7**g)])
    usual, changed = np.swapaxes(curves, 0, 1)  # (curve, lag) each
    np.testing.assert_allclose(dilation(usual, changed - 2, 0.7), [0, 0.33, 1], atol=0.01)
    np.testing.assert_allclose(dilation(changed, usual, 1 / 0.7), [0, 0.33, 1], atol=0.01)


def test_layers_that_rotate_alike_are_taken_together(made):
    [(longest, (r, explained))] = made.by_rotation().items()
    assert longest == pytest.approx(2 * np.pi * 100 ** (3 / 4))
    assert (r, explained) == tuple(made.median())

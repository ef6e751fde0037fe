import dataclasses

import numpy as np
import pandas as pd
import pytest
from refusals import refusals
from scipy import stats

from nbhelpers.files import write_parquet
from nbhelpers.plots import difference_figure
from nbhelpers.protocol import PAPER
from nbhelpers.stats import student_interval
from nbhelpers.table import AVERAGED, HeadTable, compare

FACTS = {"model": {"name": "tiny"}, "protocol_hash": "0f", "seed": 0, "edges": [0.25, 0.75]}


def make(values, *, provenance=FACTS, averaged=False):
    n_heads = next(iter(values.values())).shape[-1]
    return HeadTable(values, [head // 2 for head in range(n_heads)], provenance, averaged)


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    return {"entropy": rng.normal(2, 1, (6, 3, 4)), "band": rng.random((6, 3, 4))}


def test_the_frame_is_the_slow_loop(values):
    rows = [
        (sequence, layer, head, head // 2, metric, array[sequence, layer, head])
        for metric, array in values.items()
        for sequence in range(6)
        for layer in range(3)
        for head in range(4)
    ]
    columns = ["sequence", "layer", "head", "kv_group", "metric", "value"]
    pd.testing.assert_frame_equal(make(values).frame(), pd.DataFrame(rows, columns=columns), check_exact=True)
    averaged = make(values, averaged=True).frame()
    assert averaged.sequence.unique().tolist() == [AVERAGED, 0, 1, 2, 3, 4]


def test_layers_keep_their_numbers(values, tmp_path):
    facts = FACTS | {"stream": "self", "model": {"name": "tiny", "n_layers": 6}}
    table = dataclasses.replace(make(values, provenance=facts), layers=[0, 2, 3])
    assert table.per_head().layer.unique().tolist() == [0, 2, 3]
    for each in (table, HeadTable.from_parquet(table.to_parquet(tmp_path / "t.parquet"))):
        found = each.by_layer("band")
        np.testing.assert_array_equal(found[:, [0, 2, 3]], values["band"])
        assert found.shape == (6, 6, 4)
        assert np.isnan(found[:, [1, 4, 5]]).all()


def test_values_and_facts_are_copies(values):
    table = make(values)
    values["band"][:] = 0
    table.values("entropy")[:] = 0
    assert table.values("band").all()
    assert table.values("entropy").all()
    assert table.metrics == ["entropy", "band"]
    assert table.with_provenance(seed=3).provenance == FACTS | {"seed": 3}
    assert table.provenance == FACTS


ZEROS = np.zeros((6, 3, 4))
test_bad_input_is_refused = refusals(
    (lambda: HeadTable({"m": np.zeros((2, 4))}, [0, 0, 1, 1]), "one shape"),
    (lambda: HeadTable({"m": ZEROS, "n": ZEROS[..., :3]}, [0, 0, 1, 1]), "one shape"),
    (lambda: HeadTable({}, [0, 0, 1, 1]), "one shape"),
    (lambda: HeadTable({"m": ZEROS}, [0, 0, 1]), "3 groups"),
    (lambda: make({"m": ZEROS}).values("entropie"), "no metric 'entropie'"),
    error=(ValueError, KeyError),
)


def test_per_head_is_the_mean_over_sequences(values):
    wide = make(values).per_head()
    assert list(wide.columns) == ["layer", "head", "kv_group", "entropy", "band"]
    assert wide["head"].tolist() == [0, 1, 2, 3] * 3
    assert wide.kv_group.tolist() == [0, 0, 1, 1] * 3
    for name, array in values.items():
        assert np.allclose(wide[name], array.mean(0).ravel(), rtol=1e-14)


def test_summary_is_over_heads_of_the_mean_over_sequences(values):
    summary = make(values).summary(confidence=0.9)
    assert list(summary.index) == ["entropy", "band"]
    for name, array in values.items():
        heads = array.mean(0).ravel()
        q25, q75 = np.percentile(heads, [25, 75])
        # Of whole sequences: heads stay together.
        interval = student_interval(array.mean((1, 2)), confidence=0.9)
        expected = {"mean": heads.mean(), "low": interval.low, "high": interval.high, "sd": heads.std(ddof=1)}
        expected |= {"iqr": q75 - q25, "q25": q25, "q75": q75, "n_sequences": 6, "n_heads": 12}
        assert summary.loc[name].to_dict() == pytest.approx(expected, rel=1e-12)
        assert list(summary.loc[name].index) == list(expected)


def test_one_sequence_has_no_interval_and_one_head_no_spread(values):
    summary = make({name: array[:1] for name, array in values.items()}).summary()
    assert summary[["low", "high"]].isna().all(axis=None)
    assert summary[["mean", "sd", "iqr"]].notna().all(axis=None)
    averaged = make({"m": np.ones((1, 3, 4))}, averaged=True).summary().loc["m"]
    assert np.isnan([averaged.low, averaged.high]).all()
    assert averaged["mean"] == 1.0
    alone = make({"m": np.arange(5.0)[:, None, None]}).summary().loc["m"]
    assert np.isnan(alone.sd)
    assert alone.n_heads == 1


def test_what_is_not_known_is_left_out(values):
    values["entropy"][:, 1, 2] = np.nan  # a head of which nothing is known
    values["entropy"][4] = np.nan  # a sequence of which nothing is known
    values["band"][:] = np.nan
    summary = make(values).summary()
    assert make(values).per_head().entropy.isna().tolist() == [index == 6 for index in range(12)]
    heads = np.delete(values["entropy"], 4, axis=0).mean(0).ravel()
    heads = heads[~np.isnan(heads)]
    assert summary.loc["entropy", "mean"] == pytest.approx(heads.mean())
    assert summary.loc["entropy", "sd"] == pytest.approx(heads.std(ddof=1))
    assert np.isfinite(summary.loc["entropy", ["low", "high"]].astype(float)).all()
    assert summary.loc["band", ["mean", "low", "high", "sd"]].isna().all()


def test_averaged_signals_get_a_jackknife():
    signals = np.random.default_rng(2).normal(3, 1, (20, 3, 4))
    left_out = [np.delete(signals, i, axis=0).mean(0) for i in range(20)]
    means = np.stack([signals.mean(0), *left_out])  # as analyze lays them out
    table = make({"m": means**2, "signal": means}, averaged=True)
    assert table.averaged
    row = table.summary().loc["m"]
    heads = means[0].ravel() ** 2
    assert (row["mean"], row.sd) == pytest.approx((heads.mean(), heads.std(ddof=1)))
    assert row.n_sequences == 20
    each = (means[1:] ** 2).mean((1, 2))
    half = stats.t.ppf(0.975, 19) * np.sqrt(19 / 20 * ((each - each.mean()) ** 2).sum())
    assert (row.low, row.high) == pytest.approx((heads.mean() - half, heads.mean() + half))
    assert np.allclose(table.per_head().m, heads)
    # of a mean it is the standard error
    row, error = table.summary().loc["signal"], signals.mean((1, 2)).std(ddof=1) / np.sqrt(20)
    assert (row.high - row.low) / 2 == pytest.approx(stats.t.ppf(0.975, 19) * error)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_file_gives_the_table_back(tmp_path, values, averaged):
    values["band"][0, 0, 0], values["entropy"][0, 0, 0] = np.nan, np.inf
    table = make(values, averaged=averaged)
    path = table.to_parquet(tmp_path / "table.parquet")
    back = HeadTable.from_parquet(path)
    pd.testing.assert_frame_equal(back.frame(), table.frame(), check_exact=True)
    assert (back.provenance, back.kv_groups, back.averaged) == (FACTS, [0, 0, 1, 1], averaged)
    pd.testing.assert_frame_equal(pd.read_parquet(path), table.frame())  # anybody can read it
    foreign = write_parquet(table.frame(), tmp_path / "foreign.parquet")
    with pytest.raises(ValueError, match="not of a HeadTable"):
        HeadTable.from_parquet(foreign)


def test_differences_of_two_tables_are_students_and_welchs(values):
    rng = np.random.default_rng(1)
    near = {name: array + rng.normal(0.1, 0.05, array.shape) for name, array in values.items()}
    far = {name: np.concatenate([array, array[:3] + 2]) for name, array in near.items()}
    same = FACTS | {"length": 64, "tokens": "ab"}
    a, b = make(values, provenance=same), make(near, provenance=same)
    longer = make(far, provenance=same | {"tokens": "cd"})
    for other, paired in ((b, True), (longer, False)):
        frame, p_values = compare(a, other), []
        for metric in ("entropy", "band"):
            x, y = (table.values(metric).mean((1, 2)) for table in (a, other))
            found = stats.ttest_rel(x, y) if paired else stats.ttest_ind(x, y, equal_var=False)
            row, ends = frame.loc[metric], found.confidence_interval()
            assert (row.difference, row.low, row.high) == pytest.approx((x.mean() - y.mean(), *ends))
            assert row.p_value == pytest.approx(found.pvalue)
            p_values.append(found.pvalue)
        assert frame.adjusted_p.to_numpy() == pytest.approx(stats.false_discovery_control(p_values))
        assert (frame.paired == paired).all()
    ax = difference_figure(frame)
    assert len(ax.get_yticklabels()) == 2
    assert compare(a, a).p_value.tolist() == [1, 1]  # nothing differs
    for wrong, says in (
        ({"protocol": PAPER.replace(window="boxcar").to_dict()}, "protocols .window is hann and boxcar"),
        ({"length": 32}, "of 64 and 32 tokens"),
    ):
        with pytest.raises(ValueError, match=says):
            compare(a, make(near, provenance=same | wrong))
    with pytest.raises(ValueError, match="these are 6 and 9"):
        compare(a, longer, paired=True)
    with pytest.raises(ValueError, match="no metric is in both"):
        compare(a, make({"other": values["band"]}, provenance=same))
    with pytest.raises(ValueError, match="3 passages in each table, got 2"):
        compare(a, make({"band": values["band"][:2]}, provenance=same))

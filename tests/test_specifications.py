import itertools
from functools import partial

import numpy as np
import pandas as pd
import pytest
from tiny_models import make_model, make_tokens

from nbhelpers import measure, nulls
from nbhelpers import specifications as specs
from nbhelpers.claims.paper import claim
from nbhelpers.specifications import curve, pipeline
from nbhelpers.table import HeadTable

GRID = {
    "signal": ("key_profile", "last_query", "lag_profile"), "sink": ("keep", "drop_renormalise"),
    "order": ("metric then mean", "mean then metric"), "window": ("hann", "boxcar"), "pad": (1, 4),
    "detrend": ("none", "mean"), "sided": ("one", "two"), "dc": ("keep", "drop"), "log_base": (None, 2.0),
    "wavelet": ("haar", "db2"), "mode": ("symmetric", "periodization"), "level": ("shortest", "own"),
    "alignment": ("concatenate-truncate", "interpolate"), "scaled_variant": ("prefix", "stride"),
}  # fmt: skip


@pytest.fixture(scope="module")
def world():
    return specs.observe_variants(make_model("llama"), make_tokens(64, n=3), GRID, progress=False)


@pytest.mark.parametrize("kind", curve.CHOICES)
def test_equal_to_measure(world, kind):
    table = specs.specification_curve(world, GRID, kind)
    protocols = curve.specifications(GRID, kind)
    assert len(table) == len(protocols) == {"spectra": 5 * 2**7, "wavelets": 5 * 3 * 2**4}[kind]
    generator = np.random.default_rng(0)
    for at in generator.choice(len(protocols), 60, replace=False):
        protocol = protocols[at]
        seen = world[protocol.scaled_variant]
        found = measure(seen, protocol)
        if found.averaged:  # without those that leave a sequence out
            found = HeadTable({name: found.values(name)[:1] for name in found.metrics}, found.kv_groups)
        for name, statistic in curve.STATISTICS[kind].items():
            columns = statistic.columns(found, seen.profiles, protocol).reshape(found.n_sequences, -1)
            value = statistic.combine(columns.mean(0))
            near = pytest.approx(value, rel=1e-11, abs=1e-15, nan_ok=True)
            assert table[name].iloc[at] == near, (protocol, name)


def test_a_null_is_made_of_every_variant_and_of_the_whole_once(world):
    permuted = curve.map_variants(world, partial(nulls.permuted, seed=1))
    assert permuted["prefix"].profiles is permuted["stride"].profiles
    for how, seen in world.items():
        expected = seen.map(partial(nulls.permuted, seed=1))
        assert (permuted[how].scaled[0.5].key_profile == expected.scaled[0.5].key_profile).all()


def test_specifications_that_differ_by_rounding_are_counted_once(world):
    grid = specs.load_choices()
    table = specs.specification_curve(world["prefix"], GRID | {"log_base": (None,)})
    assert specs.distinct(table, 64) == 5 * 2**6 - 5 * 2 * 2 * 2, "demeaned and without window, dc is moot"
    assert [len(curve.specifications(grid, kind)) for kind in ("spectra", "wavelets")] == [1440, 1440]


def test_shares_of_variance_in_closed_form():
    options = {"window": (0, 1), "pad": (0, 1, 2), "signal": "ab", "sink": "xy"}
    index = pd.MultiIndex.from_tuples(itertools.product(*options.values()), names=options)
    both = (index.get_level_values(2) == "b") & (index.get_level_values(3) == "y")
    index = index[~both]  # not every pair
    window, pad, signal, sink = (index.get_level_values(name).to_numpy() for name in options)
    pair = np.select([(signal == "a") & (sink == "x"), signal == "b"], [-1.0, 0.0], 1.0)
    added = pd.Series(3.0 * window + pad + pair, index)
    shares = specs.shapley_shares(added)
    variances = {"window": 9 / 4, "pad": 2 / 3, "signal and sink": 2 / 3}
    assert shares.sum() == pytest.approx(1)
    assert shares.to_dict() == pytest.approx({k: v / sum(variances.values()) for k, v in variances.items()})
    times = pd.Series((window - 0.5) * (pad - 1.0), index)  # nothing but what two do together
    expected = {"window": 0.5, "pad": 0.5, "signal and sink": 0}
    assert specs.shapley_shares(times).to_dict() == pytest.approx(expected)
    with pytest.raises(ValueError, match="17 of 17 are there"):
        specs.shapley_shares(added.iloc[1:])


def test_the_joint_test_is_exact():
    generator = np.random.default_rng(0)
    common = generator.standard_normal(20)  # readings of one data set go together
    draws = pd.DataFrame(common + 0.3 * generator.standard_normal((60, 20)))
    far = specs.joint_inference(pd.Series(np.full(60, 9.0)), draws, above=True)
    assert far == {"share": 1.0, "usual": 0.0, "p_value": 1 / 21, "floor": 1 / 21}
    assert specs.joint_inference(pd.Series(np.full(60, 9.0)), draws, above=False)["p_value"] == 1
    rejected = []
    for _ in range(200):
        common = generator.standard_normal(20)
        every = common + 0.3 * generator.standard_normal((30, 20))
        found = specs.joint_inference(pd.Series(every[:, 0]), pd.DataFrame(every[:, 1:]), above=True)
        rejected.append(found["p_value"] <= 0.1)
    assert 0.03 <= np.mean(rejected) <= 0.17


def test_bad_grids(tmp_path):
    for text, message in (
        ("window: [hann, bartlett]", "window of Protocol must be one of 'hann', 'boxcar'; got 'bartlett'"),
        ("edges: [0.1]", "'edges' is not a choice of a specification; those are signal, sink"),
        ("[hann]", "holds no fields"),
        ("signal: lag_profile\nsink: drop_renormalise", "no specification of spectra is left"),
        ("pad: &a [1]\nwindow: *a", "line 2 repeats"),
        ("window: [hann", "line 1"),
    ):
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            specs.load_choices(file)


def test_worlds_of_a_model():
    grid = specs.load_choices() | {"wavelet": ("db2",), "pad": (1,), "signal": ("key_profile",)}
    sizes = {"n_sequences": 3, "length": 64, "n_draws": 2}
    worlds = specs.measure_worlds("zoo:rope", "moby-dick", grid, **sizes)
    assert len(worlds.curves) == 6
    entropy, rho = worlds.column("spectral entropy"), worlds.column("position-spectrum correlation")
    assert len(entropy) == 3 * len(rho) == 3 * 64
    uniform = worlds.curves["N0 uniform"]["spectra"]["position-spectrum correlation"]
    assert uniform.isna().all(), "one entropy for all heads"
    drawn = worlds.drawn("spectral entropy")
    assert drawn.index.equals(entropy.index)
    bits, nats = (drawn.xs(base, level="log_base") for base in ("2", "e"))
    assert (bits / nats - 1 / np.log(2)).abs().max().max() < 2e-16 * 8
    held = specs.claims_hold(worlds)
    assert (held["C6"]["zoo:rope"] == rho["zoo:rope"].between(*claim("C6").criteria[0].claimed)).all()
    assert len(worlds.frame()) == 6 * sum(len(c) * c.shape[1] for c in worlds.curves["zoo:rope"].values())
    fig = specs.curve_figure(worlds, "spectral entropy", claimed=(2.5, 3), marked=entropy.index[5])
    assert fig.axes[0].get_ylabel() == "spectral entropy"
    box = specs.explore(worlds, "S(0.5)")
    before, control = box.picture.value, next(c for c in box.controls.values() if len(c.options) > 1)
    control.value = control.options[1][1]
    assert box.picture.value != before


def test_the_reading_that_made_a_row_is_found_again():
    choices = {"signal": ("key_profile", "last_query"), "window": ("hann", "boxcar"), "dc": ("keep", "drop")}
    choices |= {"detrend": ("none", "mean"), "scaled_variant": ("prefix", "stride", "random")}
    grid = {"lengths": [32, 64], "tolerance": 0.03, "choices": choices}
    model = specs.untrained_pythia(256, layers=2, seed=3)
    search = specs.search_readings(model, make_tokens(64, n=3), grid=grid, progress=False)
    spectra, wavelets = (search.readings[kind] for kind in ("spectra", "wavelets"))
    whole = specs.load_choices(choices)
    seen = specs.observe_variants(model, make_tokens(64, n=3)[:, :32], whole, progress=False)
    for kind, read in search.readings.items():  # corners of what was run, and each run by itself
        alone = specs.specification_curve(seen, whole, kind)[list(read)]
        np.testing.assert_allclose(read.loc[32], alone, rtol=1e-4, atol=1e-7)
    place = {"length": 32, "signal": "last_query"}
    levels = (*place, "window", "dc", "detrend")
    row = spectra.xs((32, "last_query", "boxcar", "keep", "none"), level=levels).iloc[0]
    other = wavelets.xs((32, "last_query", "stride"), level=(*place, "scaled_variant")).iloc[0]
    target = {column: {**row, **other}[name] for name, column in pipeline.PRINTED.items()}
    belief = search.posterior(target)
    found = {name: share.index[0] for name, share in belief.items() if share.iloc[0] > 0.9}
    expected = {"window": "boxcar", "dc": "keep", "detrend": "none", "DC line": "in"}
    assert (place | expected | {"scaled_variant": "stride"}).items() <= found.items()
    assert all(share.sum() == pytest.approx(1) for share in belief.values())
    assert search.distances(target)["spectra"].min() == 0
    assert search.better_targets(target) == {"spectra": 0, "wavelets": 0}
    assert search.better_targets({name: 1.3 * value for name, value in target.items()})["spectra"] > 0
    by_length = specs.sensitivities_by_length(model, make_tokens(64, n=3), [32, 64])
    for n, row in by_length.iterrows():
        known = wavelets.xs((n, "key_profile", "prefix"), level=("length", "signal", "scaled_variant"))
        assert row.to_numpy() == pytest.approx(known[list(row.index)].to_numpy()[0], rel=1e-5)
    with pytest.raises(ValueError, match="no reading comes near"):
        search.posterior(dict.fromkeys(target, 1e6))

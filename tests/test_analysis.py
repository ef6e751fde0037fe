from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import uniform_profile
from slow_metrics import slow_metrics
from tiny_models import eager_attention, make_model, make_tokens, make_uniform
from tolerances import assert_metric

from nbhelpers import nulls
from nbhelpers.analysis import analyze, measure, observe
from nbhelpers.hooks import store
from nbhelpers.hooks.capture import capture
from nbhelpers.hooks.reductions import RowMetrics
from nbhelpers.inputs.models import describe
from nbhelpers.inputs.text import scaled_variant
from nbhelpers.protocol import PAPER
from nbhelpers.table import AVERAGED, HeadTable

LENGTH = 64


def run(model, ids, protocol=PAPER, **options):
    return analyze(model, ids, protocol, progress=False, **options)


def assert_table(table, signals, variants, **options):
    slow = {}
    for at in np.ndindex(signals.shape[:3]):
        found = slow_metrics(signals[at], {f: v[at] for f, v in variants.items()}, **options)
        for name, value in found.items():
            slow.setdefault(name, np.zeros(signals.shape[:3]))[at] = value
    if table.provenance["protocol"]["sink"] != "keep":
        slow.pop("sink_mass")
    for name, expected in slow.items():
        assert_metric(table.values(name), expected, name)
    assert set(table.metrics) - set(slow) == {"reconstruction_error", "local_mass_16"}


def prefixes(ids):
    return {factor: ids[:, : int(factor * ids.shape[1])] for factor in (0.5, 0.25)}


def signals(model, ids, name="key_profile"):
    attn = eager_attention(model, ids)
    if name == "lag_profile":
        return np.stack([np.trace(attn, -lag, -2, -1) for lag in range(ids.shape[1])], -1) / ids.shape[1]
    return attn.mean(-2) if name == "key_profile" else attn[..., -1, :]


def local_mass(model, ids):
    attn = eager_attention(model, ids)
    return (np.tril(attn, 16) - np.tril(attn, -17)).sum(-1).mean(-1)


@pytest.mark.parametrize("signal", ["key_profile", "last_query", "lag_profile"])
def test_every_signal_against_the_definitions(llama, signal):
    ids, first = make_tokens(LENGTH, n=3), "self_mass" if signal == "lag_profile" else "sink_mass"
    table = run(llama, ids, PAPER.replace(signal=signal))
    variants = {factor: signals(llama, part, signal) for factor, part in prefixes(ids).items()}
    assert_table(table, signals(llama, ids, signal), variants, first=first)
    assert_metric(table.values("local_mass_16"), local_mass(llama, ids))


def test_lag_zero_of_an_encoder_is_in_the_middle():
    model, ids = make_model("bert"), make_tokens(LENGTH)
    table = run(model, ids, PAPER.replace(signal="lag_profile"))
    assert_metric(table.values("self_mass"), np.trace(eager_attention(model, ids), 0, -2, -1) / LENGTH)


def test_every_row(llama):
    ids, protocol = make_tokens(LENGTH), PAPER.replace(signal="rows")
    table = run(llama, ids, protocol)
    profiles = capture(llama, ids, RowMetrics(protocol), progress=False)
    names = profiles.coordinates["row_metrics"]
    assert table.metrics == [*names, "local_mass_16"]
    for k, name in enumerate(names):
        assert np.array_equal(table.values(name), profiles.row_metrics[..., k].double().numpy())
    attn = eager_attention(llama, ids)
    entropies = -np.where(attn > 0, attn * np.log(np.maximum(attn, 1e-300)), 0).sum(-1).mean(-1)
    assert_metric(table.values("positional_entropy"), entropies)


@pytest.mark.parametrize("signal", ["key_profile", "last_query"])
def test_without_the_sink(llama, signal):
    ids = make_tokens(LENGTH)
    table = run(llama, ids, PAPER.replace(signal=signal, sink="drop_renormalise", factors=()))
    kept = signals(llama, ids, signal)[..., 1:]
    assert_table(table, kept / kept.sum(-1, keepdims=True), {})
    assert "sink_mass" not in table.metrics


@pytest.mark.parametrize("how", ["stride", "random"])
def test_other_ways_to_draw_the_variants(llama, how):
    ids = make_tokens(LENGTH)
    table = run(llama, ids, PAPER.replace(scaled_variant=how), seed=7)
    variants = {f: signals(llama, scaled_variant(ids, f, how=how, seed=7)) for f in (0.5, 0.25)}
    assert_table(table, signals(llama, ids), variants)


def test_mean_then_metric(llama):
    ids = make_tokens(LENGTH, n=4)
    table = run(llama, ids, PAPER.replace(order="mean then metric"))
    by_factor = {f: signals(llama, part) for f, part in ({1: ids} | prefixes(ids)).items()}
    # First the mean over sequences, then each mean with one sequence left out.
    drawn = [slice(None), *(np.arange(4) != i for i in range(4))]
    averages = {f: np.stack([s[rows].mean(0) for rows in drawn]) for f, s in by_factor.items()}
    assert_table(table, averages.pop(1), averages)
    assert table.frame().sequence.unique().tolist() == [AVERAGED, 0, 1, 2, 3]
    assert table.summary().n_sequences.unique().tolist() == [4]
    assert_metric(table.values("local_mass_16")[0], local_mass(llama, ids).mean(0))


@pytest.mark.parametrize("n", [32, 128])
def test_uniform_causal_attention_has_the_closed_form(n):
    table = run(make_uniform(), make_tokens(n, n=1))
    exact, half, quarter = (uniform_profile(m) for m in (n, n // 2, n // 4))
    for name, value in slow_metrics(exact, {0.5: half, 0.25: quarter}).items():
        assert_metric(table.values(name), np.full((1, 2, 4), value), name)


def test_nulls_stand_beside_the_model(llama, tmp_path):
    ids, names = make_tokens(LENGTH, 3), ["uniform", "permuted"]
    table = run(llama, ids, null=names, seed=3)
    summary = table.summary()
    assert list(summary)[:5] == ["mean", "low", "high", "uniform", "uniform_low"]
    exact, half, quarter = (uniform_profile(m) for m in (LENGTH, LENGTH // 2, LENGTH // 4))
    for metric, value in slow_metrics(exact, {0.5: half, 0.25: quarter}).items():
        of_null = summary.loc[metric, ["uniform", "uniform_low", "uniform_high"]].to_list()
        assert_metric(of_null, [value] * 3, metric)
    seen = observe(llama, ids, seed=3, progress=False)
    permuted = measure(seen.map(partial(nulls.permuted, seed=3)))
    ours = permuted.summary()[["mean", "low", "high"]]
    assert (summary[["permuted", "permuted_low", "permuted_high"]].to_numpy() == ours.to_numpy()).all()
    back = HeadTable.from_parquet(table.to_parquet(tmp_path / "t.parquet"))
    pd.testing.assert_frame_equal(back.summary(), summary)
    by_hand = run(llama, ids, seed=3).summary(null=permuted)
    assert list(by_hand)[3:6] == ["null", "null_low", "null_high"]
    assert (by_hand[["null", "null_low", "null_high"]].to_numpy() == ours.to_numpy()).all()
    with pytest.raises(ValueError, match="under another protocol"):
        table.summary(null=measure(seen, PAPER.replace(window="boxcar")))
    with pytest.raises(ValueError, match="null of analyze must be one of 'uniform'"):
        run(llama, ids, null="flat")
    with pytest.raises(ValueError, match="has no null"):
        run(llama, ids, PAPER.replace(signal="rows"), null="uniform")


DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}, "positions": 24}


def scale_by_length(module, args, options):
    """Let scores depend on how long the text is, which nothing in a configuration says."""
    module.scaling = 0.05 * options["hidden_states"].shape[1] ** 0.5


@pytest.mark.parametrize(
    ("family", "changes", "hook", "n_read"),  # tokens read, in texts of whole length
    [
        *((family, {}, None, 3 + 0.75) for family in ("llama", "gpt2", "bloom", "mistral")),
        ("llama", {}, scale_by_length, 3 + 0.5 + 3 * 0.75),
        ("llama", DYNAMIC, None, 3 * 1.75),
        ("bert", {}, None, 3 * 1.75),
    ],
)
def test_prefixes_are_seen_in_the_whole_where_they_are_part_of_it(family, changes, hook, n_read):
    model, ids = make_model(family, **changes), make_tokens(LENGTH, 3)
    for module in model.modules() if hook else ():
        if hasattr(module, "scaling"):
            module.register_forward_pre_hook(hook, with_kwargs=True)
    assert describe(model).causal == (family != "bert")  # which a short probe says, the first time
    read, beyond = [], {"beyond": bool(changes), "progress": False}
    embedding = model.get_input_embeddings()
    count = embedding.register_forward_hook(lambda _, args, out: read.append(args[0].numel()))
    seen = observe(model, ids, chunk=31, **beyond)  # a block begins at the last row of a prefix
    count.remove()
    assert sum(read) == n_read * LENGTH
    for n, part in ((LENGTH, seen.profiles), *((int(a * LENGTH), part) for a, part in seen.scaled.items())):
        alone = capture(model, ids[:, :n], part.arrays.keys(), **beyond)
        for field in ("axes", "coordinates", "kv_groups", "layers"):
            assert getattr(part, field) == getattr(alone, field), field
        assert part.n_real.tolist() == alone.n_real.tolist()
        for fact in ("length", "reductions", "n_sequences"):
            assert part.provenance[fact] == alone.provenance[fact], fact
        for name, array in alone.arrays.items():
            torch.testing.assert_close(part[name], array, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def observed(llama):
    return observe(llama, make_tokens(LENGTH, 3), corpus="made up", seed=3, progress=False)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"signal": "last_query", "window": "boxcar", "mode": "zero"},
        {"signal": "lag_profile", "factors": (0.5,)},
        {"sink": "drop_renormalise", "order": "mean then metric"},
    ],
)
def test_one_observation_gives_what_analyze_gives(llama, observed, changes):
    protocol = PAPER.replace(**changes)
    table = measure(observed, protocol)
    expected = run(llama, make_tokens(LENGTH, 3), protocol, corpus="made up", seed=3)
    pd.testing.assert_frame_equal(table.frame(), expected.frame())
    assert table.provenance == expected.provenance


def test_a_table_says_where_it_comes_from(observed):
    table = measure(observed)
    assert table.kv_groups == [0, 0, 1, 1]
    facts = table.provenance
    expected = {"corpus": "made up", "seed": 3, "length": LENGTH, "n_sequences": 3, "device": "cpu"}
    expected |= {"dtype": "float32", "protocol_hash": PAPER.hash, "protocol": PAPER.to_dict()}
    assert {name: facts[name] for name in expected} == expected
    assert facts["model"]["family"] == "llama"
    assert {"torch", "transformers", "nbhelpers"} <= set(facts["versions"])


def test_a_rerun_gives_the_identical_table(llama, tmp_path, monkeypatch):
    ids, protocol = make_tokens(LENGTH), PAPER.replace(scaled_variant="random")
    hashed, fingerprint = [], store.weight_fingerprint
    monkeypatch.setattr(store, "weight_fingerprint", lambda model: hashed.append(model) or fingerprint(model))
    tables = [run(llama, ids, protocol, seed=3, **options) for options in ({}, {}, {"cache": tmp_path})]
    other_seed = run(llama, ids, protocol, seed=4)
    monkeypatch.setattr("nbhelpers.hooks.capture._run_batch", None)  # the model must not be run again
    tables.append(run(llama, ids, protocol, seed=3, cache=tmp_path))
    assert hashed == [llama] * 2, "once for the three captures of an observation"
    for other in tables[1:]:
        pd.testing.assert_frame_equal(other.frame(), tables[0].frame(), check_exact=True)
        assert other.provenance == tables[0].provenance
    assert (other_seed.values("scale_sensitivity_0.5") != tables[0].values("scale_sensitivity_0.5")).any()
    assert np.array_equal(other_seed.values("spectral_entropy"), tables[0].values("spectral_entropy"))


def test_what_was_not_observed_is_refused(observed):
    for changes, message in (
        ({"signal": "rows"}, "analyze"),
        ({"factors": (0.5, 0.125)}, "0.125"),
        ({"scaled_variant": "stride"}, "prefix"),
        ({"local_distance": 7}, "local_distance=7"),
        ({"signal": "lag_profile", "sink": "drop_renormalise"}, "lags, not keys"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(observed, PAPER.replace(**changes))


def test_what_cannot_be_measured_is_refused(llama):
    for length, changes, options, message in (
        (23, {}, {}, "5 tokens"),
        (3, {}, {}, "of 3 tokens"),
        (24, {"signal": "rows", "order": "mean then metric"}, {}, "use order"),
        (24, {}, {"attention_mask": torch.ones(2, 24)}, "without attention_mask"),
        (257, {}, {}, "257 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            run(llama, make_tokens(length), PAPER.replace(**changes), **options)
    assert run(llama, make_tokens(24)).metrics  # the shortest that can be measured

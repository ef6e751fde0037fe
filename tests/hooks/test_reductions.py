import functools
import itertools

import numpy as np
import pytest
import tiny_models as tiny
import torch
from slow_metrics import entropy, slow_row_metrics
from tolerances import assert_metric

from nbhelpers.hooks import reductions
from nbhelpers.hooks.reductions import LocalMass, OfPrefix, Reduction, RowMetrics, resolve
from nbhelpers.protocol import PAPER

LENGTH = 32
PROFILE = 1e-6  # of the largest entry
DROPPED = PAPER.replace(sink="drop_renormalise")
FLAT = {"window": "boxcar", "detrend": "mean"}
PROTOCOLS = {
    "paper": PAPER,
    "sink": DROPPED,
    "wide": PAPER.replace(pad=2, sided="two", log_base=2, mode="zero", level="own"),
    "flat": PAPER.replace(**FLAT, wavelet="haar", mode="periodization", edges=(0.1, 0.3, 0.6)),
    "sink2": DROPPED.replace(window="boxcar", pad="next_pow2", log_base=10, level="own"),
}


@functools.cache
def make_case(family, side=None):
    model, ids = tiny.make_model(family), tiny.make_tokens(LENGTH)
    mask = None if side is None else tiny.make_padding(LENGTH, side)
    return model, ids, mask, tiny.eager_attention(model, ids, mask)


CASES = [("llama", side) for side in (None, "left", "right")]
CASES += [("bert", None), ("bert", "right"), ("bloom", "left")]


def slow(attn, mask, function):
    mask = np.ones((len(attn), attn.shape[-1])) if mask is None else mask
    real = [np.flatnonzero(row).tolist() for row in mask]
    parts = [tiny.over_heads(attn[[s]], lambda a, s=s: function(a, real[s])) for s in range(len(attn))]
    return np.concatenate(parts)


def assert_profile(got, expected, *, largest=None):
    got = got.double().numpy()
    assert got.shape == expected.shape
    assert abs(got - expected).max() <= PROFILE * (largest or abs(expected).max())


def reduce(case, reduction, **options):
    model, ids, mask, _ = case
    return tiny.capture_quietly(model, ids, reduction, attention_mask=mask, **options)


def slow_lags(a, real, causal):
    lags = dict.fromkeys(range(0 if causal else 1 - LENGTH, LENGTH), 0.0)
    for i, j in itertools.product(real, range(LENGTH)):
        if a[i, j] > 0:
            lags[i - j] += a[i, j] / len(real)
    return list(lags.values())


def slow_mass(a, real):
    n = range(LENGTH)
    return [sum(a[i, j] for i in real for j in n if abs(i - j) <= d) / len(real) for d in DISTANCES]


def slow_stationary(a, real, causal):
    late = [i for i in real if i >= LENGTH - LENGTH // 2]
    return [sum(a[i, i - d] for i in late) / max(len(late), 1) for d in range(LENGTH // 2)]


DISTANCES = [0, 1, 2, 4, 8, 11, 16, 100]
LOOPS = {
    "key_profile": lambda a, real, causal: sum(a[i] for i in real) / len(real),
    "last_query": lambda a, real, causal: a[real[-1]],
    "lag_profile": slow_lags,
    "stationary_profile": slow_stationary,
    "local_mass": lambda a, real, causal: slow_mass(a, real),
    "row_entropy": lambda a, real, causal: sum(entropy(a[i]) for i in real) / len(real),
}


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("case", CASES)
def test_equal_to_a_loop(case, name):
    _, _, mask, attn = make_case(*case)
    causal = case[0] != "bert"
    got = reduce(make_case(*case), LocalMass((11, 100)) if name == "local_mass" else name, chunk=3)
    expected = slow(attn, mask, lambda a, real: LOOPS[name](a, real, causal))
    if name == "row_entropy":
        assert_metric(got[name], expected)
    else:
        assert_profile(got[name], expected, largest=attn.max() if name == "last_query" else None)
    own = {
        "lag_profile": range(0 if causal else 1 - LENGTH, LENGTH),
        "row_entropy": [],
        "local_mass": DISTANCES,
    }
    own["stationary_profile"] = range(LENGTH // 2)
    assert got.coordinates[name] == list(own.get(name, range(LENGTH)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[4], CASES[5]])
def test_row_metrics(case, protocol):
    protocol = PROTOCOLS[protocol]
    got = reduce(make_case(*case), RowMetrics(protocol), chunk=3)
    expected = slow(*make_case(*case)[:1:-1], lambda a, real: slow_row_metrics(a, real, protocol))
    assert_metric(got.row_metrics, expected)
    first = ["spectral_entropy", "frequency_selectivity", *protocol.band_names, "positional_entropy"]
    assert got.coordinates["row_metrics"][: len(first)] == first


def test_one_real_query_in_the_second_half_is_the_stationary_profile():
    model, ids, _, attn = make_case("llama")
    mask = torch.ones_like(ids)
    mask[:, LENGTH // 2 + 1 :] = 0
    got = tiny.capture_quietly(model, ids, "stationary_profile", attention_mask=mask).stationary_profile
    expected = attn[..., LENGTH // 2, 1 : LENGTH // 2 + 1][..., ::-1]  # (sequence, layer, head, lag)
    assert_profile(got, expected)


@pytest.mark.parametrize("name", [*LOOPS, "lag_logits", "row_metrics"])
def test_a_prefix_is_what_it_is_alone(name):
    model, ids, _, _ = make_case("llama")
    (reduction,) = resolve(name)
    whole = tiny.capture_quietly(model, ids, OfPrefix(reduction, 13), chunk=3)  # 13: a block's first row
    alone = tiny.capture_quietly(model, ids[:, :13], reduction, chunk=3, fused=False)
    made = f"{name} of 13"
    assert whole.axes[made] == alone.axes[name]
    assert whole.coordinates[made] == alone.coordinates[name]
    torch.testing.assert_close(whole[made], alone[name], atol=1e-5, rtol=0, equal_nan=True)


@pytest.mark.parametrize("case", [("bert",), ("llama", "left")])
def test_prefixes_are_of_causal_attention_without_padding(case):
    with pytest.raises(ValueError, match="key_profile of 5 tokens needs causal attention without padding"):
        reduce(make_case(*case), OfPrefix(resolve("key_profile")[0], 5))


def test_a_sharp_head_has_its_entropy_without_negative_rounding():
    model, ids = tiny.make_model("llama", std=3.0), tiny.make_tokens(30)
    got, attn = tiny.capture_quietly(model, ids, "row_entropy"), tiny.captured_matrix(model, ids)
    assert attn[..., -1, :].max() > 0.99
    assert_metric(got.row_entropy, tiny.over_heads(attn, lambda a: np.mean([entropy(row) for row in a])))


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_float64_models_are_reduced_in_float64(family):
    model, ids = tiny.make_model(family).double(), tiny.make_tokens(LENGTH)
    got = tiny.capture_quietly(model, ids, "key_profile").key_profile
    assert_profile(got, tiny.eager_attention(model, ids).mean(-2))


def test_reductions_are_found_by_name_or_given(monkeypatch):
    monkeypatch.setattr(reductions, "REDUCTIONS", dict(reductions.REDUCTIONS))

    @reductions.register_reduction
    class Mass(Reduction):
        name = "mass"

        def update(self, state, block, layout):
            state += block.row_sum(block.attn.sum(-1))

    mass = tiny.capture_quietly(tiny.make_model(), tiny.make_tokens(20, n=3), ["mass"]).mass
    torch.testing.assert_close(mass, torch.ones(3, 2, 4))
    for given, name in ((None, "key_profile"), ("row_metrics", "row_metrics"), (RowMetrics(), "row_metrics")):
        assert [reduction.name for reduction in resolve(given)] == [name]
    twice = ["row_metrics", RowMetrics(PROTOCOLS["wide"])]
    for wrong, said in ((["key_profil"], "key_profil'"), ([], "must be 1 or more"), (twice, "twice")):
        with pytest.raises(ValueError, match=said):
            resolve(wrong)


@pytest.mark.parametrize("name", ["lag_profile", "local_mass", "stationary_profile"])
def test_lags_are_refused_in_cross_attention(name):
    ids, decoder_ids = tiny.make_tokens(20), tiny.make_tokens(9, seed=2)
    with pytest.raises(ValueError, match=f"{name} needs .*9 queries.*20 keys"):
        tiny.capture_quietly(tiny.make_model("t5"), ids, name, stream="cross", decoder_ids=decoder_ids)


def test_dropping_the_sink_one_row_at_a_time():  # the first row has no key left
    parts, whole = (reduce(make_case("llama"), RowMetrics(PROTOCOLS["sink"]), chunk=c) for c in (1, 1000))
    assert_metric(parts.row_metrics, whole.row_metrics)


def test_row_entropy_where_attention_sinks_take_a_share():
    model, ids, mask = tiny.make_model("gpt_oss"), tiny.make_tokens(20), tiny.make_padding(20, "left")
    got = tiny.capture_quietly(model, ids, ["row_entropy", tiny.Whole()])
    attn = got.whole.unflatten(-1, (20, 20)).double().numpy()
    assert_metric(got.row_entropy, tiny.over_heads(attn, lambda a: np.mean([entropy(row) for row in a])))
    assert tiny.capture_quietly(model, ids, "row_entropy", attention_mask=mask).row_entropy.isfinite().all()

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import signal as scipy_signal
from tolerances import assert_close

from nbhelpers import Profiles, nulls
from nbhelpers.analysis import Observation, measure
from nbhelpers.kernels import spectra
from nbhelpers.kernels.entropy import effective_support, positional_entropy
from nbhelpers.nulls import models
from nbhelpers.protocol import SIGNALS

SHAPE = (2, 3, 4)  # sequence, layer, head
N = 96
OF_PROFILES = [null for null in nulls.NULLS if null.made_of == "profiles"]


def attention(n, *, causal=True, seed=0, sharpness=2.0, shape=SHAPE):
    """Random attention with a sink, float64, (sequence, layer, head, query, key)."""
    z = torch.randn(*shape, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = sharpness * z
    z[..., 0] += 2
    if causal:
        z = z.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
    return z.softmax(-1)


def make(n=40, *, causal=True, **options):
    attn = attention(n, causal=causal, **options)
    return Profiles.from_attention(attn, causal=causal, kv_groups=[0, 0, 1, 1])


def observe(n, *, causal=True, shape=SHAPE):
    parts = {a: make(int(a * n), causal=causal, seed=k, shape=shape) for k, a in enumerate((1, 0.5, 0.25))}
    return Observation(parts.pop(1), parts)


def only(profiles, *names):
    fields = {field: getattr(profiles, field) for field in ("arrays", "axes", "coordinates")}
    kept = {field: {name: held[name] for name in names} for field, held in fields.items()}
    return dataclasses.replace(profiles, **kept)


def sorted_values(profiles, name):
    return profiles[name].double().sort(-1).values


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("null", OF_PROFILES, ids=lambda null: null.name)
def test_a_null_has_the_form_of_its_profiles(null, causal):
    given = make(causal=causal)
    before = {name: array.clone() for name, array in given.arrays.items()}
    made = null.function(given, seed=1)
    assert {name: a.shape for name, a in made.arrays.items()} == {n: a.shape for n, a in given.arrays.items()}
    assert (made.axes, made.coordinates, made.kv_groups) == (given.axes, given.coordinates, given.kv_groups)
    assert made.provenance["null"]["name"].startswith(null.number)
    for name in SIGNALS:
        assert made[name].dtype == torch.float64
        assert_close(made[name].sum(-1), torch.ones(SHAPE, dtype=torch.float64))
        assert made[name].min() >= 0
    assert all(torch.equal(given[name], array) for name, array in before.items()), "the input was changed"
    apart = torch.tensor(made.coordinates["lag_profile"]).abs()
    for place, distance in enumerate(made.coordinates["local_mass"]):
        assert_close(made.local_mass[..., place], made.lag_profile[..., apart <= distance].sum(-1))


@pytest.mark.parametrize("null", OF_PROFILES, ids=lambda null: null.name)
def test_a_null_is_measured_at_every_length_and_saved_and_its_seed_decides(null, tmp_path):
    observation = observe(64)
    first, second = (measure(observation.map(lambda p: null.function(p, seed=3))) for _ in range(2))
    assert first.frame().value.notna().all()
    assert first.frame().equals(second.frame())
    one, other = (null.function(make(), seed=seed) for seed in (0, 1))
    assert Profiles.load(one.save(tmp_path / "null.safetensors")).provenance == one.provenance
    assert [torch.equal(one[name], other[name]) for name in SIGNALS] == [not null.drawn] * len(SIGNALS)


def test_each_profile_has_a_stream_of_its_own():
    given = only(make(8), "key_profile", "last_query")
    made = nulls.permuted(dataclasses.replace(given, arrays=dict.fromkeys(given.arrays, given.key_profile)))
    assert not torch.equal(made.key_profile, made.last_query)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n", [2, 7, 40])
def test_uniform_is_the_uniform_matrix(n, causal):
    attn = torch.ones(n, n, dtype=torch.float64)
    attn = attn.tril() if causal else attn
    attn = (attn / attn.sum(-1, keepdim=True)).expand(*SHAPE, n, n)
    expected = Profiles.from_attention(attn, causal=causal)
    made = nulls.uniform(make(n, causal=causal))
    for name in expected.arrays:
        assert_close(made[name], expected[name])


@pytest.mark.parametrize("null", [nulls.permuted, nulls.phase_surrogate, nulls.power_law])
def test_values_are_kept_exactly_and_moved(null):
    given = make()
    made = null(given, seed=1)
    for name in SIGNALS:
        assert torch.equal(sorted_values(made, name), sorted_values(given, name))
        assert (made[name] != given[name]).any(-1).all(), "a profile stayed as it was"
        assert_close(positional_entropy(made[name]), positional_entropy(given[name]))
        assert_close(effective_support(made[name]), effective_support(given[name]))


def test_phase_surrogates_keep_the_spectrum_and_iid_softmax_the_effective_support():
    given = make(64, sharpness=1.0)
    for name in SIGNALS:
        near, far = (null(given)[name] for null in (nulls.phase_surrogate, nulls.permuted))
        miss = spectral_miss(near, given[name].double()).mean()
        assert miss < min(0.2, 0.5 * spectral_miss(far, given[name].double()).mean())
    given = make()
    made = nulls.iid_softmax(given, seed=1)
    for name in SIGNALS:
        ratio = effective_support(made[name]) / effective_support(given[name])
        assert (ratio - 1).abs().max() < 1e-9
        assert not torch.allclose(sorted_values(made, name), sorted_values(given, name))


@pytest.mark.parametrize("causal", [True, False])
def test_exponential_keeps_the_mean_distance_and_exponential_attention_is_its_own_null(causal):
    given = make(causal=causal)
    lags = torch.tensor(given.coordinates["lag_profile"]).abs()
    before, after = ((p.lag_profile * lags).sum(-1) for p in (given, nulls.exponential(given)))
    assert_close(after, before, dtype=torch.float32)

    apart = (torch.arange(20.0, dtype=torch.float64)[:, None] - torch.arange(20.0)).abs()
    z = torch.tensor([-1.0, -0.2, 0.0, 0.3], dtype=torch.float64)[:, None, None] * apart  # (head, query, key)
    z = z.masked_fill(torch.ones(20, 20, dtype=torch.bool).triu(1), -torch.inf) if causal else z
    given = Profiles.from_attention(z.softmax(-1).expand(*SHAPE, 20, 20), causal=causal)
    made = nulls.exponential(given)
    for name in given.arrays:
        assert (made[name] - given[name]).abs().max() < 1e-9


def test_permuted_heads_stay_in_their_layer_and_move_alike_everywhere():
    given = make()
    made, shorter = (nulls.permuted_heads(each, seed=1) for each in (given, make(20)))
    orders = []
    for layer in range(SHAPE[1]):
        old, new = given.key_profile[0, layer], made.key_profile[0, layer]  # (head, key)
        order = [next(k for k, head in enumerate(old) if torch.equal(head, moved)) for moved in new]
        assert sorted(order) == list(range(SHAPE[2]))
        for name in given.arrays:
            assert torch.equal(made[name][:, layer], given[name][:, layer, order])
        assert torch.equal(shorter.key_profile[:, layer], make(20).key_profile[:, layer, order])
        orders.append(order)
    assert orders[0] != orders[1] or orders[0] != orders[2], "every layer has an order of its own"
    with pytest.raises(ValueError, match="1 head"):
        nulls.permuted_heads(make(shape=(1, 1, 1)))


def test_without_sink():
    given, made = make(), nulls.without_sink(make())
    for name in ("key_profile", "last_query"):
        assert not made[name][..., 0].any()
        rest = given[name][..., 1:]
        assert_close(made[name][..., 1:], rest / rest.sum(-1, keepdim=True))
    assert torch.equal(made.lag_profile, given.lag_profile)
    assert torch.equal(made.local_mass, given.local_mass)
    all_on_sink = Profiles.from_attention(torch.eye(6)[:1].expand(1, 1, 2, 6, 6), causal=True)
    with pytest.raises(ValueError, match="everything on key 0"):
        nulls.without_sink(all_on_sink)
    with pytest.raises(ValueError, match="key_profile or"):
        nulls.without_sink(only(given, "lag_profile"))


@pytest.mark.parametrize("null", [n for n in OF_PROFILES if n.number != "N8"], ids=lambda null: null.name)
def test_profiles_without_a_null_are_refused(null):
    given = make(8)
    axes = ("sequence", "layer", "head")
    rows = {"arrays": {"row_entropy": torch.zeros(SHAPE)}, "axes": {"row_entropy": axes}}
    nine = given.coordinates | {"last_query": list(range(9))}
    for refused, told in (
        (make(1), "1 token"),
        (dataclasses.replace(given, n_real=torch.tensor([8, 5])), "without padding"),
        (only(given, "key_profile", "local_mass"), "needs lag_profile"),
        (dataclasses.replace(given, **rows), "row_entropy"),
        (dataclasses.replace(given, coordinates=nine), "'last_query': 9"),
    ):
        with pytest.raises(ValueError, match=told):
            null.function(refused)
    if null.number in ("N0", "N4"):
        with pytest.raises(ValueError, match="needs lag_profile"):
            null.function(only(given, "key_profile"))


def test_every_null_is_in_the_table_and_has_a_number():
    numbers = list(dict.fromkeys(null.number for null in nulls.NULLS))
    assert numbers == [f"N{k}" for k in range(len(numbers))]
    assert all(getattr(nulls, null.name.replace(" ", "_")) is null.function for null in OF_PROFILES)


@pytest.mark.parametrize("function", [nulls.shuffled_tokens, partial(nulls.random_tokens, vocab_size=24)])
def test_tokens_are_exchanged_but_for_those_to_keep(function):
    ids = torch.arange(2, 22).repeat(3, 1)
    ids[:, 0], ids[:, -1], ids[1, 7] = 0, 1, 1
    before, special = ids.clone(), ids < 2
    made = function(ids, seed=0, keep=[0, 1])
    assert torch.equal(made[special], ids[special])
    assert (made[~special] != ids[~special]).float().mean() > 0.8
    assert not torch.equal(made[0], made[2]), "every sequence is changed in its own way"
    assert torch.equal(ids, before)
    assert torch.equal(made, function(ids, seed=0, keep=[0, 1]))
    assert not torch.equal(made, function(ids, seed=1, keep=[0, 1]))
    assert (function(ids, seed=0) != ids)[:, 0].any(), "without keep nothing stays"
    if function is nulls.shuffled_tokens:
        assert torch.equal(made.sort(-1).values, ids.sort(-1).values)
    with pytest.raises(ValueError, match=r"\(sequence, position\)"):
        function(ids[0])


def test_random_tokens_are_drawn_evenly_from_the_rest():
    ids = torch.full((100, 60), 5)
    count = torch.bincount(nulls.random_tokens(ids, 12, seed=0, keep=[0, 1]).flatten(), minlength=12)
    assert count[:2].tolist() == [0, 0]
    assert (count[2:] - 600).abs().max() < 5 * 600**0.5
    with pytest.raises(ValueError, match="none outside"):
        nulls.random_tokens(ids, 2, keep=[0, 1])


@pytest.fixture(scope="module")
def profiles():
    """Signals that sum to 1, (kind, position): flat and spiky ones, one with a sink, one that decays."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, N, generator=generator, dtype=torch.float64)
    z = torch.stack([0.1 * z[0], z[1], 3 * z[2], z[3], z[4].cumsum(-1), z[5]])
    z[3, 0] += 6
    z[5] -= torch.arange(N) / 20
    return z.softmax(-1)


def test_random_order_puts_every_value_anywhere_equally_often():
    ramp = torch.arange(8.0).expand(4000, 8)
    mean = models.random_order(ramp, seed=0).mean(0)
    assert (mean - 3.5).abs().max() < 4 * ramp[0].std() / math.sqrt(4000)


def slow_matrix(s, n, causal):
    """exp(s·|i − j|) over the visible keys, row by row with the largest exponent taken out."""
    matrix = np.zeros((n, n))
    for i in range(n):
        keys = range(i + 1 if causal else n)
        exponents = np.array([s * abs(i - j) for j in keys])
        weights = np.exp(exponents - exponents.max())
        matrix[i, : len(weights)] = weights / weights.sum()
    return matrix


DECAYS = (-30.0, -2.0, -0.1, -1e-3, 0.0, 1e-3, 0.2, 3.0, 30.0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("s", DECAYS)
def test_exponential_attention_has_its_mean_distance_and_its_profiles(s, causal):
    n = 21
    expected = slow_matrix(s, n, causal)
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    found = models._mean_distance(torch.tensor(s, dtype=torch.float64), n, causal)
    assert float(found) == pytest.approx((expected * apart).sum() / n, rel=1e-11)
    if causal:
        made = models.exponential_profiles(torch.full((2, 3), s, dtype=torch.float64), n)
        lags = np.array([expected.trace(offset=-lag) / n for lag in range(n)])
        rows = {"key_profile": expected.mean(0), "last_query": expected[-1], "lag_profile": lags}
        late = range(n - n // 2, n)
        rows["stationary_profile"] = [np.mean([expected[i, i - d] for i in late]) for d in range(n // 2)]
        for name, row in rows.items():
            assert_close(made[name], torch.as_tensor(row).expand(2, 3, -1))


@pytest.mark.parametrize("causal", [True, False])
def test_exponential_decay_is_solved(causal):
    n = 50
    farthest = (n - 1) / 2 if causal else float(np.maximum(range(n), range(n)[::-1]).mean())
    target = torch.linspace(1e-6, farthest - 1e-6, 30, dtype=torch.float64)
    s = models.exponential_decay(target, n, causal=causal)
    found = models._mean_distance(s, n, causal)
    assert (found - target).abs().max() < 1e-9
    alibi = slow_matrix(-(2.0**-3), n, causal)
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    slope = models.exponential_decay((alibi * apart).sum() / n, n, causal=causal)
    assert float(slope) == pytest.approx(-0.125, rel=1e-9)
    uniform = (n - 1) / 4 if causal else (n**2 - 1) / (3 * n)
    assert abs(float(models.exponential_decay(uniform, n, causal=causal))) < 1e-9
    with pytest.raises(ValueError, match=f"over {n} tokens has 0 to {farthest:.6g}"):
        models.exponential_decay([1.0, farthest + 0.01], n, causal=causal)


def spectral_miss(made, given):
    a, b = (torch.fft.rfft(x)[..., 1:].abs() for x in (given, made))
    return (a - b).norm(dim=-1) / a.norm(dim=-1)


def test_iaaft_keeps_values_exactly_and_the_spectrum_closely(profiles):
    made = models.iaaft(profiles, seed=2)
    assert torch.equal(made.sort(-1).values, profiles.sort(-1).values)
    miss, shuffled = spectral_miss(made, profiles), spectral_miss(models.random_order(profiles), profiles)
    assert miss[[0, 1, 3, 4]].max() < 0.1, "the spectrum of a surrogate is another"
    assert miss.max() < 0.5  # the spiky one and the steep one leave few orders to choose from
    assert (miss < 0.85 * shuffled).all(), "no nearer to the spectrum than any order"
    moved = (made - profiles).norm(dim=-1) / (profiles - profiles.mean(-1, keepdim=True)).norm(dim=-1)
    assert (moved > 0.3).all(), "the surrogate is the signal"
    wave = 1 + torch.sin(2 * torch.pi * 5 * torch.arange(N, dtype=torch.float64) / N) / 2
    assert spectral_miss(models.iaaft(wave, seed=1), wave) < 0.02


def test_iaaft_row_by_row_is_the_batch(profiles, monkeypatch):
    whole = models.iaaft(profiles.view(2, 3, N), seed=5)
    monkeypatch.setattr(models, "ROWS_AT_ONCE", 1)
    assert torch.equal(models.iaaft(profiles.view(2, 3, N), seed=5), whole)


def test_power_law_fit_is_that_of_polyfit(profiles):
    frequency = spectra.frequencies(N)
    psd = spectra.psd(profiles, detrend="mean")
    psd[:, 5] = 0  # a bin without power is left out
    found = models.power_law_exponent(psd, frequency)
    kept = np.delete(np.arange(len(frequency)), [0, 5])
    log_f = np.log(frequency.numpy()[kept])
    expected = [-np.polyfit(log_f, np.log(row[kept]), 1)[0] for row in psd.numpy()]
    assert_close(found, torch.tensor(expected, dtype=torch.float64), dtype=torch.float32)
    assert models.power_law_exponent(torch.zeros(3), torch.tensor([0.0, 0.2, 0.4])).isnan()
    with pytest.raises(ValueError, match="4 tokens or more"):
        models.power_law_exponent(torch.ones(2), torch.tensor([0.0, 0.5]))


@pytest.mark.parametrize("chi", [0.0, 1.0, 2.0])
def test_power_law_order_has_the_exponent_and_the_values(chi):
    generator = np.random.default_rng(0)
    frequency = np.fft.rfftfreq(512)
    amplitude = np.r_[0, frequency[1:] ** (-chi / 2)]
    noise = np.fft.irfft(amplitude * np.exp(2j * np.pi * generator.random((40, 257))), axis=-1)
    given = torch.from_numpy(noise - noise.min(-1, keepdims=True))
    made = models.power_law_order(given, seed=4)
    assert torch.equal(made.sort(-1).values, given.sort(-1).values)
    f, psd = scipy_signal.periodogram(made.numpy(), window="hann", axis=-1)
    found = -np.polyfit(np.log(f[2:]), np.log(psd[:, 2:]).mean(0), 1)[0]
    assert found == pytest.approx(chi, abs=0.1 + chi / 10)  # placing the ranks whitens a little
    flat = torch.full((2, 16), 1 / 16, dtype=torch.float64)
    assert torch.equal(models.power_law_order(flat), flat)

import dataclasses
from functools import partial

import pytest
import torch
from tolerances import assert_close

from nbhelpers import Profiles, nulls
from nbhelpers.analysis import Observation, measure
from nbhelpers.kernels.entropy import effective_support, positional_entropy
from nbhelpers.protocol import SIGNALS

SHAPE = (2, 3, 4)  # sequence, layer, head
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


def amplitudes(signal):
    return torch.fft.rfft(signal.double())[..., 1:].abs()


def test_phase_surrogates_keep_the_spectrum_and_iid_softmax_the_effective_support():
    given = make(64, sharpness=1.0)
    for name in SIGNALS:
        a = amplitudes(given[name])
        near, far = (amplitudes(null(given)[name]) for null in (nulls.phase_surrogate, nulls.permuted))
        miss, other = ((a - b).norm(dim=-1) / a.norm(dim=-1) for b in (near, far))
        assert miss.mean() < 0.2
        assert miss.mean() < 0.5 * other.mean()
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

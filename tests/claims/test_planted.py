import numpy as np
import pytest
import torch
from refusals import refusals
from tolerances import TOL

from nbhelpers.claims import planted
from nbhelpers.profiles import Profiles

SMALL = {"n_layers": 2, "n_heads": 6, "length": 64}
CLOSE = TOL[torch.float32]
KEYED = "tokens, 1/f noise"


@pytest.mark.parametrize("kind", ["Morlet, half octaves", "polar with depth", "independent entries", KEYED])
def test_attention_is_causal_and_profiles_are_those_of_it_and_its_prefixes(kind):
    options = SMALL | {"noise": 0.4, "key_noise": 0.2, "seed": 5}
    attn = torch.stack([planted.planted_attention(kind, **options, sequence=k) for k in range(2)])
    assert attn.triu(1).abs().max() == 0
    assert (attn.sum(-1) - 1).abs().max() < CLOSE
    assert attn.min() >= 0
    assert attn[0].equal(planted.planted_attention(kind, **options))
    assert not attn[0].equal(attn[1]), "sequences differ in their noise"
    assert not attn[0].equal(planted.planted_attention(kind, **options | {"seed": 4}))
    profiles, scaled = planted.planted_profiles(kind, n_sequences=2, **options, heads_per_group=2)
    assert list(scaled) == [0.5, 0.25]
    for n, found in ((64, profiles), (32, scaled[0.5]), (16, scaled[0.25])):
        expected = Profiles.from_attention(attn[..., :n, :n], causal=True)
        assert found.kv_groups == [0, 0, 1, 1, 2, 2]
        for name in expected.arrays:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=CLOSE)
    assert profiles.provenance["planted"]["kind"] == kind
    alone = planted.planted_stationary(kind, n_sequences=2, **options)
    torch.testing.assert_close(alone, profiles.stationary_profile, rtol=0, atol=CLOSE)


def test_kinds_are_many_and_every_claim_has_some_where_it_holds_and_some_where_not():
    assert len(planted.KINDS) == len(planted.DESIGN) + len(planted.TEST) >= 35
    for kinds in (planted.DESIGN, planted.TEST):
        for claim in ("C1", "C3", "C4", "C5", "C6", "C14"):
            told = {claim in kind.holds for kind in kinds.values() if claim not in kind.open}
            assert told == {True, False}, claim
        assert all(kind.why and not set(kind.holds) & set(kind.open) for kind in kinds.values())


def clean(kind, length=512, n_heads=6):
    """Kernels of one layer by mean distance of what lies over the floor, without heads that look evenly."""
    made = planted.kernels(kind, n_layers=1, n_heads=n_heads, length=length)[0].double()
    made = made[made.std(-1) > 0]
    lag = torch.arange(length)
    return made[((made * lag).sum(-1) / made.sum(-1)).argsort()]


@pytest.mark.parametrize("kind", [name for name, kind in planted.KINDS.items() if "C4" in kind.holds])
def test_what_is_tuned_has_peaks_away_from_zero_at_different_frequencies(kind):
    bank = clean(kind, max(planted.KINDS[kind].shortest, 256))[:, :128]
    power = torch.fft.rfft((bank - bank.amin(-1, keepdim=True)) * torch.hann_window(256)[128:], n=1024).abs()
    power = (power / power[:, :1]) ** 2
    prominence = power - power.cummin(-1).values
    tuned = prominence.amax(-1) > 0.06
    peaks = prominence.argmax(-1)[tuned] / 1024
    assert tuned.double().mean() >= 0.5
    assert peaks.log2().std() > 0.3, "heads differ in their frequency"


@pytest.mark.parametrize("kind", ["Morlet, octaves", "bumps, half octaves", "boxes, octaves"])
def test_dilated_heads_are_copies_of_each_other(kind):
    bank, ratio = clean(kind), 2
    step = 2 if "half" in kind else 1
    for narrow, wide in list(zip(bank, bank[step:], strict=False))[-2:]:
        assert (wide[::ratio] - narrow[: len(wide[::ratio])]).abs().mul(wide[::ratio] > 0.01).max() < 0.25
        close = (wide[::ratio] - narrow[:256]).abs().mean() / narrow.abs().mean()
        assert close < 0.15


def test_a_wavelet_frame_is_nearly_orthogonal_by_construction():
    for name, kind in planted.KINDS.items():
        if "C14" in kind.holds:
            x = clean(name, max(kind.shortest, 256))[:, :128]
            x = (x - x.median(-1, keepdim=True).values).clamp_min(0)
            cosine = np.abs(np.corrcoef(x.numpy()))[np.triu_indices(len(x), 1)]
            assert cosine.mean() < 0.3, name


def test_noise_is_lognormal_of_the_strength_asked_for_and_found_again():
    sizes, kind = {"n_layers": 2, "n_heads": 2, "length": 128}, "exponentials, octaves (ALiBi)"
    quiet = planted.planted_attention(kind, **sizes)
    log_ratio = (planted.planted_attention(kind, **sizes, noise=0.7) / quiet).log()[..., 100:, 60:100]
    within_row = log_ratio - log_ratio.mean(-1, keepdim=True)
    assert within_row.std().item() == pytest.approx(0.7, rel=0.03)
    shared = (planted.planted_attention(kind, **sizes, key_noise=0.7) / quiet).log()[..., 100:, 60:100]
    shared = shared - shared.mean(-1, keepdim=True)
    torch.testing.assert_close(shared, shared[..., :1, :].expand(shared.shape), rtol=0, atol=1e-4)
    assert shared[..., 0, :].std().item() == pytest.approx(0.7, rel=0.15)

    attn = planted.planted_attention(kind, **sizes | {"n_heads": 3}, noise=0.6, key_noise=0.9)
    kept = attn.clone()
    found = planted.noise_strength(attn)
    assert found.noise.shape == (2, 3)
    assert found.noise.mean().item() == pytest.approx(0.6, rel=0.05)
    assert found.key_noise.mean().item() == pytest.approx(0.9, rel=0.15)
    assert attn.equal(kept)
    assert planted.noise_strength(quiet).noise.max() < 1e-3, "an exact function of the lag has none"


def test_polar_banks_and_rows_of_independent_entries_and_of_tokens():
    attn = planted.planted_attention("polar with depth", n_layers=5, n_heads=6, length=128)
    sink = attn[..., 64:, 0].mean(-1)  # (layer, head)
    assert (sink[0] - 0.5).abs().max() < 0.01
    assert sink[-1].sort().values.tolist() == pytest.approx([0.0025] * 3 + [0.9975] * 3, abs=2e-3)
    sizes = {"n_layers": 2, "n_heads": 4, "length": 256}
    correlation = {}
    for kind in ("independent entries", KEYED):
        attn = planted.planted_attention(kind, **sizes).log()
        pairs = zip(attn[..., 200, :150].flatten(0, 1), attn[..., 250, :150].flatten(0, 1), strict=True)
        correlation[kind] = [np.corrcoef(a, b)[0, 1] for a, b in pairs]
    assert np.abs(np.mean(correlation["independent entries"])) < 0.1
    assert min(correlation[KEYED]) > 0.999


def test_noise_of_tokens_falls_as_its_exponent_says():
    noise = planted._pink((4000, 256), torch.Generator().manual_seed(0), 0.2)
    power = torch.fft.rfft(noise).abs().square().mean(0)[1:-1]
    slope = np.polyfit(np.log(np.arange(1, 128)), power.log().numpy(), 1)[0]
    assert slope == pytest.approx(-0.2, abs=0.02)


test_bad_input_is_refused = refusals(
    (lambda: planted.planted_profiles("uniform", **SMALL, noise=-0.1), "from 0 to"),
    (lambda: planted.noise_strength(torch.eye(20).expand(2, 6, 20, 20)), "at least 32"),
)

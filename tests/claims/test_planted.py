import numpy as np
import pytest
import torch
from tolerances import TOL

from nbhelpers.claims import planted
from nbhelpers.profiles import Profiles

SMALL = {"n_layers": 3, "n_heads": 6, "length": 32}
CLOSE = TOL[torch.float32]


@pytest.mark.parametrize("bank", planted.BANKS)
def test_attention_is_causal_and_profiles_are_those_of_it_and_its_prefixes(bank):
    options = SMALL | {"noise": 0.4, "key_noise": 0.2, "seed": 5}
    attn = torch.stack([planted.planted_attention(bank, **options, sequence=k) for k in range(2)])
    assert attn.triu(1).abs().max() == 0
    assert (attn.sum(-1) - 1).abs().max() < CLOSE
    assert attn.min() >= 0
    assert attn[0].equal(planted.planted_attention(bank, **options))
    assert not attn[0].equal(attn[1]), "sequences differ in their noise"
    assert not attn[0].equal(planted.planted_attention(bank, **options | {"seed": 4}))
    profiles, scaled = planted.planted_profiles(bank, n_sequences=2, **options, heads_per_group=2)
    assert list(scaled) == [0.5, 0.25]
    for n, found in ((32, profiles), (16, scaled[0.5]), (8, scaled[0.25])):
        expected = Profiles.from_attention(attn[..., :n, :n], causal=True)
        assert found.kv_groups == [0, 0, 1, 1, 2, 2]
        for name in expected.arrays:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=CLOSE)
    assert profiles.provenance["planted"]["bank"] == bank


def test_every_claim_has_a_bank_where_it_holds_and_one_where_it_does_not():
    assert tuple(planted.TRUTH) == planted.BANKS
    for claim in planted.PLANTED_CLAIMS:
        assert {planted.TRUTH[bank][claim].holds for bank in planted.BANKS} == {True, False}, claim


def test_noise_is_lognormal_of_the_strength_asked_for_and_found_again():
    sizes = {"n_layers": 2, "n_heads": 2, "length": 128}
    clean = planted.planted_attention("alibi", **sizes)
    log_ratio = (planted.planted_attention("alibi", **sizes, noise=0.7) / clean).log()[..., 100:, 60:100]
    within_row = log_ratio - log_ratio.mean(-1, keepdim=True)
    assert within_row.std().item() == pytest.approx(0.7, rel=0.03)
    shared = (planted.planted_attention("alibi", **sizes, key_noise=0.7) / clean).log()[..., 100:, 60:100]
    shared = shared - shared.mean(-1, keepdim=True)
    torch.testing.assert_close(shared, shared[..., :1, :].expand(shared.shape), rtol=0, atol=1e-4)
    assert shared[..., 0, :].std().item() == pytest.approx(0.7, rel=0.15)

    attn = planted.planted_attention("alibi", **sizes | {"n_heads": 3}, noise=0.6, key_noise=0.9)
    kept = attn.clone()
    found = planted.noise_strength(attn)
    assert found.noise.shape == (2, 3)
    assert found.noise.mean().item() == pytest.approx(0.6, rel=0.05)
    assert found.key_noise.mean().item() == pytest.approx(0.9, rel=0.1)
    assert attn.equal(kept)
    assert planted.noise_strength(clean).noise.max() < 1e-4, "an exact function of the lag has none"


def test_heads_of_the_wavelet_bank_are_dilated_copies():
    bank = planted.kernels("wavelet", n_layers=1, n_heads=9, length=1024)[0]
    bank = bank[(bank * torch.arange(1024)).sum(-1).div(bank.sum(-1)).argsort()]  # by distance
    # Two heads per octave. The nearest ones are too narrow for whole tokens to hold their shape.
    for narrow, wide in zip(bank[4:-2], bank[6:], strict=True):
        torch.testing.assert_close(wide[::2], narrow[:512], rtol=0, atol=1e-9)
    unit = bank / bank.norm(dim=-1, keepdim=True)
    assert (unit @ unit.T - torch.eye(9)).abs().max() < 0.1, "nearly orthogonal"


def test_heads_of_the_gabor_bank_have_one_window_and_frequencies_in_equal_steps():
    bank = planted.kernels("gabor", n_layers=1, n_heads=8, length=256)[0]
    power = torch.fft.rfft(bank, n=2048).abs()
    power[:, : 2048 // 64] = 0  # the window's own low frequencies
    peaks = power.argmax(-1).sort().values / 2048
    torch.testing.assert_close(peaks, torch.arange(1, 9) / 16, rtol=0, atol=0.01)
    lag = torch.arange(256.0)
    share = bank / bank.sum(-1, keepdim=True)
    mean = (share * lag).sum(-1)
    spread = (share * (lag - mean[:, None]) ** 2).sum(-1).sqrt()
    assert spread.max() / spread.min() < 1.15


def test_alibi_kernels_have_slopes_of_powers_of_two_in_another_order_in_every_layer():
    bank = planted.kernels("alibi", n_layers=4, n_heads=8, length=64)
    slopes = (bank[..., 0] / bank[..., 1]).log()
    expected = np.tile(2.0 ** -np.arange(8, 0, -1), (4, 1))
    np.testing.assert_allclose(slopes.sort(-1).values, expected, rtol=1e-9)
    assert not bank[0].equal(bank[1])


def test_heads_of_sink_local_are_mixed_at_first_and_polar_at_last():
    attn = planted.planted_attention("sink_local", n_layers=5, n_heads=6, length=128)
    sink = attn[..., 64:, 0].mean(-1)  # (layer, head)
    assert (sink[0] - 0.5).abs().max() < 0.01
    assert sink[-1].sort().values.tolist() == pytest.approx([0.0025] * 3 + [0.9975] * 3, abs=1e-3)


def test_rows_of_iid_share_nothing_and_of_one_over_f_everything():
    sizes = {"n_layers": 2, "n_heads": 4, "length": 256}
    correlation = {}
    for bank in ("iid", "one_over_f"):
        attn = planted.planted_attention(bank, **sizes).log()
        first, second = attn[..., 200, :150], attn[..., 250, :150]
        pairs = zip(first.flatten(0, 1), second.flatten(0, 1), strict=True)
        correlation[bank] = [np.corrcoef(a, b)[0, 1] for a, b in pairs]
    assert np.abs(np.mean(correlation["iid"])) < 0.1
    assert min(correlation["one_over_f"]) > 0.999


def test_one_over_f_falls_as_its_exponent_says():
    generator = torch.Generator().manual_seed(0)
    power = torch.fft.rfft(planted._pink((4000, 256), generator)).abs().square().mean(0)[1:-1]
    slope = np.polyfit(np.log(np.arange(1, 128)), power.log().numpy(), 1)[0]
    assert slope == pytest.approx(-planted.PINK_EXPONENT, abs=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: planted.planted_profiles("morlet", **SMALL), "bank of .* got 'morlet'"),
        (lambda: planted.planted_profiles("iid", **SMALL, noise=-0.1), "from 0 to"),
        (
            lambda: planted.noise_strength(planted.planted_attention("iid", **SMALL)[..., :20, :20]),
            "at least 32",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

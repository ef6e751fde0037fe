from itertools import pairwise

import pytest

from nbhelpers.inputs.zoo import ENCODINGS
from nbhelpers.zoo.settings import LENGTH, MASKED_SHARE, Settings, arms


@pytest.mark.parametrize("n_steps", [44, 50, 999, 2929, 100_000])
def test_at_least_forty_checkpoints_with_the_first_and_the_last(n_steps):
    steps = Settings(n_tokens=n_steps * 16 * LENGTH).checkpoints()
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, n_steps)
    assert 40 <= len(steps) <= 50
    assert {10**k for k in range(6) if 10**k <= n_steps} <= set(steps)
    late = [b / a for a, b in pairwise(steps) if a >= 30]  # rounding matters before
    assert max(late, default=1) < 1.5
    assert Settings(n_tokens=7 * 16 * LENGTH).checkpoints() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_learning_rate_rises_then_follows_a_cosine_and_slower_where_it_must():
    settings = Settings()
    n, peak = settings.n_steps, 3e-3
    warmup = round(0.05 * n)
    assert settings.learning_rate(0) == pytest.approx(peak / warmup)
    assert settings.learning_rate(warmup - 1) == pytest.approx(peak)
    middle = warmup + (n - warmup) / 2
    assert settings.learning_rate(middle) == pytest.approx(peak * (0.05 + 0.95 / 2))
    assert settings.learning_rate(n) == pytest.approx(peak * 0.05)
    slow, plain = Settings(encoding="learned", causal=False), Settings(encoding="learned")
    assert slow.n_tokens * MASKED_SHARE == pytest.approx(plain.n_tokens), "as many predictions"
    assert (slow.warmup_share, plain.warmup_share) == (0.7, 0.05)
    assert Settings(causal=False).warmup_share == 0.05, "rope needs none of it"
    peak = slow.size.learning_rate
    assert slow.learning_rate(slow.n_steps // 10) == pytest.approx(peak / 7, rel=0.01)
    assert [s.config().position_initializer_range for s in (slow, plain)] == [0.002, 0.02]
    assert Settings(**vars(slow)) == slow


def test_the_collection():
    runs = arms()
    assert len({run.name for run in runs}) == len(runs) == 7 * 3 + 2 * 3 + 3 + 3 * 3
    assert [run.encoding for run in runs[:7]] == list(ENCODINGS)
    assert all(run.causal and not run.bos and run.preset == "nano" for run in runs[:21])
    slow = {run.name for run in runs if run.encoding == "learned" and not run.causal}
    assert len(slow) == 3
    assert {run.n_tokens for run in runs if run.name not in slow} == {12_000_000}
    assert {run.n_tokens for run in runs if run.name in slow} == {40_000_000}
    assert Settings(preset="mini", bos=True, seed=2).name == "rope-bos-mini-seed2"


def test_weights_are_kept_of_core_runs_of_seed_0():
    assert Settings().kept_steps() == [0, 10, 100, 1000, 2929]
    assert Settings(encoding="alibi").kept_steps() == [1000, 2929]
    assert Settings(n_tokens=100 * 16 * LENGTH).kept_steps() == [0, 10, 100]
    for other in ({"seed": 1}, {"causal": False}, {"bos": True}, {"preset": "mini"}):
        assert Settings(**other).kept_steps() == [2929], "the last of every run"
    assert set(Settings().kept_steps()) <= set(Settings().checkpoints())
    with pytest.raises(ValueError, match="no encoding 'rotary'; there are rope"):
        Settings(encoding="rotary")

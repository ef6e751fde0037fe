import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from draws import DTYPES, attention, normal
from tolerances import TOL, assert_close

from nbhelpers.kernels import entropy


class TestRequireDistribution:
    def test_softmax_passes_in_every_dtype_and_half_precision_is_allowed_more(self):
        attn = attention(3, 500, dtype=torch.float32)
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            entropy.require_distribution(attn.to(dtype))
        entropy.require_distribution(attn[:0])
        entropy.require_distribution((attn * 1.004).to(torch.bfloat16))
        entropy.require_distribution(attn * 1.004, tolerance=0.005)
        with pytest.raises(ValueError, match=r"within 0\.01"):
            entropy.require_distribution((attn * 1.03).to(torch.float16))

    def test_what_is_no_distribution_is_refused(self):
        for at, value, message in (
            ((1, 2), 0.0, r"1 of 6 rows do not, the worst at index \(1, 2\) with sum 0"),
            ((0, 1, 3), -0.25, r"negative.*\(0, 1, 3\)"),
            ((0, 1, 3), math.nan, r"1 of 48 entries.*\(0, 1, 3\)"),
            (..., 0.1255, r"within 0\.001, but 6 of 6 rows"),
        ):
            attn = attention(2, 3, 8)
            attn[at] = value
            with pytest.raises(ValueError, match=message):
                entropy.positional_entropy(attn)


class TestPositionalEntropy:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("base", [None, 2])
    def test_is_scipys_with_masked_keys(self, dtype, base):
        attn = attention(2, 9, 9, dtype=dtype, causal=True)
        expected = scipy.stats.entropy(attn.double().numpy(), axis=-1, base=base)
        assert_close(entropy.positional_entropy(attn, base=base), expected, dtype=dtype)

    def test_closed_forms_and_the_bound_of_the_effective_support(self):
        attn = torch.tril(torch.ones(7, 7, dtype=torch.float64))
        attn = attn / attn.sum(-1, keepdim=True)
        assert_close(entropy.positional_entropy(attn), np.log(np.arange(1, 8)))
        assert_close(entropy.effective_support(attn), np.arange(1.0, 8.0))
        assert entropy.positional_entropy(torch.eye(4)).tolist() == [0.0] * 4
        assert_close(entropy.effective_support(torch.eye(4)), torch.ones(4))
        attn = attention(40, 32)
        assert (entropy.effective_support(attn) < entropy.positional_entropy(attn).exp()).all()

    def test_gradient_through_a_causal_softmax(self):
        def of_scores(x):
            later = torch.ones(5, 5, dtype=torch.bool).triu(1)
            return entropy.positional_entropy(x.masked_fill(later, -math.inf).softmax(-1))

        assert torch.autograd.gradcheck(of_scores, normal(5, 5).requires_grad_())


class TestWindowEntropy:
    def slow(self, row, window):
        parts = [row[start : start + window] for start in range(0, len(row) - window + 1, window)]
        values = [scipy.stats.entropy(part) / math.log(window) for part in parts if part.sum() > 0]
        return np.mean(values) if values else math.nan

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("window", [2, 5, 16, 37])
    def test_is_the_slow_loop(self, dtype, window):
        attn = attention(37, 37, dtype=dtype, causal=True)
        expected = np.array([self.slow(row, window) for row in attn.double().numpy()])
        assert_close(entropy.window_entropy(attn, window), expected, dtype=dtype)

    def test_bounds_are_met(self):
        uniform = torch.full((64,), 1 / 64, dtype=torch.float64)
        assert float(entropy.window_entropy(uniform, 16)) == pytest.approx(1.0, abs=1e-12)
        assert entropy.window_entropy(torch.eye(64)[:48], 16).tolist() == [0.0] * 48
        assert entropy.window_entropy(torch.eye(10)[9], 4).isnan(), "mass only in the ragged end"

    @pytest.mark.parametrize("window", [1, 33, 0])
    def test_impossible_windows(self, window):
        with pytest.raises(ValueError, match=f"window .* got {window}"):
            entropy.window_entropy(attention(32), window)

    def test_gradient_past_empty_windows(self):
        scores = normal(16).requires_grad_()
        masked = scores.masked_fill(torch.arange(16) >= 6, -math.inf)
        entropy.window_entropy(masked.softmax(-1), 4).backward()
        assert scores.grad.isfinite().all()


class TestEntropicSlack:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("teeth", [1, 2, 4, 8, 64])  # a spike … a constant
    def test_combs_meet_the_bound(self, teeth, dtype):
        comb = torch.zeros(64, dtype=dtype)
        comb[:: 64 // teeth] = 3.0
        for shift in (0, 5):
            assert abs(float(entropy.entropic_slack(comb.roll(shift)))) < 20 * TOL[dtype]
        assert float(entropy.entropic_slack(torch.full((1,), 3.0, dtype=dtype))) == 0

    @pytest.mark.parametrize("length", [7, 64, 101])
    def test_is_scipys_entropies_of_a_slow_transform(self, length):
        signal = normal(3, length, seed=2)
        unitary = scipy.linalg.dft(length, scale="sqrtn")
        for x, slack in zip(signal.numpy(), entropy.entropic_slack(signal), strict=True):
            pair = [scipy.stats.entropy(p) for p in (x**2, np.abs(unitary @ x) ** 2)]
            assert float(slack) == pytest.approx(sum(pair) - math.log(length), abs=1e-10)

    def test_bounds_and_that_scale_and_place_do_not_count(self):
        signals = normal(300, 48, seed=3) ** 3
        slack = entropy.entropic_slack(signals)
        assert slack.min() > 0
        assert slack.max() < math.log(48)
        assert_close(entropy.entropic_slack(-17 * signals.roll(9, -1)), slack)

    def test_zero_is_nan_and_wrong_input_is_refused(self):
        assert entropy.entropic_slack(torch.zeros(4)).isnan()
        with pytest.raises(ValueError, match="1 of 3 entries"):
            entropy.entropic_slack(torch.tensor([1.0, math.nan, 0.0]))

import numpy as np
import pytest
import scipy.stats
import torch
from tolerances import assert_close

from nbhelpers.kernels import entropy, sampling


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestSoftmaxOfSupport:
    def test_two_keys_closed_form(self):
        # p² + (1 − p)² = 1/N  has the larger root  p = (1 + √(2/N − 1)) / 2
        for support in (1.0, 1.25, 1.7, 2.0):
            attn = sampling.softmax_of_support(torch.tensor([0.3, -0.4]), support)
            larger = (1 + np.sqrt(2 / support - 1)) / 2
            assert attn.numpy() == pytest.approx([larger, 1 - larger], abs=1e-8)

    def test_support_is_met_and_order_kept(self):
        scores = normal(4, 30, 64)
        wanted = 1 + 63 * torch.rand(4, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        before = scores.clone()
        attn = sampling.softmax_of_support(scores, wanted)
        assert_close(entropy.effective_support(attn), wanted, dtype=torch.float64)
        assert torch.equal(attn.argsort(-1), scores.argsort(-1))
        assert torch.equal(scores, before)

    def test_it_is_a_softmax_of_the_scores(self):
        scores = normal(5, 32)
        attn = sampling.softmax_of_support(scores, 7.0)
        for row, score in zip(attn.log(), scores, strict=True):
            fit = scipy.stats.linregress(score.numpy(), row.numpy())
            assert fit.slope > 0
            assert fit.rvalue == pytest.approx(1, abs=1e-12)

    def test_ends(self):
        scores = normal(3, 16)
        # 1 / Σ a² is flat at its largest value, so a is known there to the root of the resolution only.
        uniform = sampling.softmax_of_support(scores, 16)
        assert uniform.numpy() == pytest.approx(np.full((3, 16), 1 / 16), rel=1e-7)
        one_hot = torch.nn.functional.one_hot(scores.argmax(-1), 16).double()
        assert_close(sampling.softmax_of_support(scores, 1), one_hot)
        # of attention in float32, off by rounding
        assert_close(sampling.softmax_of_support(scores, 1 - 1e-6), one_hot)

    def test_batched_is_the_loop(self):
        scores, wanted = normal(6, 20), torch.linspace(1.5, 19.5, 6, dtype=torch.float64)
        together = sampling.softmax_of_support(scores, wanted)
        for row, score, support in zip(together, scores, wanted, strict=True):
            assert_close(row, sampling.softmax_of_support(score, support))

    @pytest.mark.parametrize("wrong", [0.9, 17.0, float("nan")])
    def test_impossible_supports(self, wrong):
        with pytest.raises(ValueError, match=r"lie in \[1, 16\], the number of keys; got"):
            sampling.softmax_of_support(normal(2, 16), torch.tensor([4.0, wrong]))

    def test_equal_largest_scores(self):
        with pytest.raises(ValueError, match="1 of 2 rows cannot have the effective support asked for"):
            sampling.softmax_of_support(torch.tensor([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0]]), 1.5)

    def test_masked_scores(self):
        with pytest.raises(ValueError, match="scores has 1 of 3 entries that are NaN or infinite"):
            sampling.softmax_of_support(torch.tensor([1.0, 0.0, -torch.inf]), 1.5)


class TestRandomVectors:
    def test_simplex_is_uniform_on_the_simplex(self):
        n = 12
        vectors = sampling.random_vectors((40, 50, n), seed=3)
        entropy.require_distribution(vectors)
        marginal = scipy.stats.beta(1, n - 1)  # of a uniform point of the simplex
        assert scipy.stats.kstest(vectors[..., 4].flatten().numpy(), marginal.cdf).pvalue > 0.01
        assert scipy.stats.kstest(1.3 * vectors[..., 4].flatten().numpy(), marginal.cdf).pvalue < 1e-4

    def test_sphere_is_uniform_on_the_sphere(self):
        n = 3
        vectors = sampling.random_vectors((2000, 1, n), kind="sphere", seed=4)
        assert_close(torch.linalg.vector_norm(vectors, dim=-1), torch.ones(2000, 1, dtype=torch.float64))
        # Archimedes: a coordinate of a uniform point of the sphere is uniform
        heights = vectors[:, 0, 1].numpy()
        assert scipy.stats.kstest(heights, scipy.stats.uniform(-1, 2).cdf).pvalue > 0.01

    def test_support_is_matched(self):
        wanted = torch.tensor([2.0, 5.0, 30.0], dtype=torch.float64)
        vectors = sampling.random_vectors((7, 3, 64), effective_support=wanted, seed=5)
        entropy.require_distribution(vectors)
        assert_close(entropy.effective_support(vectors), wanted.expand(7, 3), dtype=torch.float64)

    def test_seeds(self):
        for options in ({}, {"kind": "sphere"}, {"effective_support": 4.0}):
            first = sampling.random_vectors((2, 3, 8), seed=1, **options)
            assert torch.equal(first, sampling.random_vectors((2, 3, 8), seed=1, **options))
            assert not torch.equal(first, sampling.random_vectors((2, 3, 8), seed=2, **options))
        assert sampling.random_vectors((2, 3), dtype=torch.float32).dtype == torch.float32

    def test_errors(self):
        with pytest.raises(ValueError, match="unknown kind 'cube'; choose one of 'sphere', 'simplex'"):
            sampling.random_vectors((2, 3), kind="cube")
        with pytest.raises(ValueError, match=r"must be \(\.\.\., head, position\), got \(3,\)"):
            sampling.random_vectors((3,))
        with pytest.raises(ValueError, match="effective_support is of attention"):
            sampling.random_vectors((2, 3), kind="sphere", effective_support=2.0)

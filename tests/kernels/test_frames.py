import math

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import scipy.stats
import torch
from draws import DTYPES, normal, uniform
from refusals import refusals
from tolerances import assert_close

from nbhelpers.kernels import entropy, frames, spectra

BASIS = torch.from_numpy(scipy.stats.ortho_group.rvs(16, random_state=0))

# Mercedes-Benz: three unit vectors at 120 degrees
STAR = torch.tensor([[0.0, 1.0], [-math.sqrt(3) / 2, -0.5], [math.sqrt(3) / 2, -0.5]], dtype=torch.float64)

# The standard basis and that of Hartley, orthonormal and real
FOURIER = torch.fft.fft(torch.eye(8, dtype=torch.float64), norm="ortho")
TWO_BASES = torch.cat([torch.eye(8, dtype=torch.float64), FOURIER.real - FOURIER.imag])


class TestFrameBounds:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        ("vectors", "bound", "rank"),
        [(BASIS, 1, 16), (BASIS[:5], 1, 5), (STAR, 1.5, 2), (STAR.repeat(2, 1), 3, 2), (TWO_BASES, 2, 8)],
    )
    def test_tight_frames(self, vectors, bound, rank, dtype):
        lower, upper, found = bounds = frames.frame_bounds(vectors.to(dtype))
        assert_close(torch.stack([lower, upper, bounds.ratio]), np.array([bound, bound, 1.0]), dtype=dtype)
        assert found == rank

    def test_two_vectors_closed_form(self):
        for angle in (0.3, 1.2):
            pair = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
            lower, upper, _ = frames.frame_bounds(pair / 5, normalize=True)
            assert_close(torch.stack([lower, upper]), np.array([1 - math.cos(angle), 1 + math.cos(angle)]))

    @pytest.mark.parametrize("shape", [(9, 40), (40, 9), (12, 12)])
    def test_are_the_eigenvalues_of_the_frame_operator(self, shape):
        vectors = normal(3, *shape)
        lower, upper, rank = frames.frame_bounds(vectors)
        for k, part in enumerate(vectors.numpy()):
            operator = sum(np.outer(v, v) for v in part)
            values = scipy.linalg.eigvalsh(operator)[-min(shape) :]
            assert_close(torch.stack([lower[k], upper[k]]), values[[0, -1]])
            assert rank[k] == np.linalg.matrix_rank(operator) == min(shape)

    def test_rtol_decides_what_spans_and_zero_vectors_do_not(self):
        vectors = torch.diag(torch.tensor([1.0, 0.5, 1e-7], dtype=torch.float64))
        assert frames.frame_bounds(vectors).rank == 3
        assert [frames.frame_bounds(scale * vectors, rtol=0.1).rank for scale in (100, 0.01)] == [2, 2]
        lower, _, rank = frames.frame_bounds(vectors, rtol=1e-6)
        assert rank == 2
        assert float(lower) == 0.25
        padded = torch.cat([STAR, torch.zeros(2, 2)])
        for vectors, normalize in ((padded, False), (5 * padded, True)):
            assert_close(frames.frame_bounds(vectors, normalize=normalize).lower, 1.5, dtype=torch.float64)
        lower, upper, rank = frames.frame_bounds(torch.zeros(2, 3, 4))
        assert torch.stack([lower, upper]).isnan().all()
        assert rank.tolist() == [0, 0]


def test_random_frame_bounds_have_the_supports_asked_for_and_the_seed_decides():
    # One vector has norm² 1 / N_eff, which is both of its frame bounds.
    wanted = torch.tensor([2.0, 5.0, 30.0], dtype=torch.float64)
    bounds = frames.random_frame_bounds(1, 64, effective_support=wanted[:, None], n_draws=3, normalize=False)
    assert_close(bounds.upper, 1 / wanted)
    options = {"effective_support": 2.0, "n_draws": 2}
    first, again, other = (frames.random_frame_bounds(3, 8, **options, seed=s).ratio for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    one = frames.random_frame_bounds(1, 8, effective_support=2.0, n_draws=2)
    assert_close(one.upper, torch.ones(2, dtype=torch.float64))  # of norm 1, unless asked otherwise


class TestSoftmaxOfSupport:
    def test_two_keys_closed_form(self):
        # p² + (1 − p)² = 1/N  has the larger root  p = (1 + √(2/N − 1)) / 2
        support = torch.tensor([1.0, 1.25, 1.7, 2.0], dtype=torch.float64)
        attn = frames.softmax_of_support(torch.tensor([0.3, -0.4]).expand(4, 2), support)
        larger = (1 + (2 / support - 1).sqrt()) / 2
        assert attn.numpy() == pytest.approx(torch.stack([larger, 1 - larger], -1).numpy(), abs=1e-8)

    @pytest.mark.parametrize("n", [2, 17, 64])
    def test_support_is_met_and_order_kept(self, n):
        scores = normal(4, 30, n)
        wanted = torch.linspace(1.001, n - 0.001, 120, dtype=torch.float64).view(4, 30)
        attn = frames.softmax_of_support(scores, wanted)
        assert_close(entropy.effective_support(attn), wanted, dtype=torch.float64)
        assert torch.equal(attn.argsort(-1), scores.argsort(-1))

    def test_it_is_a_softmax_of_the_scores_to_both_ends(self):
        scores = normal(5, 32)
        attn = frames.softmax_of_support(scores, 7.0)
        for row, score in zip(attn.log(), scores, strict=True):
            fit = scipy.stats.linregress(score.numpy(), row.numpy())
            assert fit.slope > 0
            assert fit.rvalue == pytest.approx(1, abs=1e-12)
        scores = normal(3, 16)
        # 1 / Σ a² is flat at its largest value, so a is known there to the root of the resolution only.
        even = frames.softmax_of_support(scores, 16)
        assert even.numpy() == pytest.approx(np.full((3, 16), 1 / 16), rel=1e-7)
        one_hot = torch.nn.functional.one_hot(scores.argmax(-1), 16).double()
        assert_close(frames.softmax_of_support(scores, 1), one_hot)
        # of attention in float32, off by rounding
        assert_close(frames.softmax_of_support(scores, 1 - 1e-6), one_hot)


def wavelet_bank(n, n_heads, quality=4.0):
    """Spectra exp(−((f/f_h − 1) Q)² / 2) at dyadic centres f_h: dilations of one band-pass."""
    frequency = spectra.frequencies(n)
    centres = 0.25 * 2.0 ** -torch.arange(n_heads, dtype=torch.float64)
    return torch.exp(-0.5 * ((frequency / centres[:, None] - 1) * quality) ** 2), frequency, centres


class TestConstantQSlope:
    def test_dyadic_wavelets_have_slope_one_and_gabor_zero(self):
        psd, frequency, centres = wavelet_bank(8192, 6)
        result = frames.constant_q_slope(psd, frequency)
        assert float(result.slope) == pytest.approx(1, abs=1e-4)  # tails beyond 4 sd are cut at 0.5
        assert result.centroid.numpy() == pytest.approx(centres.numpy(), rel=1e-3)
        assert result.quality.numpy() == pytest.approx(np.full(6, 4.0), rel=2e-3)  # the left tail is cut at 0
        frequency = spectra.frequencies(8192)
        centres = torch.linspace(0.08, 0.4, 9, dtype=torch.float64)
        psd = torch.exp(-0.5 * ((frequency - centres[:, None]) / 0.01) ** 2)  # one window, evenly spaced
        result = frames.constant_q_slope(psd, frequency)
        assert abs(float(result.slope)) < 1e-6
        assert_close(result.centroid, centres)
        assert_close(result.bandwidth, torch.full((9,), 0.01, dtype=torch.float64))

    @pytest.mark.parametrize("n_heads", [3, 7])
    def test_is_scipys_regression_of_slow_moments(self, n_heads):
        psd, frequency = uniform(2, n_heads, 33) ** 8, spectra.frequencies(64)
        result = frames.constant_q_slope(psd, frequency)
        for batch, heads in enumerate(psd.numpy()):
            f = frequency.numpy()[1:]
            moments = [(np.average(f, weights=p[1:]), p[1:]) for p in heads]
            widths = [math.sqrt(np.average((f - c) ** 2, weights=p)) for c, p in moments]
            centres = np.array([c for c, _ in moments])
            fit = scipy.stats.linregress(np.log(centres), np.log(widths))
            assert_close(result.centroid[batch], centres)
            assert_close(result.bandwidth[batch], np.array(widths))
            assert float(result.slope[batch]) == pytest.approx(fit.slope, rel=1e-10)

    def test_the_zero_line_and_heads_without_power_do_not_take_part(self):
        signal = normal(5, 64)
        one, two = (spectra.psd(signal, window="boxcar", sided=s) for s in ("one", "two"))
        expected = frames.constant_q_slope(two, spectra.frequencies(64, sided="two"))
        one[:, 0] = 1e6
        one[:, 1:-1] *= 2  # the two-sided spectrum holds these lines twice
        result = frames.constant_q_slope(one, spectra.frequencies(64))
        assert_close(result.slope, expected.slope)
        assert_close(result.bandwidth, expected.bandwidth)
        psd, frequency, _ = wavelet_bank(512, 4)
        with_silent = torch.cat([psd, torch.zeros(1, 257), torch.zeros(1, 257)])
        with_silent[-1, 40] = 1.0  # a single line has no bandwidth
        result = frames.constant_q_slope(with_silent, frequency)
        assert_close(result.slope, frames.constant_q_slope(psd, frequency).slope)
        assert frames.constant_q_slope(psd[:2], frequency).slope.isnan(), "too few heads"
        assert frames.constant_q_slope(psd[:1].expand(5, -1), frequency).slope.isnan(), "one centre"


class TestHeadSimilarity:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_is_numpys(self, dtype):
        vectors = normal(2, 6, 50, dtype=dtype)
        parts = vectors.double().numpy()
        correlation = np.stack([np.corrcoef(part) for part in parts])
        assert_close(frames.head_similarity(vectors, center=True), correlation, dtype=dtype)
        cosine = np.stack([1 - scipy.spatial.distance.cdist(part, part, "cosine") for part in parts])
        assert_close(frames.head_similarity(vectors), cosine, dtype=dtype)

    def test_uniform_attention_has_nothing_left_when_centred_and_small_values_keep_their_cosine(self):
        vectors = torch.stack([torch.full((48,), 0.1), torch.linspace(0, 1, 48) ** 2])
        assert (vectors[0] - vectors[0].mean()).abs().max() > 0, "the mean of equal values is off by rounding"
        similarity = frames.head_similarity(vectors, center=True)
        assert similarity[0].isnan().all()
        assert similarity[1, 1] == pytest.approx(1, abs=1e-6)
        assert frames.head_similarity(vectors)[0, 1] > 0.5
        long = torch.full((2, 4096), 0.1) + 1e-7 * torch.linspace(0, 1, 4096).round()
        for scale in (1.0, 1e8):  # what is rounding grows with the vectors
            assert frames.head_similarity(scale * long, center=True).isnan().all()
        vectors = torch.tensor([[1e-25, 0.0], [1e-25, 1e-25]])
        assert float(frames.head_similarity(vectors)[0, 1]) == pytest.approx(math.sqrt(0.5), rel=1e-6)


def test_mean_off_diagonal_is_the_slow_loop_and_spares_the_diagonal():
    matrices = normal(2, 3, 5, 5)
    means = frames.mean_off_diagonal(matrices, absolute=True)
    assert means.shape == (2, 3)
    for index in np.ndindex(2, 3):
        pairs = [abs(float(matrices[index][i, j])) for i in range(5) for j in range(5) if i != j]
        assert float(means[index]) == pytest.approx(np.mean(pairs), rel=1e-12)
    assert_close(frames.mean_off_diagonal(frames.head_similarity(STAR)), -0.5, dtype=torch.float64)


test_bad_input_is_refused = refusals(
    (lambda: frames.frame_bounds(torch.ones(3)), r"\(3,\)"),
    (lambda: frames.frame_bounds(torch.tensor([[1.0, math.nan], [1.0, 2.0]])), "1 of 4 entries"),
    (lambda: frames.softmax_of_support(normal(2, 16), torch.tensor([4.0, 0.9])), r"\[1, 16\]"),
    (lambda: frames.softmax_of_support(normal(2, 16), torch.tensor([4.0, 17.0])), r"\[1, 16\]"),
    (lambda: frames.constant_q_slope(torch.ones(2, 9), torch.ones(8)), r"\(9,\)"),
    (lambda: frames.constant_q_slope(torch.ones(9), torch.ones(9)), r"\(9,\)"),
    (lambda: frames.mean_off_diagonal(torch.ones(1, 1)), "2 or more heads"),
    (lambda: frames.mean_off_diagonal(torch.ones(3, 2)), r"\(3, 2\)"),
)

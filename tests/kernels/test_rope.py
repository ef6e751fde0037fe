import math

import numpy as np
import pytest
import torch
from draws import DTYPES, normal
from refusals import refusals
from tolerances import assert_close
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama
from transformers.models.t5.modeling_t5 import T5Attention

from nbhelpers.kernels import rope


def cos_sin(frequency, positions):
    angle = (positions[..., None].double() * frequency).repeat(1, 1, 2)
    return angle.cos(), angle.sin()


def test_frequencies_closed_form():
    frequency = rope.inverse_frequencies(8, theta=10000.0)
    assert frequency.dtype == torch.float64
    assert_close(frequency, np.array([1.0, 0.1, 0.01, 0.001]))
    assert_close(rope.wavelengths(frequency), 2 * math.pi * np.array([1.0, 10, 100, 1000]))
    assert rope.inverse_frequencies(2).tolist() == [1.0]


class TestRotate:
    def test_one_position_is_that_of_all_rows(self):
        x, frequency = normal(5, 8), rope.inverse_frequencies(8)
        one, all_five = (rope.rotate(x, torch.full((n,), 3), frequency) for n in (1, 5))
        assert torch.equal(one, all_five)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_is_llamas(self, dtype):
        x, positions = normal(2, 3, 11, 16, dtype=dtype), torch.arange(11)
        frequency = rope.inverse_frequencies(16, theta=100000.0)
        cos, sin = cos_sin(frequency, positions[None])
        expected, _ = modeling_llama.apply_rotary_pos_emb(x.double(), x.double(), cos, sin)
        assert_close(rope.rotate(x, positions, frequency), expected, dtype=dtype)

    def test_partial_rotation_is_gpt_neox(self):
        config = modeling_gpt_neox.GPTNeoXConfig(hidden_size=256, num_attention_heads=4)
        theirs, _ = modeling_gpt_neox.GPTNeoXRotaryEmbedding.compute_default_rope_parameters(config)
        frequency = rope.inverse_frequencies(64, theta=config.rope_parameters["rope_theta"], fraction=0.25)
        assert_close(frequency, theirs, dtype=torch.float32)
        x, positions = normal(2, 3, 11, 64), torch.arange(11)
        cos, sin = cos_sin(frequency, positions[None])
        expected, _ = modeling_gpt_neox.apply_rotary_pos_emb(x, x, cos, sin)
        rotated = rope.rotate(x, positions, frequency)
        assert_close(rotated, expected)
        assert torch.equal(rotated[..., 16:], x[..., 16:])

    def test_interleaved_is_gpt_j(self):
        x, positions = normal(2, 11, 3, 16), torch.arange(11)  # (batch, position, head, dim)
        frequency = rope.inverse_frequencies(16)
        angle = (positions[:, None] * frequency)[None]
        expected = modeling_gptj.apply_rotary_pos_emb(x, angle.sin(), angle.cos())
        rotated = rope.rotate(x.transpose(1, 2), positions, frequency, interleaved=True)
        assert_close(rotated.transpose(1, 2), expected)

    @pytest.mark.parametrize("interleaved", [False, True])
    def test_each_pair_is_turned_as_a_complex_number(self, interleaved):
        def pairs(x):
            parts = x.unflatten(-1, (4, 2)) if interleaved else x.unflatten(-1, (2, 4)).mT
            return torch.view_as_complex(parts.contiguous())

        x, frequency = normal(5, 8), rope.inverse_frequencies(8)
        turned = pairs(x) * torch.exp(1j * torch.arange(5)[:, None] * frequency)
        rotated = rope.rotate(x, torch.arange(5), frequency, interleaved=interleaved)
        assert_close(torch.view_as_real(pairs(rotated)), torch.view_as_real(turned))

    def test_positions_per_sequence_and_fractions(self):
        x, frequency = normal(2, 3, 5, 8), rope.inverse_frequencies(8)
        positions = torch.tensor([[0.0, 0.5, 1, 1.5, 2], [3, 4, 5, 6, 7]])
        batched = rope.rotate(x, positions[:, None], frequency)
        for i in range(2):
            assert_close(batched[i], rope.rotate(x[i], positions[i], frequency))

    def test_gradients_flow(self):
        x, frequency = normal(4, 8).requires_grad_(), rope.inverse_frequencies(8)
        assert torch.autograd.gradcheck(lambda y: rope.rotate(y, torch.arange(4), frequency), x)


def test_lag_kernel_is_the_score_of_equal_energy_pairs():
    frequency = rope.inverse_frequencies(16)
    x = rope.rotate(torch.ones(30, 16, dtype=torch.float64), torch.arange(30), frequency)
    kernel = rope.lag_kernel(frequency, torch.arange(30))
    assert_close(kernel, (x @ x[0]) / 16)
    assert kernel[0] == 1
    assert torch.equal(rope.lag_kernel(frequency, -torch.arange(30).reshape(5, 6)), kernel.view(5, 6))


@pytest.mark.parametrize("n_heads", [1, 2, 3, 6, 8, 14, 71])
def test_alibi_is_blooms_up_to_a_constant_per_row(n_heads):
    theirs = build_alibi_tensor(torch.ones(1, 9, dtype=torch.long), n_heads, torch.float32)
    ours = rope.alibi_bias(n_heads, 9)  # (head, query, key); theirs is (head, 1, key)
    causal = torch.full((9, 9), -math.inf).triu(1)
    assert ours.dtype == torch.float32
    assert_close(ours.softmax(-1), (theirs + causal).softmax(-1))
    assert torch.equal(ours == -math.inf, causal.expand(n_heads, -1, -1) == -math.inf)
    assert not ours.diagonal(0, 1, 2).any(), "the constant makes lag 0 zero"


class TestT5:
    @pytest.mark.parametrize("bidirectional", [False, True])
    @pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (16, 64), (8, 500), (32, 17), (4, 9)])
    def test_buckets_are_t5s_at_every_distance(self, bidirectional, n_buckets, max_distance):
        positions = torch.arange(-3000, 3001)
        expected = T5Attention._relative_position_bucket(positions, bidirectional, n_buckets, max_distance)
        options = {"bidirectional": bidirectional, "n_buckets": n_buckets, "max_distance": max_distance}
        assert torch.equal(rope.t5_bucket(positions, **options), expected)
        if (n_buckets, max_distance) == (32, 128):
            assert torch.equal(rope.t5_bucket(positions, bidirectional=bidirectional), expected)

    @pytest.mark.parametrize("bidirectional", [False, True])
    def test_bias_looks_the_bucket_up(self, bidirectional):
        table, length = normal(32, 3), 200
        bias = rope.t5_bias(table, length, bidirectional=bidirectional)
        assert bias.shape == (3, length, length)
        for query, key in [(0, 0), (0, 5), (5, 0), (199, 0), (0, 199), (60, 71), (71, 60)]:
            bucket = int(rope.t5_bucket(key - query, bidirectional=bidirectional))
            assert torch.equal(bias[:, query, key], table[bucket])


def test_a_sinusoidal_embedding_is_the_slow_formula():
    for position, measured in enumerate(rope.sinusoidal_embedding(7, 6)):
        angles = [position / 10000 ** (2 * pair / 6) for pair in range(3)]
        assert_close(measured, np.ravel([(math.sin(angle), math.cos(angle)) for angle in angles]))


test_bad_input_is_refused = refusals(
    (lambda: rope.inverse_frequencies(7), "rotates 7"),
    (lambda: rope.inverse_frequencies(7, fraction=0.25), "rotates 1"),
    (lambda: rope.inverse_frequencies(8, fraction=1.5), "from 0 to 1"),
    (lambda: rope.rotate(normal(5, 8), torch.arange(5), rope.inverse_frequencies(16)), "head_dim of 16"),
    (lambda: rope.t5_bucket(3, n_buckets=2), "n_buckets 2"),
    (lambda: rope.t5_bucket(3, max_distance=8), "max_distance"),
    (lambda: rope.t5_bucket(3, bidirectional=True, max_distance=8), "8 of them for single distances"),
)

"""Capture on a CUDA device gives what it gives on the CPU; skipped aloud where there is none."""

import pytest
import torch
import transformers as hf

from nbhelpers.hooks import flash
from nbhelpers.hooks.capture import capture
from nbhelpers.protocol import PAPER

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no CUDA device: capture on a GPU is not tested here"
    ),
]
EVERYTHING = [
    "key_profile",
    "lag_profile",
    "last_query",
    "row_psd",
    "row_entropy",
    "local_mass",
    "row_metrics",
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        max_position_embeddings=32768,
    )
    model = hf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model


def tokens(length, n=3):
    return torch.randint(3, 64, (n, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("length", [5, 64, 300])
def test_equal_to_the_cpu(model, length):
    from nbhelpers.hooks.reductions import RowMetrics

    wanted = [name for name in EVERYTHING if name != "row_metrics"]
    protocol = PAPER.replace(level="own")
    ids = tokens(length)
    on_cpu = capture(model.cpu(), ids, [*wanted, RowMetrics(protocol)], progress=False)
    on_gpu = capture(model.cuda(), ids, [*wanted, RowMetrics(protocol)], progress=False)
    for name in on_cpu.arrays:
        torch.testing.assert_close(on_gpu[name], on_cpu[name], rtol=5e-4, atol=5e-5, equal_nan=True)


def test_block_size_does_not_matter(model):
    ids = tokens(200)
    whole = capture(model.cuda(), ids, EVERYTHING, progress=False)
    parts = capture(model.cuda(), ids, EVERYTHING, chunk=16, batch_size=1, progress=False)
    for name in whole.arrays:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_hidden_states_are_unchanged(model):
    ids = tokens(64).cuda()
    seen = []
    with torch.inference_mode():
        plain = model.cuda().base_model(ids)[0]
    handle = model.base_model.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    capture(model, ids, progress=False)
    handle.remove()
    assert torch.equal(seen[0], plain)


def test_bfloat16_is_upcast_before_the_scores(model):
    half = hf.LlamaForCausalLM(model.config).eval()
    half.load_state_dict(model.state_dict())
    half = half.to("cuda", torch.bfloat16)
    profiles = capture(half, tokens(128), ["key_profile", "row_entropy"], progress=False)
    assert profiles.key_profile.dtype == torch.float32
    assert (profiles.key_profile.sum(-1) - 1).abs().max() < 1e-5


def test_fused_passes_equal_blocks_and_hold_no_matrix(model):
    length = 4096
    ids = tokens(length, n=1)
    model = model.cuda()
    assert length >= flash.LEAST_KEYS
    by_blocks = capture(model, ids, ["key_profile", "last_query"], progress=False)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fused = capture(model, ids, progress=False)
    assert torch.cuda.max_memory_allocated() - before < 4 * 4 * length * length / 4  # a quarter of one matrix
    torch.testing.assert_close(fused.key_profile, by_blocks.key_profile, rtol=1e-5, atol=1e-5)


def test_32k_tokens(model):
    found = capture(model.cuda(), tokens(32768, n=1), progress=False).key_profile
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]), rtol=1e-4, atol=0)

"""Capture of the packaged models that are fetched: ``make test-models``, which no other target runs."""

import pytest
import torch

from nbhelpers.hooks.capture import capture
from nbhelpers.inputs.models import load_model
from nbhelpers.inputs.text import load_text
from tests import tiny_models as tiny

LENGTH = 600  # beyond the window of 512 tokens of Gemma 3
WIDEST = {"gemma3-270m": 512, "qwen2.5-coder-0.5b": LENGTH}  # keys that a sliding layer lets a query see


@pytest.mark.models
@pytest.mark.parametrize("name", WIDEST)
@torch.inference_mode()
def test_capture_is_the_attention_that_the_model_uses(name):
    # In float32 key biases of 150, as Qwen2.5 has them, leave probabilities 3e-5 of rounding.
    loaded = load_model(name, device="cpu", dtype="float64")
    ids = load_text("moby-dick", loaded, n_sequences=1, length=LENGTH)
    got = capture(loaded, ids, [tiny.Whole()], progress=False).whole  # (1, layer, head, query and key)
    got = got.unflatten(-1, (LENGTH, LENGTH))[0]
    truth = tiny.effective_attention(loaded.model, lambda: loaded.model(ids))
    assert len(truth) == loaded.description.n_layers
    seen = []
    for layer, (_, attn) in enumerate(truth):
        assert (got[layer] - attn[0]).abs().max() < 1e-7  # kept in float32
        assert (got[layer].sum(-1) - 1).abs().max() < 1e-5
        seen.append(int((attn[0, :, -1] > 0).any(0).sum()))
    assert min(seen) == WIDEST[name]
    assert max(seen) == LENGTH

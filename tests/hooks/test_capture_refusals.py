"""capture: what it refuses, and what its errors say."""

import os
import subprocess
import sys

import pytest
import torch
from tiny_models import capture_quietly, make_model, make_padding, make_tokens, n_hooks

from nbhelpers.hooks import families
from nbhelpers.hooks.reductions import KeyProfile


def test_train_mode_is_refused():
    with pytest.raises(ValueError, match=r"train mode.*model.eval\(\)"):
        capture_quietly(make_model().train(), make_tokens(8))


def test_a_sequence_longer_than_the_positions(llama):
    with pytest.raises(ValueError, match=r"have 257 tokens.*has 256 positions.*at most 256"):
        capture_quietly(llama, make_tokens(257))


@pytest.mark.parametrize("word", [-1, 64, 50_000])
def test_ids_outside_the_vocabulary(llama, word):
    ids = make_tokens(8)
    ids[1, 3] = word
    with pytest.raises(ValueError, match=rf"run from .*{word}.*knows 0 to 63.*tokenizer"):
        capture_quietly(llama, ids)


@pytest.mark.parametrize(
    "ids", [torch.rand(2, 8), torch.ones(8, dtype=torch.long), torch.ones(0, 8, dtype=torch.long)]
)
def test_ids_of_another_form(llama, ids):
    with pytest.raises(ValueError, match=r"integers \(sequence, position\), not empty"):
        capture_quietly(llama, ids)


def test_a_fully_padded_row(llama):
    mask = make_padding(8, "left", n=3, hidden=8)
    with pytest.raises(ValueError, match=r"Sequences \[2\] are padding"):
        capture_quietly(llama, make_tokens(8, n=3), attention_mask=mask)


def test_a_mask_of_another_shape(llama):
    with pytest.raises(ValueError, match=r"shape \(2, 7\), token_ids \(2, 8\)"):
        capture_quietly(llama, make_tokens(8), attention_mask=torch.ones(2, 7))


def test_a_mask_of_other_values(llama):
    with pytest.raises(ValueError, match=r"1 for tokens and 0 for padding.*-10000"):
        capture_quietly(llama, make_tokens(8), attention_mask=torch.full((2, 8), -10000.0))


@pytest.mark.parametrize("name", ["batch_size", "chunk"])
@pytest.mark.parametrize("value", [0, -3])
def test_impossible_sizes(llama, name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 1.*got {value}"):
        capture_quietly(llama, make_tokens(8), **{name: value})


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_nan_weights_name_the_layer(family, layer):
    model = make_model(family)
    with torch.no_grad():
        if family == "llama":
            model.model.layers[layer].self_attn.q_proj.weight[3, 3] = torch.nan
        else:
            model.transformer.h[layer].self_attention.query_key_value.weight[3, 3] = torch.nan
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match=rf"layers \[{layer}[],].* is not a distribution.*nan"):
        capture_quietly(model, make_tokens(8))
    assert model.config._attn_implementation == before


def test_attention_of_the_module_route_that_does_not_sum_to_one():
    model = make_model("bloom")
    attention = model.transformer.h[1].self_attention
    handle = attention.register_forward_hook(
        lambda module, args, output: (output[0], output[1] * 1.5), prepend=True
    )
    with pytest.raises(ValueError, match=r"layers \[1\].*miss 1 by up to 0\.5"):
        capture_quietly(model, make_tokens(8))
    handle.remove()
    assert n_hooks(model) == n_hooks(make_model("bloom"))


def test_an_unknown_stream(llama):
    with pytest.raises(ValueError, match="streams self; 'cross' was asked for"):
        capture_quietly(llama, make_tokens(8), stream="cross")
    with pytest.raises(ValueError, match="streams encoder, decoder, cross; 'self'"):
        capture_quietly(make_model("t5"), make_tokens(8), stream="self")


def test_decoder_ids_are_checked(llama):
    t5, ids = make_model("t5"), make_tokens(8)
    with pytest.raises(ValueError, match=r"decoder_ids run from .* to 99"):
        capture_quietly(t5, ids, stream="cross", decoder_ids=torch.full((2, 5), 99))
    with pytest.raises(ValueError, match=r"with 2 sequences; got \(1, 5\)"):
        capture_quietly(t5, ids, stream="cross", decoder_ids=make_tokens(5, n=1))
    with pytest.raises(ValueError, match="one stack"):
        capture_quietly(llama, ids, decoder_ids=ids)


def test_a_family_that_bypasses_the_interface(monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "bloom", families.Family("bloom", "alibi", route="interface"))
    model = make_model("bloom")
    before = model.config._attn_implementation
    with pytest.raises(
        RuntimeError, match=r"bloom: no attention was seen.*register_family\(.*route='module'"
    ):
        capture_quietly(model, make_tokens(8))
    assert model.config._attn_implementation == before


EXHAUST = """
import resource, psutil, torch
import transformers as hf
from nbhelpers.hooks.capture import capture
torch.set_num_threads(1)
sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
config = hf.LlamaConfig(**sizes, **special, vocab_size=64, max_position_embeddings=4096)
model = hf.LlamaForCausalLM(config).eval()
ids = torch.zeros(1, 4096, dtype=torch.long)
capture(model, ids[:, :8], progress=False)
limit = psutil.Process().memory_info().vms + 100 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    capture(model, ids, chunk=4096, progress=False)
except MemoryError as error:
    print("MemoryError:", error)
print("restored:", model.config._attn_implementation)
print(capture(model, ids, chunk=64, progress=False).key_profile.shape)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space, which only Linux enforces")
def test_out_of_memory_says_the_estimate_and_smaller_settings():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", EXHAUST], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "MemoryError: Not enough memory for 1 sequences of 4096 tokens" in done.stdout
    assert "about 1542 MB beyond the model's weights" in done.stdout
    assert "batch_size=1, chunk=2048" in done.stdout
    assert "restored: sdpa" in done.stdout
    assert "torch.Size([1, 1, 4, 4096])" in done.stdout  # the smaller chunk fits the same memory


class Failing(KeyProfile):
    """A key profile that raises in the middle of a batch."""

    def __init__(self, error):
        self._error = error

    def update(self, state, block, layout):
        raise self._error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_the_ways_of_running_out_of_memory(llama, error):
    with pytest.raises(
        MemoryError, match=r"Not enough memory for 2 sequences.*batch_size=1, chunk=4"
    ) as caught:
        capture_quietly(llama, make_tokens(8), Failing(error), batch_size=2, chunk=8)
    assert (str(error) or "MemoryError").splitlines()[0] in str(caught.value)


def test_other_errors_are_not_called_out_of_memory(llama):
    with pytest.raises(RuntimeError, match="size of tensor"):
        capture_quietly(llama, make_tokens(8), Failing(RuntimeError("size of tensor a must match")))

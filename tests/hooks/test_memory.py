import itertools
import sys

import pytest
import torch
import warm_kernels
from tiny_models import capture_quietly, make_tokens

from nbhelpers.hooks import memory
from nbhelpers.hooks.memory import plan
from nbhelpers.hooks.reductions import KeyProfile

# A model of one head and a limited address space: whole blocks do not fit it, smaller ones do.
EXHAUST = """
import resource, warnings, psutil, torch
import transformers as hf
from nbhelpers.hooks.capture import capture
torch.set_num_threads(1)
sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
config = hf.LlamaConfig(**sizes, **special, vocab_size=64, max_position_embeddings=4096)
model = hf.LlamaForCausalLM(config).eval()
ids = torch.arange(4096)[None] % 64
whole = capture(model, ids, chunk=64, progress=False).key_profile
limit = psutil.Process().memory_info().vms + 200 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    halved = capture(model, ids, chunk=4096, progress=False).key_profile
print(*(warning.message for warning in caught), sep="\\n")
print("equal:", torch.allclose(halved, whole, atol=1e-6), "restored:", model.config._attn_implementation)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space, which only Linux enforces")
def test_where_memory_runs_out_the_blocks_are_halved_until_they_fit(tmp_path):
    process = warm_kernels.start(EXHAUST, log=tmp_path / "log")
    process.join(300)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 0, said
    assert "1 sequences in blocks of 4096 rows; going on with 1 in blocks of 2048." in said
    assert "equal: True restored: sdpa" in said


class Failing(KeyProfile):
    def __init__(self, error, *, batch=0, rows=0):
        self._error, self._batch, self._rows = error, batch, rows

    def update(self, state, block, layout):
        if layout.batch > self._batch or block.n_rows > self._rows:
            raise self._error
        super().update(state, block, layout)


WAYS = [
    MemoryError(),
    RuntimeError("std::bad_alloc"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
]


@pytest.mark.parametrize("error", WAYS)
def test_first_the_batch_is_halved_then_the_chunk(llama, error):
    ids = make_tokens(16, n=5)
    hungry = Failing(error, batch=1, rows=8)
    with pytest.warns(UserWarning, match="Not enough memory") as caught:
        found = capture_quietly(llama, ids, hungry, batch_size=4, chunk=16)
    assert {warning.filename for warning in caught} == {capture_quietly.__code__.co_filename}
    steps = [(4, 16), (2, 16), (1, 16), (1, 8)]  # what was learned on the first batch holds for the rest
    for warning, ((n, rows), (fewer, less)) in zip(caught, itertools.pairwise(steps), strict=True):
        said = f"{n} sequences in blocks of {rows} rows; going on with {fewer} in blocks of {less}."
        assert said in str(warning.message)
    torch.testing.assert_close(found.key_profile, capture_quietly(llama, ids).key_profile)


def test_the_hint_to_the_allocator_is_no_reason_to_fail(llama, monkeypatch):
    monkeypatch.setattr("nbhelpers.hooks.capture.LARGEST_KEPT_BYTES", 2**60)
    ids = make_tokens(16)
    with pytest.raises(RuntimeError, match="allocate"):
        torch.empty(2**60, dtype=torch.uint8)
    assert capture_quietly(llama, ids).key_profile.isfinite().all()


@pytest.mark.filterwarnings("ignore:Not enough memory")
@pytest.mark.parametrize("error", WAYS)
def test_nothing_smaller_is_left(llama, error):
    with pytest.raises(MemoryError, match=r"for 2 sequences.*1 at a time.*bfloat16") as told:
        capture_quietly(llama, make_tokens(8), Failing(error), batch_size=2, chunk=8)
    assert (str(error) or "MemoryError").splitlines()[0] in str(told.value)


def test_other_errors_are_not_called_out_of_memory(llama):
    with pytest.raises(RuntimeError, match="size of tensor"):
        capture_quietly(llama, make_tokens(8), Failing(RuntimeError("size of tensor a must match")))


def test_batch_and_chunk_come_from_free_memory_or_are_refused_with_numbers(llama):
    assert plan(llama, 5, 20).chunk == 20  # never more rows than there are
    roomy = plan(llama, 64, 128, free_bytes=2**60)
    assert (roomy.batch_size, roomy.n_sequences) == (memory.CPU_BATCH_TOKENS // 128, 64)
    tight = plan(llama, 64, 128, free_bytes=roomy.working_bytes)  # of which only a part may be used
    assert tight.batch_size == roomy.batch_size // 2
    assert tight.working_bytes <= memory.USABLE * roomy.working_bytes
    assert roomy.working_bytes == memory.USABLE * (roomy.working_bytes * 5 / 4)
    assert plan(llama, 64, 128, free_bytes=roomy.working_bytes * 5 / 4) == roomy, "it just fits"
    one = plan(llama, 1, 256, free_bytes=2**60)
    narrow = plan(llama, 1, 256, free_bytes=int(0.9 * one.working_bytes))
    assert (narrow.batch_size, narrow.chunk) == (1, one.chunk // 2)
    todo, config = plan(llama, 3, 100, batch_size=2, chunk=32), llama.config
    assert todo.block_bytes == 4 * 2 * config.num_attention_heads * 32 * 100
    wide = 3 * config.intermediate_size + 8 * config.hidden_size
    assert todo.working_bytes == 6 * todo.block_bytes + 4 * 2 * 100 * wide
    with pytest.raises(MemoryError, match=r"4 at a time.*1 MB are free on cpu.*to be chosen.*bfloat16"):
        plan(llama, 4, 256, batch_size=4, chunk=256, free_bytes=2**20)
    with pytest.raises(MemoryError, match=r"1 at a time, blocks of 8 query rows"):
        plan(llama, 4, 256, free_bytes=2**12)


def test_capture_asks_what_is_free(llama, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**12)
    with pytest.raises(MemoryError, match="are free on cpu"):
        capture_quietly(llama, make_tokens(64))

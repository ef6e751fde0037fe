"""How much memory a capture needs, what there is, and smaller steps where it does not suffice."""

import gc
from dataclasses import dataclass, replace

import torch

from nbhelpers.arguments import EXHAUSTED, checked
from nbhelpers.inputs.devices import free_memory
from nbhelpers.inputs.families import largest, n_heads_of
from nbhelpers.inputs.models import input_device, unwrap
from nbhelpers.words import warn

from .attention import default_chunk

CPU_BATCH_TOKENS = 1024  # more tokens per forward pass gain nothing on a CPU
CUDA_BATCH_TOKENS = 32768
USABLE = 0.8  # of the free memory; the estimate is good to a factor, and others need some too
LEAST_CHUNK = 8  # query rows; fewer save nothing, the layer's activations are larger then


@dataclass(frozen=True)
class Plan:
    """What a capture will do and roughly need, printed by ``str``; made by :func:`plan`."""

    n_sequences: int
    length: int
    batch_size: int
    chunk: int
    row_bytes: int  # of a query row of the scores of all heads
    token_bytes: int  # of the activations of a layer and the residual stream

    @property
    def block_bytes(self):
        """Bytes of the scores that are held at once."""
        return self.batch_size * self.chunk * self.row_bytes

    @property
    def working_bytes(self):
        """Bytes beyond the model's weights."""
        return 6 * self.block_bytes + self.batch_size * self.length * self.token_bytes

    def smaller(self, *, batch=True, chunk=True):
        """Return a plan with half the batch or, at one sequence, half the chunk; None if there is none."""
        if batch and self.batch_size > 1:
            return replace(self, batch_size=self.batch_size // 2)
        if chunk and self.chunk > LEAST_CHUNK:
            return replace(self, chunk=max(LEAST_CHUNK, self.chunk // 2))
        return None

    def __str__(self):
        batches = f"{self.n_sequences} sequences of {self.length} tokens, {self.batch_size} at a time"
        blocks = f"blocks of {self.chunk} query rows ({self.block_bytes / 2**20:.1f} MB)"
        return f"{batches}, {blocks}; about {self.working_bytes / 2**20:.0f} MB beyond the model's weights"


@checked
def plan(model, n_sequences, length, *, batch_size=None, chunk=None, free_bytes=None):
    """Choose how :func:`nbhelpers.capture` will run, and estimate the memory it needs.

    Parameters
    ----------
    model : LoadedModel or transformers.PreTrainedModel
    n_sequences, length : int
        Number of sequences and tokens in each.
    batch_size, chunk : int, optional
        Sequences per forward pass and query rows held at once; if None, as many as the device makes use of
        and `free_bytes` (what is free on the model's device if None) hold.

    Returns
    -------
    Plan
        `working_bytes` counts a few blocks, the activations of one layer and the residual stream; measured
        peaks lie within a factor of two.

    Raises
    ------
    MemoryError
        Not even one sequence in the smallest blocks fits; the message says what would.
    """
    model = unwrap(model)
    device, config = input_device(model), model.config.get_text_config()
    free_bytes = free_memory(device) if free_bytes is None else free_bytes
    tokens = CUDA_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS
    size, n_heads = batch_size or max(1, min(n_sequences, tokens // length)), largest(n_heads_of(config))
    rows = min(length, chunk or default_chunk(size, n_heads, length, device))
    width = largest(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    token_bytes = (3 * width + 8 * config.hidden_size) * model.dtype.itemsize
    todo = Plan(n_sequences, length, size, rows, 4 * n_heads * length, token_bytes)
    while todo.working_bytes > USABLE * free_bytes:
        if (fewer := todo.smaller(batch=batch_size is None, chunk=chunk is None)) is None:
            raise MemoryError(
                f"{todo}, but {free_bytes / 2**20:.0f} MB are free on {device}, of which {USABLE:.0%} may "
                "be used. Leave batch_size and chunk to be chosen, use shorter sequences, or load the model "
                "in dtype='bfloat16' or on another device."
            )
        todo = fewer
    return todo


def step_down(todo, error):
    """Return a smaller plan after an error of exhausted memory, and warn of it; raise if there is none."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if not known and not any(phrase in str(error) for phrase in EXHAUSTED):
        raise error
    if (fewer := todo.smaller()) is None:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        less = f"Not enough memory for {todo}, nor for less at a time"
        way_out = "Use shorter sequences, load_model(..., dtype='bfloat16') or another device"
        raise MemoryError(f"{less}. {way_out}. ({reason})") from error
    gc.collect()  # frames of the failed attempt may be part of a cycle, with blocks in their locals
    tried = f"{todo.batch_size} sequences in blocks of {todo.chunk} rows"
    warn(f"Not enough memory for {tried}; going on with {fewer.batch_size} in blocks of {fewer.chunk}.")
    return fewer

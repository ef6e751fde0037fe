"""Stream the attention of a model through reductions while it runs.

Nothing of size layers × heads × T × T is ever held: each layer's attention is formed in float32 by blocks of
query rows, reduced, and dropped. The model's own output is not changed.
"""

import contextlib
import importlib.metadata
import json
from dataclasses import asdict

import torch
from tqdm.auto import tqdm

from nbhelpers import __version__
from nbhelpers.arguments import checked, refuse
from nbhelpers.inputs.devices import return_freed_memory
from nbhelpers.inputs.models import describe, input_device, unwrap
from nbhelpers.kernels.checks import as_real
from nbhelpers.profiles import Profiles

from .attention import Recorder, forward, streams_of
from .memory import explained, plan, step_down
from .reductions import resolve
from .store import BatchStore

# glibc hands freed memory back to the system, and every block is then paid for again page by page, until a
# block of this size has come and gone (its limit for this adaptation is 32 MB).
LARGEST_KEPT_BYTES = 31 * 2**20


@checked
def capture(
    model,
    token_ids,
    reductions=None,
    *,
    attention_mask=None,
    batch_size=None,
    chunk=None,
    stream=None,
    decoder_ids=None,
    cache=None,
    progress=True,
):
    """Run the model over sequences and keep reductions of its attention.

    Parameters
    ----------
    model : LoadedModel or transformers.PreTrainedModel
        In eval mode. Its weights, output and attention implementation are left as they were.
    token_ids : torch.LongTensor, shape (sequence, position)
    reductions : str, Reduction, or list of them, optional
        Names of :data:`nbhelpers.hooks.reductions.REDUCTIONS` or instances; ``key_profile`` if None.
    attention_mask : torch.Tensor, shape (sequence, position), optional
        1 for tokens, 0 for padding, on either side. Padded queries count for nothing.
    batch_size, chunk : int, optional
        Sequences per forward pass and query rows held at once; chosen for the device and its free memory if
        None (see :func:`nbhelpers.plan`). Where memory runs out all the same, the batch is halved, then the
        chunk, with a warning.
    stream : {"encoder", "decoder", "cross"}, optional
        Which attention of an encoder-decoder; the encoder's if None.
    decoder_ids : torch.LongTensor, shape (sequence, position), optional
        What the decoder of an encoder-decoder reads; the sequences themselves, shifted right, if None.
    cache : path, optional
        A folder in which each finished batch is kept. The same call finds them again, so an interrupted run
        resumes.
    progress : bool
        Show a bar (not when TQDM_DISABLE is set).

    Returns
    -------
    Profiles

    Raises
    ------
    ValueError
        For sequences longer than the model's positions, ids outside its vocabulary, a fully padded sequence,
        an unknown reduction or stream, a model in train mode, attention that is not finite or does not sum to
        1.
    MemoryError
        When memory does not suffice for one sequence; the message holds the estimate and the ways out.
    RuntimeError
        When no attention was seen: the family computes it in a way that neither route meets.
    """
    network = unwrap(model)
    made = resolve(reductions)
    stream = streams_of(network)[0] if stream is None else stream
    if stream not in streams_of(network):
        raise ValueError(f"The model has the streams {', '.join(streams_of(network))}; got {stream!r}.")
    ids = _checked_ids(network, describe(model), token_ids)
    mask = None if attention_mask is None else _checked_mask(attention_mask, ids)
    decoder_ids = None if decoder_ids is None else _checked_decoder_ids(network, decoder_ids, len(ids))
    return_freed_memory()  # of arrays made before, whatever made them
    todo = plan(network, *ids.shape, batch_size=batch_size, chunk=chunk)
    facts = _provenance(model, network, made, stream, todo)
    store = BatchStore(cache, network, facts, ids, mask, decoder_ids)
    parts = []
    shown = f"capture, about {todo.working_bytes / 2**20:.0f} MB"
    with tqdm(total=len(ids), desc=shown, unit="seq", disable=None if progress else True) as bar:
        start = 0
        while start < len(ids):
            rows = slice(start, min(start + todo.batch_size, len(ids)))
            part = store.load(rows)
            if part is None:
                inputs = ids[rows], _rows(mask, rows), _rows(decoder_ids, rows)
                try:
                    with explained(todo):
                        part = _run_batch(network, *inputs, made, stream, todo).with_provenance(**facts)
                except MemoryError as error:
                    todo = step_down(network, todo, error)
                    continue
                store.save(rows, part)
            parts.append(part)
            bar.update(part.n_sequences)
            start = rows.stop
    return Profiles.concatenate(parts)


def _run_batch(network, ids, mask, decoder_ids, reductions, stream, todo):
    """Return the Profiles of one forward pass."""
    with contextlib.suppress(RuntimeError):  # a hint: where there is no room for it, blocks may still fit
        torch.empty(LARGEST_KEPT_BYTES, dtype=torch.uint8)  # allocated and freed untouched: costs nothing
    recorder = Recorder(network, reductions, stream=stream, attention_mask=mask, chunk=todo.chunk)
    forward(network, recorder, ids, attention_mask=mask, decoder_ids=decoder_ids)
    return recorder.profiles()


def _checked_ids(network, description, ids):
    if network.training:
        raise ValueError("The model is in train mode, where dropout changes attention; call model.eval().")
    if ids.ndim != 2:
        refuse("token_ids", ids, "whole numbers (sequence, position)")
    if description.max_positions is not None and ids.shape[1] > description.max_positions:
        raise ValueError(
            f"The sequences have {ids.shape[1]} tokens but {description.name} has "
            f"{description.max_positions} positions; ask for no more."
        )
    _check_vocabulary(network, ids, "token_ids")
    return ids.cpu()


def _check_vocabulary(network, ids, name):
    n_words = network.get_input_embeddings().num_embeddings
    if ids.min() < 0 or ids.max() >= n_words:
        raise ValueError(
            f"{name} run from {int(ids.min())} to {int(ids.max())} but the model knows 0 to {n_words - 1}; "
            "were they made with another model's tokenizer?"
        )


def _checked_decoder_ids(network, ids, n_sequences):
    if not network.config.is_encoder_decoder:
        raise ValueError("decoder_ids belong to an encoder-decoder; this model has one stack.")
    if ids.ndim != 2 or len(ids) != n_sequences:
        refuse("decoder_ids", ids, f"(sequence, position) with {n_sequences} sequences")
    _check_vocabulary(network, ids, "decoder_ids")
    return ids.cpu()


def _checked_mask(attention_mask, ids):
    """Return the mask as integers, None if every token is real."""
    mask = as_real(attention_mask, "attention_mask").cpu()
    if mask.shape != ids.shape:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}, token_ids {tuple(ids.shape)}.")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"attention_mask must hold 1 for tokens and 0 for padding; its values run from {mask.min()} to "
            f"{mask.max()}."
        )
    mask = mask.long()
    empty = (mask.sum(1) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"Sequences {empty} are padding from end to end; leave them out.")
    return None if bool(mask.all()) else mask


def _rows(tensor, rows):
    return None if tensor is None else tensor[rows]


def _provenance(model, network, reductions, stream, todo):
    packages = ("torch", "transformers", "numpy", "pywavelets")
    versions = {name: importlib.metadata.version(name) for name in packages}
    facts = {
        "model": asdict(describe(model)),
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": str(input_device(network)),
        "attention": network.config._attn_implementation,
        "stream": stream,
        "reductions": [_identity(reduction) for reduction in reductions],
        "length": todo.length,
        "n_sequences": todo.n_sequences,
        "versions": {"nbhelpers": __version__, **versions},
    }
    return json.loads(json.dumps(facts, default=str))  # as a file gives it back: lists, no tuples


def _identity(reduction):
    """Return what distinguishes one reduction's result from another's."""
    stated = {key: value for key, value in sorted(vars(reduction).items()) if not key.startswith("_")}
    choices = {key: value.hash if hasattr(value, "hash") else value for key, value in stated.items()}
    return {"name": reduction.name, **choices}

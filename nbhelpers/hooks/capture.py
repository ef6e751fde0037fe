"""Stream the attention of a model through reductions while it runs.

Nothing of size layers × heads × T × T is ever held: each layer's attention is formed in float32 by blocks of
query rows, reduced, and dropped. The model's own output is not changed.
"""

import contextlib
import functools
import importlib.metadata
import json
from dataclasses import asdict

import torch
from tqdm.auto import tqdm

from nbhelpers import __version__
from nbhelpers.arguments import MOST, checked, refuse
from nbhelpers.inputs.devices import return_freed_memory
from nbhelpers.inputs.families import goes_beyond, rotations_by_length
from nbhelpers.inputs.models import describe, input_device, unwrap
from nbhelpers.inputs.probes import fresh_rotations
from nbhelpers.kernels.checks import as_real
from nbhelpers.profiles import Profiles

from .attention import Recorder, forward, positions_of, shifted_right, streams_of, takes
from .fused import compiled
from .layers import names_of
from .memory import plan, step_down
from .reductions import Reduction, resolve
from .store import BatchStore

# glibc hands freed memory back to the system, and every block is then paid for again page by page, until a
# block of this size has come and gone (its limit for this adaptation is 32 MB).
LARGEST_KEPT_BYTES = 31 * 2**20
_version = functools.cache(importlib.metadata.version)  # reads files: 2 ms each time


@checked
def capture(
    model,
    token_ids,
    reductions=None,
    *,
    attention_mask=None,
    position_ids=None,
    token_type_ids=None,
    batch_size=None,
    chunk=None,
    stream=None,
    decoder_ids=None,
    decoder_mask=None,
    beyond=False,
    fused=True,
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
    attention_mask, decoder_mask : torch.Tensor, shape (sequence, position), optional
        1 for tokens, 0 for padding, on either side. Padded queries count for nothing, and tokens have the
        positions that they have without the padding. The decoder's is `attention_mask` without `decoder_ids`.
    position_ids, token_type_ids : torch.LongTensor, shape (sequence, position), optional
        As the model itself takes them.
    batch_size, chunk : int, optional
        Sequences per forward pass and query rows held at once, chosen by :func:`nbhelpers.plan` if None.
        Where memory runs out all the same, the batch is halved, then the chunk, with a warning.
    stream : {"encoder", "decoder", "cross"}, optional
        Which attention of an encoder-decoder; the encoder's if None.
    decoder_ids : torch.LongTensor, shape (sequence, position), optional
        What the decoder of an encoder-decoder reads; the sequences themselves, shifted right, if None.
    beyond : bool
        Whether sequences may be longer than those of the training, where positions go on (rotations, ALiBi).
    fused : bool
        Whether compiled loops (``pip install 'nbhelpers[fast]'``) measure ``row_metrics``, and
        ``row_entropy`` beside it, where they can: on a CPU, of causal attention without padding, window, soft
        cap, bias or sink term, under a protocol near :data:`nbhelpers.PAPER`; provenance names the layers.
    cache : path, optional
        A folder for finished batches, which the same call finds again: an interrupted run resumes.
    progress : bool
        Show a bar (not when TQDM_DISABLE is set).

    Returns
    -------
    Profiles

    Raises
    ------
    ValueError
        For sequences longer than the model's positions, inputs that it does not take, ids outside its
        vocabulary, a fully padded sequence, an unknown reduction or stream, a model in train mode, attention
        that is not finite or does not sum to 1.
    MemoryError
        When memory does not suffice for one sequence; the message holds the estimate and the ways out.
    RuntimeError
        When no attention was seen, or it is not the one that the model uses.
    """
    network = unwrap(model)
    made = resolve(reductions)
    stream = streams_of(network)[0] if stream is None else stream
    if stream not in streams_of(network):
        raise ValueError(f"The model has the streams {', '.join(streams_of(network))}; got {stream!r}.")
    ids = _checked_ids(network, describe(model), token_ids, beyond)
    # A mask beside positions says that they are those of one text, not of several in a row.
    mask = _checked_mask("attention_mask", attention_mask, ids, keep=position_ids is not None)
    inputs = {"ids": ids, "attention_mask": mask}
    for name, given in (("position_ids", position_ids), ("token_type_ids", token_type_ids)):
        inputs[name] = _checked_extra(network, stream, name, given, ids)
    if mask is not None and position_ids is None:
        inputs["position_ids"] = positions_of(network, stream, ids, mask)
    if stream in ("decoder", "cross"):
        if decoder_ids is None:
            read = shifted_right(network, ids, mask)
            decoder_mask = mask if decoder_mask is None else decoder_mask
        elif decoder_ids.ndim != 2 or len(decoder_ids) != len(ids):
            refuse("decoder_ids", decoder_ids, f"(sequence, position) with {len(ids)} sequences")
        else:
            read = _in_vocabulary(network, decoder_ids, "decoder_ids")
        decoder_mask = _checked_mask("decoder_mask", decoder_mask, read)
        inputs |= {"decoder_ids": read, "decoder_mask": decoder_mask}
        if decoder_mask is not None:
            name = "decoder_position_ids"
            inputs[name] = positions_of(network, stream, read, decoder_mask, name)
    elif not network.config.is_encoder_decoder and (decoder_ids is not None or decoder_mask is not None):
        raise ValueError("decoder_ids and decoder_mask belong to an encoder-decoder; this has one stack.")
    return_freed_memory()  # of arrays made before, whatever made them
    longest = ids.shape[1] if mask is None else int(mask.sum(1).max())
    rotations = rotations_by_length(network.config.get_text_config(), longest)
    batch_size = 1 if rotations and mask is not None else batch_size  # each is rotated by its own length
    todo = plan(network, *ids.shape, batch_size=batch_size, chunk=chunk)
    kernels = compiled(made) if fused else None
    facts = _provenance(model, network, made, stream, todo, kernels)
    facts |= {"rotations": rotations} if rotations else {}
    with fresh_rotations(network):
        store = BatchStore(cache, network, facts, *inputs.values())
    parts = []
    shown = f"capture, about {todo.working_bytes / 2**20:.0f} MB"
    with tqdm(total=len(ids), desc=shown, unit="seq", disable=None if progress else True) as bar:
        start = 0
        while start < len(ids):
            rows = slice(start, min(start + todo.batch_size, len(ids)))
            part = store.load(rows)
            if part is None:
                batch = {name: None if full is None else full[rows] for name, full in inputs.items()}
                try:
                    part = _run_batch(network, batch, made, stream, todo, kernels).with_provenance(**facts)
                except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
                    todo = step_down(todo, error)
                    continue
                store.save(rows, part)
            parts.append(part)
            bar.update(part.n_sequences)
            start = rows.stop
    return Profiles.concatenate(parts)


def _run_batch(network, inputs, made, stream, todo, kernels):
    with contextlib.suppress(RuntimeError):  # a hint: where there is no room for it, blocks may still fit
        torch.empty(LARGEST_KEPT_BYTES, dtype=torch.uint8)  # allocated and freed untouched: costs nothing
    mask = inputs["decoder_mask" if stream in ("decoder", "cross") else "attention_mask"]  # of the queries
    recorder = Recorder(network, made, stream=stream, attention_mask=mask, chunk=todo.chunk, kernels=kernels)
    forward(network, recorder, **inputs)
    if recorder.names.keys() != names_of(network).keys():  # BigBird's first short text exchanges its modules
        return _run_batch(network, inputs, made, stream, todo, kernels)
    return recorder.profiles()


def _checked_ids(network, description, ids, beyond):
    training = next((name for name, module in network.named_modules() if module.training), None)
    if training is not None:
        part = f"The part {training!r} of the model" if training else "The model"
        raise ValueError(f"{part} is in train mode, where dropout changes attention; call model.eval().")
    if ids.ndim != 2:
        refuse("token_ids", ids, "whole numbers (sequence, position)")
    limit = description.max_positions
    if limit is not None and ids.shape[1] > limit:
        possible = goes_beyond(network.config.get_text_config(), network)
        if not (beyond and possible):
            longer = f"The sequences have {ids.shape[1]} tokens but {description.name} has {limit} positions"
            raise ValueError(f"{longer}; ask for no more{', or pass beyond=True' if possible else ''}.")
    return _in_vocabulary(network, ids, "token_ids")


def _in_vocabulary(network, ids, name):
    n_words = len(next(network.get_input_embeddings().parameters()))
    _require_range(name, ids, n_words, "; were they made with another model's tokenizer?")
    return ids.cpu()


def _require_range(name, numbers, limit, hint="."):
    if numbers.min() < 0 or numbers.max() >= limit:
        run = f"{name} run from {int(numbers.min())} to {int(numbers.max())}"
        raise ValueError(f"{run} but the model knows 0 to {limit - 1}{hint}")


def _checked_extra(network, stream, name, numbers, ids):
    """Return position or segment numbers, (sequence, position), None if none are given."""
    if numbers is None:
        return None
    numbers, config = numbers.cpu(), network.config.get_text_config()
    if not takes(network, stream, name):
        raise ValueError(f"{config.model_type} takes no {name}; leave them out.")
    if numbers.shape != ids.shape:
        refuse(name, numbers, f"whole numbers, one for each token, {tuple(ids.shape)}")
    field = "type_vocab_size" if name == "token_type_ids" else "max_position_embeddings"
    endless = name == "position_ids" and goes_beyond(config, network)
    _require_range(name, numbers, (not endless and getattr(config, field, None)) or MOST)
    return numbers


def _checked_mask(name, given, ids, *, keep=False):
    """Return a mask as integers, None if there is none or (unless it is to be kept) every token is real."""
    if given is None:
        return None
    mask = as_real(given, name).cpu()
    if mask.shape != ids.shape:
        raise ValueError(f"{name} has shape {tuple(mask.shape)}, its token ids {tuple(ids.shape)}.")
    if not bool(((mask == 0) | (mask == 1)).all()):
        run = f"its values run from {mask.min()} to {mask.max()}"
        raise ValueError(f"{name} must hold 1 for tokens and 0 for padding; {run}.")
    mask = mask.long()
    if empty := (mask.sum(1) == 0).nonzero().flatten().tolist():
        raise ValueError(f"Sequences {empty} of {name} are padding from end to end; leave them out.")
    return None if bool(mask.all()) and not keep else mask


def _provenance(model, network, reductions, stream, todo, kernels):
    packages = ["torch", "transformers", "numpy", "pywavelets"] + ["numba"] * bool(kernels)
    facts = {
        "model": asdict(describe(model)),
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": str(input_device(network)),
        "attention": network.config._attn_implementation,
        "stream": stream,
        "reductions": [_identity(reduction) for reduction in reductions],
        "length": todo.length,
        "n_sequences": todo.n_sequences,
        "versions": {"nbhelpers": __version__} | {name: _version(name) for name in packages},
    }
    return json.loads(json.dumps(facts, default=str))  # as a file gives it back: lists, no tuples


def _identity(reduction):
    """Return what distinguishes one reduction's result from another's."""
    own = {key: value for key, value in sorted(vars(reduction).items()) if not key.startswith("_")}
    for key, value in own.items():
        own[key] = _identity(value) if isinstance(value, Reduction) else getattr(value, "hash", value)
    return {"name": reduction.name, **own}

"""Change a model while a block runs, and undo it in any case: heads without a voice, rotary pairs removed or
without their positions, positions stretched; the loss beside it, by class of token for many changes."""

import contextlib
import dataclasses
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from nbhelpers.arguments import MOST, checked, one_of, positive, several, whole
from nbhelpers.files import read_parquet, write_parquet
from nbhelpers.inputs.families import n_heads_of, position_encoding_of, rotations_by_length, value_dim_of
from nbhelpers.inputs.models import input_device, is_causal, unwrap
from nbhelpers.inputs.probes import fresh_rotations
from nbhelpers.inputs.text import token_classes
from nbhelpers.words import listed

from .attention import CHANGES, Recorder, interface_route, recorded
from .exchange import as_written, attention_entries, exchanged, holding
from .layers import layer_numbers, names_of, require_layer
from .recompute import attention_modules
from .reductions import resolve
from .rotary import rotations_of

SHORT = 32  # tokens that show how layers rotate
EVERY = 20  # changes, after which their table is written
# What the output projection is called inside the attention modules of transformers' families.
OUTPUT_NAMES = ("o_proj", "out_proj", "c_proj", "dense", "out_lin", "wo", "Wo", "o", "output")


def output_projection(model, layer):
    """Return the module that mixes the heads of a layer, whose input is the heads side by side."""
    network = unwrap(model)
    modules = layer_modules(network)
    require_layer(layer, modules)
    children = dict(modules[layer].named_children())
    if found := [children[name] for name in OUTPUT_NAMES if name in children]:
        return found[0]
    kind, names = type(modules[layer]).__name__, ", ".join(OUTPUT_NAMES)
    lacks = f"its attention module {kind} has no output projection called {names}"
    raise NotImplementedError(f"{network.config.model_type}: {lacks}, so heads cannot be removed here")


def layer_modules(network):
    """Return the attention modules of a network by the number of their layer."""
    modules = attention_modules(network)
    numbers = layer_numbers(modules, names_of(network), network.config.get_text_config())
    return dict(zip(numbers, modules, strict=True))


def _heads_by_layer(network, heads):
    """Return pairs (layer, query head), or every head for None, as {layer: heads}, all of which exist."""
    counts, modules, asked = n_heads_of(network.config.get_text_config()), layer_modules(network), {}
    counts = counts if isinstance(counts, tuple) else dict.fromkeys(modules, counts)
    if heads is None:
        return {layer: list(range(counts[layer])) for layer in modules}
    for layer, head in several(several(whole(-MOST)))("heads", heads):
        require_layer(layer, modules)
        if not 0 <= head < counts[layer]:
            raise IndexError(f"head {head} was asked for; layer {layer} has heads 0 to {counts[layer] - 1}")
        asked.setdefault(layer, []).append(head)
    return asked


@contextlib.contextmanager
def ablate_heads(model, heads, *, means=None):
    """Run a block in which heads, pairs (layer, query head) from 0, add nothing to the residual stream,
    or, with `means`, {layer: (head · width,)}, the same at every token."""
    network = unwrap(model)
    config = network.config.get_text_config()
    each = n_heads_of(config), value_dim_of(config)

    def silence(layer, heads, module, args):
        n_heads, width = (own[layer] if isinstance(own, tuple) else own for own in each)
        kept = args[0].clone()  # (batch, query, head · width)
        if kept.shape[-1] != n_heads * width:
            read = f"the output projection of layer {layer} reads {kept.shape[-1]} features"
            raise NotImplementedError(f"{read}, not {n_heads} heads of {width} side by side")
        fixed = 0 if means is None else means[layer].unflatten(0, (n_heads, width))[heads]
        kept.unflatten(-1, (n_heads, width))[..., heads, :] = fixed
        return (kept, *args[1:])

    with contextlib.ExitStack() as undo:
        for layer, own in _heads_by_layer(network, heads).items():
            projection = output_projection(network, layer)
            undo.callback(projection.register_forward_pre_hook(partial(silence, layer, own)).remove)
        yield model


@checked(pairs=several(whole()), action=one_of("zero", "freeze", "shuffle"))
def change_pairs(model, pairs, action, *, heads=None, length=None, seed=0):
    """Return a block in which rotary pairs, from 0, the fastest, are removed or lose their positions.

    The action "zero" takes them out of the queries; "freeze" leaves their rotation out (cosine 1, sine 0), so
    content stays and position is lost; "shuffle" rotates by the positions in an order drawn with `seed`, the
    same in all layers. `heads` are pairs (layer, query head), all that rotate if None; `length` of the texts
    is needed where rotations depend on it (dynamic, longrope). The model reads whole texts, without a cache.
    """

    def moved(n):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(n, generator=generator) if action == "shuffle" else torch.zeros(n)
        return order - torch.arange(n)  # from their places to others, or all to 0

    return _changed(model, pairs, None if action == "zero" else moved, heads, length)


@checked(alpha=positive)
def scale_positions(model, alpha, *, heads=None, length=None):
    """Return a block in which rotations take α times the position; the others are those of `change_pairs`."""
    return _changed(model, None, lambda n: (alpha - 1) * torch.arange(n), heads, length)


@contextlib.contextmanager
def _changed(model, pairs, moved, heads, length):
    """Run a block in which pairs, all for None, are moved by `moved`(tokens) tokens, or zero in queries."""
    network = unwrap(model)
    config = network.config.get_text_config()
    name, encoding = config.model_type, position_encoding_of(config)
    if not CHANGES.get().keys().isdisjoint(network.modules()):
        way_out = "leave that block before another begins"
        raise RuntimeError(f"{name}: rotary pairs of this model are changed already; {way_out}")
    if length is None and rotations_by_length(config, 1):
        raise ValueError(f"{name}: rotations depend on the length of the text; say it, as in length=256")
    known = "rope" in encoding or encoding == "unknown"
    rotations = rotations_of(network, length or SHORT) if known else []
    if not any(rotation.frequencies.any() for rotation in rotations):
        none = f"no layer rotates its queries and keys (positions: {encoding})"
        raise ValueError(f"{name}: {none}, so there are no rotary pairs to change")
    modules, changes = layer_modules(network), {}
    rotation_of = dict(zip(modules, rotations, strict=True))
    rotating = [layer for layer, rotation in rotation_of.items() if rotation.frequencies.any()]
    for layer, own in _heads_by_layer(network, heads).items():
        n = len(rotation_of[layer].frequencies)
        if beyond := [pair for pair in pairs or () if pair >= n]:
            raise IndexError(f"pair {beyond[0]} was asked for; layer {layer} has the pairs 0 to {n - 1}")
        if layer in rotating:
            chosen = sorted(set(range(n) if pairs is None else pairs))
            changes[modules[layer]] = _change(rotation_of[layer], chosen, moved, sorted(set(own)), length)
        elif heads is not None:
            raise ValueError(f"{name}: layer {layer} does not rotate; those that do are {listed(rotating)}")
    entries = attention_entries(names_of(network))
    with exchanged(entries, recorded), as_written(), holding(CHANGES, CHANGES.get() | changes):
        yield model


def _change(rotation, pairs, moved, heads, length):
    """Return what takes query, key and options of an attention call to changed ones."""
    at, n_pairs = torch.tensor(pairs, dtype=torch.long), len(rotation.frequencies)
    columns = torch.cat([2 * at, 2 * at + 1] if rotation.interleaved else [at, at + n_pairs])
    chosen = rotation.frequencies * torch.isin(torch.arange(n_pairs), at)
    part = dataclasses.replace(rotation, frequencies=chosen)

    def change(query, key, options):
        n_heads, n, width = query.shape[1:]
        if key.shape[2] != n or (length and n != length):
            texts = f"whole texts{f' of {length} tokens' if length else ''}, without a cache"
            raise ValueError(f"positions are changed in {texts}; {n} queries met {key.shape[2]} keys")
        mine = torch.isin(torch.arange(n_heads), torch.tensor(heads)).to(query.device)[:, None, None]
        if moved is None:
            out = torch.isin(torch.arange(width), rotation.first + columns).to(query.device)
            return query.masked_fill(mine & out, 0), key, options
        shift = moved(n).to(query.device)
        new_query, new_key = (part.turn(x, shift).to(x.dtype) for x in (query, key))
        if len(heads) == n_heads:
            return new_query, new_key, options
        # A key may serve other heads too: both forms stand side by side, and each query meets one of them.
        query = torch.cat([query.masked_fill(mine, 0), new_query.masked_fill(~mine, 0)], -1)
        if options.get("scaling") is None:
            options = options | {"scaling": width**-0.5}
        return query, torch.cat([key, new_key], -1), options

    return change


@checked
@torch.inference_mode()
def token_losses(model, token_ids):
    """Return −log p in nats of each token after the first, (sequence, position − 1), float32 on the CPU."""
    network = unwrap(model)
    name = network.config.model_type
    if not is_causal(network):
        raise ValueError(f"this {name} model is not causal: it predicts no next token, so it has no loss")
    if network.get_output_embeddings() is None:
        raise ValueError(f"this {name} model has no language-model head; load it with AutoModelForCausalLM")
    ids = token_ids.to(input_device(network))
    if ids.ndim != 2 or ids.shape[1] < 2:
        raise ValueError(f"a loss needs sequences of at least 2 tokens, got token_ids {tuple(ids.shape)}")
    with fresh_rotations(network):
        logits = network(input_ids=ids, use_cache=False).logits  # (sequence, position, word)
    loss = partial(torch.nn.functional.cross_entropy, reduction="none")
    # One sequence at a time: the words' probabilities take as much memory as the logits again.
    rows = [loss(row[:-1].float(), tokens[1:]) for row, tokens in zip(logits, ids, strict=True)]
    return torch.stack(rows).cpu()


def losses_and_profiles(model, token_ids, reductions):
    """Return :func:`token_losses` and the Profiles of the same forward pass, of sequences without padding."""
    network = unwrap(model)
    recorder = Recorder(network, resolve(reductions))
    with interface_route(network, recorder), as_written():
        losses = token_losses(network, token_ids)
    return losses, recorder.profiles()


def _seen(network, token_ids, modules, take):
    """Return the losses of a pass, and by module what `take` makes of its arguments and its output."""
    found = {}

    def keep(module, args, output):
        found[module] = take(args, output)

    with contextlib.ExitStack() as undo:
        for module in modules:
            undo.callback(module.register_forward_hook(keep).remove)
        return token_losses(network, token_ids), found


def mean_outputs(model, token_ids):
    """Return the mean output of the heads of each layer, {layer: (head · width,)}, for `ablate_heads`."""
    mixed_by = {layer: output_projection(model, layer) for layer in layer_modules(unwrap(model))}
    _, means = _seen(unwrap(model), token_ids, mixed_by.values(), lambda args, _: args[0].mean((0, 1)))
    return {layer: means[projection] for layer, projection in mixed_by.items()}


def resumable(model, token_ids):
    """Return the losses of sequences, and a function of a layer to a block in which those below repeat what
    they gave: with a change from that layer on, losses of these sequences are the same bits."""
    network, blocks = unwrap(model), {}
    names = names_of(network)
    for layer, module in layer_modules(network).items():
        blocks[layer] = network.get_submodule(re.match(r".*\.\d+", names[module][0])[0])
    before, given = _seen(network, token_ids, blocks.values(), lambda _, output: output)

    @contextlib.contextmanager
    def from_layer(layer):
        with contextlib.ExitStack() as undo:
            for block in (block for number, block in blocks.items() if number < layer):
                block.forward = partial(lambda output, *_, **__: output, given[block])
                undo.callback(delattr, block, "forward")
            yield

    return before, from_layer


def measure_changes(loaded, token_ids, changes, path, facts):
    """Return the loss that changes add: nats in all tokens of a class, and their number, per sequence.

    `changes` are (name, first layer that is changed, function to the block that changes the model). A later
    call with the same `path` and `facts` measures what is missing.
    """
    done, known, facts = [], (), json.loads(json.dumps(facts))
    if Path(path).exists():
        table, before = read_parquet(path)
        if before != facts:
            raise ValueError(f"{path} holds changes measured otherwise; give another path, or remove it")
        done, known = [table], set(table.name)
    classes, (before, from_layer) = token_classes(loaded.tokenizer, token_ids), resumable(loaded, token_ids)
    for at, (name, layer, change) in enumerate(tqdm(changes, desc=Path(path).stem), 1):
        if name not in known:
            with change(), from_layer(layer):
                added = (token_losses(loaded, token_ids) - before).numpy()
            for of, where in classes.items():
                row = {"name": name, "class": of, "passage": range(len(where)), "tokens": where.sum(1)}
                done.append(pd.DataFrame(row | {"nats": np.where(where, added, 0).sum(1)}))
        if at % EVERY == 0 or at == len(changes):
            done = [pd.concat(done, ignore_index=True)]
            write_parquet(done[0], path, facts, compression="zstd")
    return done[0]

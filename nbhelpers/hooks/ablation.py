"""Change a model while a block runs, and undo it in any case: heads without a voice; the loss beside it."""

import contextlib

import torch

from nbhelpers.arguments import MOST, checked, several, whole
from nbhelpers.inputs.families import n_heads_of, value_dim_of
from nbhelpers.inputs.models import input_device, is_causal, unwrap
from nbhelpers.inputs.probes import fresh_rotations
from nbhelpers.words import listed

from .layers import layer_numbers, names_of
from .recompute import attention_modules

# What the output projection is called inside the attention modules of transformers' families.
OUTPUT_NAMES = ("o_proj", "out_proj", "c_proj", "dense", "out_lin", "wo", "Wo", "o", "output")


def output_projection(model, layer):
    """Return the module that mixes the heads of a layer, whose input is the heads side by side."""
    network = unwrap(model)
    modules = attention_modules(network)
    layers = layer_numbers(modules, names_of(network), network.config.get_text_config())
    if layer not in layers:
        raise IndexError(f"layer {layer} was asked for; there is attention in the layers {listed(layers)}")
    module = modules[layers.index(layer)]
    children = dict(module.named_children())
    found = next((children[name] for name in OUTPUT_NAMES if name in children), None)
    if found is None:
        raise NotImplementedError(
            f"{network.config.model_type}: its attention module {type(module).__name__} has no "
            f"output projection called {', '.join(OUTPUT_NAMES)}, so heads cannot be removed here"
        )
    return found


@contextlib.contextmanager
def ablate_heads(model, heads):
    """Run a block in which heads, pairs (layer, query head) from 0, add nothing to the residual stream."""
    network = unwrap(model)
    config = network.config.get_text_config()
    counts, widths = n_heads_of(config), value_dim_of(config)
    silent, projections = {}, {}  # by layer
    for layer, head in several(several(whole(-MOST)))("heads", heads):
        if layer not in silent:
            projections[layer] = output_projection(network, layer)
        n_heads = counts[layer] if isinstance(counts, tuple) else counts
        if not 0 <= head < n_heads:
            raise IndexError(f"head {head} was asked for; layer {layer} has the heads 0 to {n_heads - 1}")
        silent.setdefault(layer, []).append(head)

    def hook_of(layer):
        n_heads, width = (own[layer] if isinstance(own, tuple) else own for own in (counts, widths))

        def silence(module, args):
            mixed = args[0]  # (batch, query, head · head_dim)
            if mixed.shape[-1] != n_heads * width:
                raise NotImplementedError(
                    f"the output projection of layer {layer} reads {mixed.shape[-1]} features, not "
                    f"{n_heads} heads of {width} side by side"
                )
            kept = mixed.clone()
            kept.unflatten(-1, (n_heads, width))[..., silent[layer], :] = 0
            return (kept, *args[1:])

        return silence

    with contextlib.ExitStack() as undo:
        for layer, projection in projections.items():
            undo.callback(projection.register_forward_pre_hook(hook_of(layer)).remove)
        yield model


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
    ids = torch.as_tensor(token_ids).to(input_device(network))
    if ids.ndim != 2 or ids.shape[1] < 2:
        raise ValueError(f"a loss needs sequences of at least 2 tokens, got token_ids {tuple(ids.shape)}")
    with fresh_rotations(network):
        logits = (
            network(input_ids=ids, use_cache=False).logits[:, :-1].float()
        )  # (sequence, position − 1, word)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1).cpu()

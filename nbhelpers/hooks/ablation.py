"""Change a model while a block runs, and undo it in any case: heads without a voice.

Ablation sets the slice of one head to zero before the output projection of its layer, so that the head adds
nothing to the residual stream while the other heads and all weights stay as they are.
"""

import contextlib

import torch

from nbhelpers.inputs.families import head_dim_of, kind_of
from nbhelpers.inputs.models import input_device, unwrap

from .recompute import attention_modules

# What the output projection is called inside the attention modules of transformers' families.
OUTPUT_NAMES = ("o_proj", "out_proj", "c_proj", "dense", "out_lin", "wo", "Wo", "o", "output")


def output_projection(model, layer):
    """Return the module that mixes the heads of a layer, whose input is the heads side by side.

    Parameters
    ----------
    model : LoadedModel or transformers.PreTrainedModel
    layer : int
        From 0.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    IndexError
        If there is no such layer.
    NotImplementedError
        If the family keeps its projection elsewhere or calls it otherwise.
    """
    network = unwrap(model)
    modules = attention_modules(network)
    if not 0 <= layer < len(modules):
        raise IndexError(f"layer {layer} was asked for; the model has the layers 0 to {len(modules) - 1}")
    children = dict(modules[layer].named_children())
    found = next((children[name] for name in OUTPUT_NAMES if name in children), None)
    if found is None:
        raise NotImplementedError(
            f"{network.config.model_type}: its attention module {type(modules[layer]).__name__} has no "
            f"output projection called {', '.join(OUTPUT_NAMES)}, so heads cannot be removed here; it holds "
            f"{', '.join(children) or 'no modules'}"
        )
    return found


@contextlib.contextmanager
def without_head(model, layer, head):
    """Run a block with one head set to zero; its weights are not touched.

    Parameters
    ----------
    model : LoadedModel or transformers.PreTrainedModel
    layer, head : int
        From 0; a query head.

    Yields
    ------
    The model.

    Raises
    ------
    IndexError
        If there is no such layer or head.
    NotImplementedError
        If the output projection is not where families of transformers have it.
    """
    network = unwrap(model)
    config = network.config.get_text_config()
    n_heads, width = config.num_attention_heads, head_dim_of(config)
    if not 0 <= head < n_heads:
        raise IndexError(f"head {head} was asked for; each layer has the heads 0 to {n_heads - 1}")
    projection = output_projection(network, layer)

    def silence(module, args):
        heads = args[0]  # (batch, query, head · head_dim)
        if heads.shape[-1] != n_heads * width:
            raise NotImplementedError(
                f"the output projection of layer {layer} reads {heads.shape[-1]} features; expected "
                f"{n_heads} heads of {width} side by side, so the head cannot be told from the others"
            )
        kept = heads.clone()
        kept[..., head * width : (head + 1) * width] = 0
        return (kept, *args[1:])

    handle = projection.register_forward_pre_hook(silence)
    try:
        yield model
    finally:
        handle.remove()


def require_language_model(model):
    """Raise ValueError, saying why, unless the model predicts the next token of a text.

    Parameters
    ----------
    model : LoadedModel or transformers.PreTrainedModel
    """
    network = unwrap(model)
    kind = kind_of(network.config.get_text_config())
    name = network.config.model_type
    if kind != "decoder":
        raise ValueError(f"this {name} model is an {kind}: it predicts no next token, so it has no loss here")
    if network.get_output_embeddings() is None:
        raise ValueError(
            f"this {name} model has no language-model head, so it has no loss; load it with "
            "AutoModelForCausalLM (load_model does for causal families)"
        )


@torch.inference_mode()
def token_losses(model, token_ids):
    """Return how badly each token was predicted from those before it: −log p, in nats.

    Parameters
    ----------
    model : LoadedModel or transformers.PreTrainedModel
        A causal language model in eval mode.
    token_ids : torch.LongTensor, shape (sequence, position)
        At least two tokens each.

    Returns
    -------
    torch.Tensor, shape (sequence, position − 1)
        float32, on the CPU.

    Raises
    ------
    ValueError
        If the model predicts no next token or there is nothing to predict.
    """
    require_language_model(model)
    network = unwrap(model)
    ids = torch.as_tensor(token_ids).to(input_device(network))
    if ids.ndim != 2 or ids.shape[1] < 2:
        raise ValueError(f"a loss needs sequences of at least 2 tokens, got token_ids {tuple(ids.shape)}")
    logits = network(input_ids=ids, use_cache=False).logits[:, :-1].float()  # (sequence, position − 1, word)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1).cpu()

"""Look at a model by running a little of it, and leave it as it was."""

import contextlib
import weakref
from contextvars import ContextVar

import torch

LENGTH = 10  # tokens of a probe
_LOOKING = ContextVar("nbhelpers_looking", default=False)
_KNOWN = weakref.WeakKeyDictionary()  # by model: (its configuration, what was seen)


class _Seen(Exception):
    """Ends a forward pass whose first attention was seen."""


def innermost_attention(model):
    """Return the modules whose class name says attention and that hold no other such module."""
    modules = [module for module in model.modules() if "Attention" in type(module).__name__]
    return [outer for outer in modules if not any(m in modules for m in list(outer.modules())[1:])]


def looks_ahead(network, device_of):
    """Return whether queries see later tokens, by the first attention's answer to a change of those; None
    where the model does not run two plain sequences. `device_of` gives the device of its token ids."""
    told = network.config.to_json_string(use_diff=False)
    if _KNOWN.get(network, ("", None))[0] != told:
        runs = not network.training and network.device.type != "meta"
        if not runs or (seen := _first_answer(network, device_of)) is None:
            return None
        _KNOWN[network] = (told, seen)
    return _KNOWN[network][1]


@torch.no_grad()
def _first_answer(network, device_of):
    half, config = LENGTH // 2, network.config.get_text_config()
    short = (getattr(config, "max_position_embeddings", None) or LENGTH) < LENGTH  # a GPU would fail for good
    if short or getattr(config, "attention_type", None) == "block_sparse":  # BigBird's modules would change
        return None

    def compare(module, args, output):
        parts = output if isinstance(output, (tuple, list)) else [output]
        mixed = [part for part in parts if torch.is_tensor(part) and part.shape[:2] == (2, LENGTH)]
        if _LOOKING.get() and mixed:
            one, other = mixed[0][:, :half].float()  # (position, feature)
            off, scale = (one - other).abs().max(), one.abs().max()
            tolerance = max(1e-4, 8 * torch.finfo(mixed[0].dtype).eps)
            raise _Seen(bool(off > tolerance * scale) if off.isfinite() else None)

    token = _LOOKING.set(True)
    with contextlib.ExitStack() as undo:
        undo.callback(_LOOKING.reset, token)
        undo.enter_context(fresh_rotations(network))
        for module in innermost_attention(network):
            undo.callback(module.register_forward_hook(compare).remove)
        try:
            n_words = len(network.get_input_embeddings().weight)
            ids = (torch.arange(LENGTH + half) + n_words // 2) % n_words
            ids = torch.stack([ids[:LENGTH], torch.cat([ids[:half], ids[LENGTH:]])])
            network.base_model(input_ids=ids.to(device_of(network)))
        except _Seen as seen:
            return seen.args[0]
        except Exception:  # whatever a model says that wants more than tokens, or other ones
            return None


@contextlib.contextmanager
def fresh_rotations(network):
    """Run a block in which rotations that depend on length have seen nothing; put back what was after it."""
    with contextlib.ExitStack() as undo:
        for module in network.modules():
            kinds = getattr(module, "rope_type", None)
            kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
            if any(kind == "longrope" or "dynamic" in (kind or "") for kind in kinds):
                undo.callback(object.__setattr__, module, "__dict__", vars(module))
                object.__setattr__(module, "__dict__", _unseen(vars(module)))
        yield


def _unseen(state):
    """Return a copy of the attributes of a module of rotations, as they are before any text."""
    held, spelled = state["_buffers"], ("inv_freq", "original_inv_freq")
    buffers = {name: held.get(name.replace(*spelled), tensor).clone() for name, tensor in held.items()}
    lengths = {name: state["original_max_seq_len"] for name in state if name.endswith("max_seq_len_cached")}
    kept = {name: value for name, value in state.items() if not name.endswith("long_inv_freq")}
    return kept | lengths | {"_buffers": buffers}

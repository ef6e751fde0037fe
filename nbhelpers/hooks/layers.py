"""Which layer of a model an attention module belongs to."""

import re
from itertools import pairwise

from nbhelpers.words import listed


def names_of(model):
    """Return all qualified names of each module: one that serves several layers has several."""
    names = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def layer_numbers(called, names, config):
    """Return the numbers of the layers that attention modules, in the order of their calls, belong to.

    The modules or their names state them; where fewer modules serve all layers in turn (ALBERT), calls are
    counted. RuntimeError unless each layer is met exactly once, in order.
    """
    stated = [getattr(module, "layer_idx", None) for module in called]
    if all(isinstance(number, int) and number >= 0 for number in stated) and _ascending(stated):
        return _complete(stated, called, names)
    turns = [called[:k].count(module) for k, module in enumerate(called)]
    paths = [dict(enumerate(names.get(m, []))).get(k, "") for m, k in zip(called, turns, strict=True)]
    places = [[int(part) for part in path.split(".") if part.isdigit()] for path in paths]
    for depth in range(min(map(len, places))):
        numbers = [place[depth] for place in places]
        if _ascending(numbers):
            return _complete(numbers, called, names)
    n_layers = getattr(config, "num_hidden_layers", None)
    first = re.match(r"(.*?)\.\d+\.", names.get(called[0], [""])[0])  # the list of layers
    last = first and f"{first[1]}.{len(called) - 1}."
    own = last and any(path.startswith(last) for paths in names.values() for path in paths)
    if len(called) == n_layers and not own:
        return list(range(n_layers))
    raise RuntimeError(
        f"{config.model_type}: attention ran {len(called)} times in {len(set(called))} modules of one pass "
        f"({n_layers} layers are configured), but profiles need one attention for each layer. Layers that "
        "form several (differential attention), run several times or belong to several stacks cannot be "
        "captured."
    )


def require_layer(layer, layers):
    """Raise IndexError unless a layer is one of those that have attention."""
    if layer not in layers:
        raise IndexError(f"layer {layer} was asked for; there is attention in the layers {listed([*layers])}")


def _ascending(numbers):
    return all(low < high for low, high in pairwise(numbers))


def _complete(numbers, called, names):
    """Return the numbers, or raise RuntimeError if a sister of a called module was not called."""
    seen, kinds = set(called), {type(module) for module in called}
    places = {_place(path) for module in seen for path in names.get(module, [])}
    for module, paths in names.items():
        if type(module) in kinds and module not in seen and places & {_place(path) for path in paths}:
            missed = f"The attention of {paths[0]} was not seen, that of {len(seen)} modules like it was"
            raise RuntimeError(f"{missed}; nothing is kept of a forward pass whose layers are not all seen.")
    return numbers


def _place(path):
    """Return a qualified name without its numbers: the same for all layers of a stack."""
    return re.sub(r"\.\d+(?=\.|$)", ".#", path)

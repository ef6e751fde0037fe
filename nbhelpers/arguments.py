"""What an argument may be: a rule for each name, the same in the whole package, held where a call comes in.

``@checked`` on a function or dataclass holds every argument to the rule of its name in :data:`RULES`, or to
one given: ``@checked(window=whole(2))``, None for none. A rule returns a value in plain form (an int for a
numpy integer, a tuple for a list) or refuses it. A default of None is taken; no number is NaN or a boolean.
"""

import functools
import inspect
import math
import numbers
import os
import reprlib
import sys
from collections.abc import Iterable, Mapping

import numpy as np
import pywt

LARGEST = sys.float_info.max
MOST = 2**31 - 1  # tokens, draws, heads: beyond it is a slip of the keyboard
# How torch, MKL, the C++ library and cuBLAS say in a RuntimeError that memory is or would be exhausted.
EXHAUSTED = (
    "can't allocate memory", "Cannot allocate memory", "Memory allocation", "bad_alloc", "ALLOC_FAILED",
    "multiplication overflow", "size calculation overflow",
)  # fmt: skip
WAVELETS = pywt.wavelist(kind="discrete")
OPTIONS = {
    "signal": ("key_profile", "last_query", "lag_profile", "rows"),
    "sink": ("keep", "drop_renormalise"),
    "detrend": ("none", "mean"),
    "window": ("hann", "boxcar"),
    "pad": (1, 2, 4, "next_pow2"),
    "sided": ("one", "two"),
    "dc": ("keep", "drop"),
    "mode": ("symmetric", "zero", "periodization"),
    "level": ("shortest", "own"),
    "order": ("metric then mean", "mean then metric"),
    "scaled_variant": ("prefix", "stride", "random"),
    "alignment": ("concatenate-truncate", "per-level", "interpolate"),
}


class BadArgument(ValueError, TypeError):
    """A value of a wrong type, size or shape; the message names it and says what is expected."""


def refuse(name, value, expected):
    """Raise :class:`BadArgument` for a value."""
    shape = tuple(value.shape) if getattr(value, "ndim", 0) else None
    shown = reprlib.repr(value) if shape is None else f"{value.dtype} of shape {shape}"
    raise BadArgument(f"{name} must be {expected}; got {shown}")


def plain(value):
    """Return the Python number in a numpy or torch scalar, and anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def whole(low=0, high=MOST):
    """Return the rule of an int from `low` to `high`."""
    return real(low, high, form=int)


def real(low=-math.inf, high=math.inf, *, ends=True, but=None, form=float):
    """Return the rule of a finite number from `low` to `high`, with or without the ends, and not `but`."""
    kind, word = (numbers.Integral, "whole") if form is int else (numbers.Real, "finite")

    def rule(name, value):
        number = plain(value)
        known = isinstance(number, kind) and not isinstance(number, bool) and -LARGEST <= number <= LARGEST
        if not known or not (low <= number <= high if ends else low < number < high) or number == but:
            limits = f" {'from' if ends else 'between'} {low} {'to' if ends else 'and'} {high}"
            refuse(name, value, f"a {word} number{limits}{'' if but is None else f', not {but}'}")
        return form(number)

    return rule


def one_of(*options):
    """Return the rule of a choice."""

    def rule(name, value):
        known = [option for option in options if isinstance(value, (str, numbers.Real)) and option == value]
        if not known or isinstance(value, bool):
            refuse(name, value, f"one of {', '.join(map(repr, options))}")
        return known[0]

    return rule


def several(rule, *, least=0, rising=False, form=tuple):
    """Return the rule of a sequence of `least` or more entries that keep `rule`, taken in a `form`."""

    def of_all(name, value):
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(plain(value), Iterable):
            refuse(name, value, "a list or tuple")
        made = form(rule(f"each of {name}", entry) for entry in value)
        if len(made) < least or (rising and list(made) != sorted(set(made))):
            refuse(name, value, "rising" if rising else f"{least} or more")
        return made

    return of_all


def such_that(test, expected, form=lambda value: value):
    """Return the rule of a value that passes a test, in the `form` it is taken in."""
    return lambda name, value: form(value) if test(value) else refuse(name, value, expected)


def made_by(kind, maker):
    """Return the rule of an object of a class of ours, by its name; `maker` is what makes one."""
    return such_that(lambda v: kind in [c.__name__ for c in type(v).__mro__], f"a {kind}, from {maker}")


def array(name, value, kinds="fiub", *, of_any_shape=False):
    """Return an array of real numbers, not empty; NaN may stand for what is not known."""
    try:
        made = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):  # ragged, or on a GPU
        made = np.asarray(None)
    if made.dtype.kind not in kinds or not (of_any_shape or (made.size and made.ndim)):
        refuse(name, value, f"an array of {'numbers' if 'f' in kinds else 'whole numbers'}, not empty")
    return made


any_array = functools.partial(array, of_any_shape=True)


def token_ids(name, value):
    """Return a tensor of whole numbers, not empty."""
    import torch

    if not isinstance(value, torch.Tensor):
        value = torch.from_numpy(any_array(name, value, "iu").astype(np.int64))
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool or not value.numel():
        refuse(name, value, "whole numbers (sequence, position), not empty")
    return value


flag = such_that(lambda value: isinstance(value, (bool, np.bool_)), "True or False", bool)
text = such_that(lambda value: isinstance(value, str) and value.strip(), "text, not blank")
path = such_that(
    lambda value: isinstance(value, (str, os.PathLike)) and str(value).strip() and "\0" not in str(value),
    "a name or path, not blank",
)
mapping = such_that(lambda value: isinstance(value, Mapping), "a dict", dict)
share = real(0, 1, ends=False)
positive = real(0, ends=False)
log_base = real(0, ends=False, but=1)
head_table = made_by("HeadTable", "nbhelpers.measure or analyze")
device = such_that(
    lambda v: isinstance(v, str) or type(v).__name__ == "device" or (type(v) is int and v < 99),
    "auto, cpu, cuda, cuda:0 or spread",
)
_NAMES = {
    "batch_size chunk dim head_dim heads_per_group jobs length local_distance max_distance": whole(1),
    "max_characters n_draws n_heads n_layers n_sequences n_vectors vocab_size workers": whole(1),
    "layer level head control_seeds": whole(),
    "axis": whole(-8, 8),
    "seed": whole(0, 2**63 - 1),
    "confidence alpha": share,
    "margin timeout cell_timeout theta": positive,
    "noise key_noise rtol tolerance": real(0),
    "absolute averaged beyond bidirectional causal center check": flag,
    "fresh fused interleaved normalize progress resume": flag,
    "values other x y curves means": array,
    "n_knots": whole(0, 99),
    "arrays max_memory parameters provenance scaled": mapping,
    "kv_groups": several(whole(), form=list),
    "layers": several(whole(), rising=True, form=list),
    "token_ids decoder_ids position_ids token_type_ids": token_ids,
    "cache out offload path folder": path,
    "corpus revision metric stream": text,
    "statistic function": such_that(callable, "a function"),
    "ax": such_that(lambda value: hasattr(value, "plot"), "an Axes of matplotlib"),
    "label": such_that(lambda value: isinstance(value, str), "text"),
    "free_bytes": such_that(lambda value: isinstance(value, numbers.Real) and value >= 0, "bytes, 0 or more"),
    "base": log_base,
    "bos": one_of("tokenizer", "add", "none"),
    "dtype": one_of("auto", "float32", "float64", "bfloat16", "float16"),
    "wavelet": such_that(
        lambda value: hasattr(value, "dec_lo") or (isinstance(value, str) and value in WAVELETS),
        "one of pywt.wavelist(kind='discrete'), such as 'db2' and 'sym4'",
    ),
    "keep distances": several(whole()),
    "protocol": made_by("Protocol", "nbhelpers.Protocol(...), such as PAPER"),
    "observation": made_by("Observation", "nbhelpers.observe"),
    "profiles": made_by("Profiles", "nbhelpers.capture"),
}
RULES = {name: rule for names, rule in _NAMES.items() for name in names.split()}
RULES |= {name: one_of(*OPTIONS[name]) for name in OPTIONS.keys() - {"signal", "level", "order"}}


def checked(target=None, /, **own):
    """Hold the arguments of a function, or the fields of a dataclass, to their rules before it runs."""
    if target is None:
        return functools.partial(checked, **own)
    function = target.__init__ if isinstance(target, type) else target
    parameters, where = inspect.signature(function).parameters, target.__name__
    rules = {name: rule for name, rule in (RULES | own).items() if rule and name in parameters}
    optional = {name for name, own in parameters.items() if own.default is None}

    def kept(name, value):
        if name not in rules or (value is None and name in optional):
            return value
        return rules[name](f"{name} of {where}", value)

    @functools.wraps(function)
    def door(*args, **kwargs):
        args = (*map(kept, parameters, args), *args[len(parameters) :])
        kwargs = {name: kept(name, value) for name, value in kwargs.items()}
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            if not any(words in str(error) for words in EXHAUSTED):
                raise
            given = dict(zip(parameters, args, strict=False)) | kwargs
            asked = ", ".join(f"{name}={value}" for name, value in given.items() if isinstance(value, int))
            raise MemoryError(f"{where} needs more memory than there is for {asked} ({error})") from error

    if target is function:
        return door
    target.__init__ = door
    return target


def check_all(namespace, *but):
    """Put :func:`checked` on the public functions of a module so far, `but` those named; return all names."""
    functions = {name: value for name, value in namespace.items() if inspect.isfunction(value)}
    public = [n for n, f in functions.items() if n[0] != "_" and f.__module__ == namespace["__name__"]]
    for name in public:
        if name not in but and not hasattr(functions[name], "__wrapped__"):
            namespace[name] = checked(functions[name])
    return public

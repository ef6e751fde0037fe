"""What every kernel does with its input: upcast, check, and the two pieces of an entropy."""

import math
import operator

import torch

__all__ = [
    "as_real",
    "as_signal",
    "log_base",
    "negative_p_log_p",
    "require_finite",
    "require_option",
]


def as_real(x, name="x"):
    """Return `x` as a float32 or float64 tensor: float64 stays, every other real dtype becomes float32."""
    x = torch.as_tensor(x)
    if x.is_complex():
        raise ValueError(f"{name} is {x.dtype}; expected real values. Pass {name}.abs() or {name}.real.")
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)


def as_signal(x, name="signal", *, check=True):
    """Return `x` as by `as_real`, with at least one entry on its last axis and, if checked, all finite."""
    x = as_real(x, name)  # (..., position)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; its last axis needs at least 1 entry")
    if check:
        require_finite(x, name)
    return x


def require_finite(x, name):
    """Raise a ValueError if a tensor holds NaN or infinity, saying how many and where the first one is.

    Reading the answer makes the host wait for a CUDA device: what calls this takes ``check=False``.
    """
    # NaN and infinity survive a sum, so one reduction settles the usual case without a mask of the size of x.
    if torch.isfinite(x.detach().sum()):
        return
    bad = ~torch.isfinite(x)
    if not bad.any():  # finite entries whose sum overflows
        return
    first = tuple(bad.nonzero()[0].tolist())
    raise ValueError(
        f"{name} has {int(bad.sum())} of {x.numel()} entries that are NaN or infinite, the first at index "
        f"{first}. Drop or mask these rows before the call (a fully padded row is a common cause)."
    )


def require_option(name, value, allowed):
    """Raise a ValueError that lists the choices if `value` is not one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(map(repr, allowed))}")


def require_whole(name, value, least=None):
    """Return `value` as an int; TypeError if it is no whole number, ValueError if it is below `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r} ({type(value).__name__})")
    if least is not None and not least <= value < 2**63:
        raise ValueError(f"{name} must be at least {least} and below 2**63, got {value}")
    return operator.index(value)


def negative_p_log_p(p):
    """Return −p log p element by element, in nats, with the value 0 and the derivative 0 at p = 0.

    The one-sided derivative at 0 is infinite: a masked position or an empty bin would turn the gradient of
    everything before it into NaN (0 · ∞), so it is taken as 0.
    """
    if p.requires_grad and torch.is_grad_enabled():
        return -p * torch.where(p > 0, p, 1.0).log()
    return torch.special.entr(p)


def log_base(base):
    """Return log(base), what an entropy in nats is divided by; 1.0 for ``base=None``."""
    if base is None:
        return 1.0
    if not base > 0 or base == 1:
        raise ValueError(f"base must be positive and not 1, got {base}; None means nats")
    return math.log(base)

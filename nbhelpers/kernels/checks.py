"""What every kernel does with its input: upcast, check, and the two pieces of an entropy."""

import math

import torch

__all__ = [
    "as_real",
    "log_base",
    "negative_p_log_p",
    "require_finite",
    "require_last_axis",
    "require_option",
]


def as_real(x, name="x"):
    """Return `x` as a float32 or float64 tensor.

    Parameters
    ----------
    x : torch.Tensor or array_like
        Real values. float64 stays float64; every other real dtype, half precision and integers included,
        becomes float32. No copy is made where none is needed.
    name : str, optional
        What to call `x` in an error.

    Returns
    -------
    torch.Tensor
        float32 or float64, with the shape and device of `x`.

    Raises
    ------
    ValueError
        If `x` is complex.
    """
    x = torch.as_tensor(x)
    if x.is_complex():
        raise ValueError(f"{name} is {x.dtype}; expected real values. Pass {name}.abs() or {name}.real.")
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)


def require_finite(x, name):
    """Raise a ValueError if `x` holds NaN or infinity, saying how many and where the first one is.

    Parameters
    ----------
    x : torch.Tensor
        Any real tensor.
    name : str
        What to call it in the error.

    Raises
    ------
    ValueError
        If an entry is not finite.

    Notes
    -----
    Reading the answer makes the host wait for a CUDA device. The functions that call this take
    ``check=False`` to skip it.
    """
    # NaN and infinity survive a sum, so one reduction settles the usual case without a mask of the size of x.
    if torch.isfinite(x.detach().sum()):
        return
    bad = ~torch.isfinite(x)
    n_bad = int(bad.sum())
    if n_bad == 0:  # finite entries whose sum overflows
        return
    first = tuple(bad.nonzero()[0].tolist())
    raise ValueError(
        f"{name} has {n_bad} of {x.numel()} entries that are NaN or infinite, the first at index {first}. "
        "Drop or mask these rows before the call (a fully padded row is a common cause)."
    )


def require_option(name, value, allowed):
    """Raise a ValueError that lists the choices if `value` is not one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(map(repr, allowed))}")


def require_last_axis(x, name):
    """Return the length of the last axis of `x`; raise a ValueError if there is none or it is empty."""
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; its last axis needs at least 1 entry")
    return x.shape[-1]


def negative_p_log_p(p):
    """Return −p log p element by element, in nats, with the value 0 and the derivative 0 at p = 0.

    Parameters
    ----------
    p : torch.Tensor
        Non-negative, float32 or float64.

    Returns
    -------
    torch.Tensor
        Shape of `p`.

    Notes
    -----
    The one-sided derivative at 0 is infinite. A masked position or an empty bin would then turn the gradient
    of everything before it into NaN (0 · ∞), so the derivative there is taken as 0.
    """
    if p.requires_grad and torch.is_grad_enabled():
        return -p * torch.where(p > 0, p, 1.0).log()
    return torch.special.entr(p)


def log_base(base):
    """Return log(base), what an entropy in nats is divided by; 1.0 for ``base=None``.

    Raises
    ------
    ValueError
        If the base is not positive or is 1.
    """
    if base is None:
        return 1.0
    if not base > 0 or base == 1:
        raise ValueError(f"base must be positive and not 1, got {base}; None means nats")
    return math.log(base)

"""What every kernel does with its input: upcast, check, and the two pieces of an entropy."""

import math

import torch

from nbhelpers.arguments import RULES, refuse

__all__ = ["as_power", "as_real", "as_signal", "log_base", "negative_p_log_p", "require_finite"]


def as_real(x, name="x", *, dtype=None):
    """Return `x` as a float32 or float64 tensor: float64 stays, every other real dtype becomes float32."""
    try:
        x = torch.as_tensor(x, dtype=dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        refuse(name, x, "a tensor or array of real numbers")
    if x.is_complex():
        refuse(name, x, f"real, not {x.dtype}; pass {name}.abs() or {name}.real")
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)


def as_double(x, name, *, device=None, length=None):
    """Return finite float64 on a device, not empty; with a `length`, of one axis of that size (-1: any)."""
    x = as_real(x, name, dtype=None if "complex" in str(getattr(x, "dtype", "")) else torch.float64)
    if not x.numel() or (length is not None and (x.ndim != 1 or length not in (-1, len(x)))):
        refuse(name, x, "not empty" if length is None else f"of shape ({'n' if length < 0 else length},)")
    if x.device.type == "cpu":
        require_finite(x, name)
    return x.to(device=device, dtype=torch.float64)


def as_signal(x, name="signal", *, check=True):
    """Return `x` as by `as_real`, its last axis not empty and, if checked (None: on the CPU), all finite."""
    x = as_real(x, name)  # (..., position)
    if x.ndim == 0 or x.shape[-1] == 0:
        refuse(name, x, "of shape (..., position) with at least 1 position")
    if x.device.type == "cpu" if check is None else check:
        require_finite(x, name)
    return x


def as_power(psd):
    """Return a spectrum (..., freq) as by `as_signal`; on the CPU, no power may be below 0."""
    power = as_signal(psd, "psd", check=None)  # (..., freq)
    if power.device.type == "cpu" and power.numel() and power.min() < 0:
        raise ValueError(f"psd must not be negative; its smallest entry is {float(power.min()):.4g}")
    return power


def require_finite(x, name):
    """Raise a ValueError if a tensor has NaN or infinity, with how many and where; waits for CUDA."""
    # NaN and infinity survive a sum, so one reduction settles the usual case without a mask of the size of x.
    if torch.isfinite(x.detach().sum()):
        return
    if (bad := ~torch.isfinite(x)).any():  # else finite entries whose sum overflows
        told, first = f"{int(bad.sum())} of {x.numel()} entries", tuple(bad.nonzero()[0].tolist())
        way_out = "Drop or mask these rows before the call (a fully padded row is a common cause)."
        raise ValueError(f"{name} has {told} that are NaN or infinite, the first at index {first}. {way_out}")


def negative_p_log_p(p):
    """Return −p log p in nats, element by element; 0 at p = 0, as is its derivative (else 0 · ∞ = NaN)."""
    if p.requires_grad and torch.is_grad_enabled():
        return -p * torch.where(p > 0, p, 1.0).log()
    return torch.special.entr(p)


def log_base(base):
    """Return log(base), what an entropy in nats is divided by; 1.0 for ``base=None``."""
    return 1.0 if base is None else math.log(RULES["base"]("base", base))

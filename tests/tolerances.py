"""Tolerances of the numerical tests, one place for all of them.

Relative to the largest entry of what is expected, or absolute where the expected value is of order one. They
bound rounding, with room for another order of summation; a wrong result misses them by orders of magnitude.
"""

import torch

TOL = {torch.float32: 1e-5, torch.float64: 1e-12}


def assert_close(actual, expected, *, dtype=None):
    """Assert agreement within TOL of the largest finite entry expected, with the same NaN and infinities."""
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    actual_64, expected_64 = actual.detach().cpu().double(), expected.detach().cpu().double()
    finite = expected_64[expected_64.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 1.0
    atol = TOL[dtype or actual.dtype] * scale
    torch.testing.assert_close(actual_64, expected_64, rtol=0.0, atol=atol, equal_nan=True)


def assert_metric(actual, expected, name=""):
    """Assert what a float32 metric may miss a float64 one by: 5e-5, relative where that is above 1."""
    actual, expected = (torch.as_tensor(x).double() for x in (actual, expected))
    assert actual.shape == expected.shape
    worst = ((actual - expected).abs() / expected.abs().clamp_min(1)).max()
    assert worst <= 5e-5, f"{name}: off by {worst:.3g}"

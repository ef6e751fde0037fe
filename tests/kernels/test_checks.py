import math

import pytest
import torch
from refusals import refusals

from nbhelpers.kernels.checks import as_double, as_real, as_signal, log_base, negative_p_log_p, require_finite


def test_half_and_integers_are_upcast_and_float64_stays():
    for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float32):
        assert as_real(torch.ones(3, dtype=dtype)).dtype == torch.float32
    x = torch.ones(3, dtype=torch.float64)
    assert as_real(x) is x, "no copy"


NAN = torch.tensor([1.0, math.nan])
test_bad_input_is_refused = refusals(
    (lambda: as_real(torch.ones(3, dtype=torch.complex64)), "complex64"),
    (lambda: as_double(torch.ones(3, dtype=torch.complex64), "x"), "complex64"),
    (lambda: as_double([1.0, 2j], "x"), "complex128|real numbers"),
    (lambda: require_finite(torch.tensor([[0.0, math.nan], [math.inf, 0.0]]), "x"), r"2 of 4 .*\(0, 1\)"),
    (lambda: require_finite(torch.tensor([math.inf, -math.inf, 0.0]), "x"), "2 of 3"),
    (lambda: as_signal(NAN), "1 of 2"),
    (lambda: as_signal(torch.zeros(2, 0)), r"\(2, 0\)"),
    (lambda: as_signal(torch.tensor(1.0)), "at least 1 position"),
    (lambda: log_base(1.0), "base"),
)


def test_sums_may_overflow_and_nan_may_pass_unchecked():
    require_finite(torch.full((8,), 3e38), "x")
    assert as_signal(NAN, check=False) is NAN


def test_entropy_term_is_zero_at_zero_with_finite_gradient():
    p = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    term = negative_p_log_p(p)
    assert term.tolist() == pytest.approx([0.0, 0.5 * math.log(2), 0.0], abs=1e-15)
    assert negative_p_log_p(p.detach()).tolist() == term.tolist()
    term.sum().backward()
    assert p.grad.tolist() == pytest.approx([0.0, math.log(2) - 1, -1.0], abs=1e-12)

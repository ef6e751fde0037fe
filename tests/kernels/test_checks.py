import math

import pytest
import torch

from nbhelpers.kernels.checks import (
    as_double,
    as_real,
    as_signal,
    log_base,
    negative_p_log_p,
    require_finite,
)


def test_half_and_integers_are_upcast_and_float64_stays():
    for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float32):
        assert as_real(torch.ones(3, dtype=dtype)).dtype == torch.float32
    x = torch.ones(3, dtype=torch.float64)
    assert as_real(x) is x, "no copy"


@pytest.mark.parametrize(
    ("check", "values", "message"),
    [
        (as_real, torch.ones(3, dtype=torch.complex64), "complex64"),
        (as_double, torch.ones(3, dtype=torch.complex64), "complex64"),
        (as_double, [1.0, 2j], "complex128|real numbers"),
        (require_finite, torch.tensor([[0.0, math.nan], [math.inf, 0.0]]), r"2 of 4 .*\(0, 1\)"),
        (require_finite, torch.tensor([math.inf, -math.inf, 0.0]), "2 of 3"),
        (as_signal, torch.tensor([1.0, math.nan]), "1 of 2"),
        (as_signal, torch.zeros(2, 0), r"\(2, 0\)"),
        (as_signal, torch.tensor(1.0), "at least 1 position"),
        *[(lambda base, _: log_base(base), base, "base") for base in (0.0, -2.0, 1.0, math.nan)],
    ],
)
def test_bad_input_is_refused(check, values, message):
    with pytest.raises(ValueError, match=message):
        check(values, "x")


def test_sums_may_overflow_and_nan_may_pass_unchecked():
    require_finite(torch.full((8,), 3e38), "x")
    broken = torch.tensor([1.0, math.nan])
    assert as_signal(broken, check=False) is broken


def test_entropy_term_is_zero_at_zero_with_finite_gradient():
    p = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    term = negative_p_log_p(p)
    assert term.tolist() == pytest.approx([0.0, 0.5 * math.log(2), 0.0], abs=1e-15)
    assert negative_p_log_p(p.detach()).tolist() == term.tolist()
    term.sum().backward()
    assert p.grad.tolist() == pytest.approx([0.0, math.log(2) - 1, -1.0], abs=1e-12)

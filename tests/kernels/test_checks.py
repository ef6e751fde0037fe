import math

import pytest
import torch

from nbhelpers.kernels.checks import as_real, as_signal, log_base, negative_p_log_p, require_finite


def test_half_and_integers_are_upcast_and_float64_stays():
    for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float32):
        assert as_real(torch.ones(3, dtype=dtype)).dtype == torch.float32
    x = torch.ones(3, dtype=torch.float64)
    assert as_real(x) is x, "no copy"


def test_complex_input_is_refused_by_name():
    with pytest.raises(ValueError, match=r"signal is torch\.complex64"):
        as_real(torch.ones(3, dtype=torch.complex64), "signal")


def test_nan_is_counted_and_located():
    x = torch.zeros(2, 3, 4)
    x[1, 0, 2] = math.nan
    x[1, 2, 3] = math.inf
    with pytest.raises(ValueError, match=r"attn has 2 of 24 entries.*first at index \(1, 0, 2\)"):
        require_finite(x, "attn")


def test_opposite_infinities_and_overflowing_sums_are_told_apart():
    with pytest.raises(ValueError, match="2 of 3"):
        require_finite(torch.tensor([math.inf, -math.inf, 0.0]), "x")
    require_finite(torch.full((8,), 3e38), "x")


def test_empty_last_axis_is_refused():
    for check in (True, False):
        with pytest.raises(ValueError, match=r"\(2, 0\)"):
            as_signal(torch.zeros(2, 0), check=check)
    with pytest.raises(ValueError, match=r"\(\)"):
        as_signal(torch.tensor(1.0))


def test_nan_passes_unchecked_only():
    broken = torch.tensor([1.0, math.nan])
    with pytest.raises(ValueError, match="1 of 2 entries"):
        as_signal(broken)
    assert as_signal(broken, check=False) is broken


@pytest.mark.parametrize("base", [0.0, -2.0, 1.0, math.nan])
def test_impossible_bases_are_refused(base):
    with pytest.raises(ValueError, match="base"):
        log_base(base)


def test_entropy_term_is_zero_at_zero_with_finite_gradient():
    p = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    term = negative_p_log_p(p)
    assert term.tolist() == pytest.approx([0.0, 0.5 * math.log(2), 0.0], abs=1e-15)
    assert negative_p_log_p(p.detach()).tolist() == term.tolist()
    term.sum().backward()
    assert p.grad.tolist() == pytest.approx([0.0, math.log(2) - 1, -1.0], abs=1e-12)

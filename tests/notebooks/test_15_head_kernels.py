import numpy as np
import pytest


def test_the_rule_is_read_off_the_heads(numbers, tables):
    heads = tables["heads"]
    assert len(heads) == 270
    assert numbers["C18_kernel_r"].value == pytest.approx(heads.r.median())
    assert numbers["C18_kernel_explains"].value == pytest.approx(heads.explained.median())
    assert numbers["pairs_needed"].value == heads.pairs_needed.median() < 12
    for name, kind in (("C18_kernel_r", "r"), ("C18_kernel_explains", "explained")):
        least = max(numbers[f"other_head_{kind}"].value, numbers[f"untrained_{kind}"].value)
        assert numbers[name].null == least
        assert numbers[name].low > numbers[name].null_high, "the own kernel is apart from every control"


def test_controls_and_that_kernels_emerge(numbers):
    assert abs(numbers["untrained_r"].value) < 0.3
    assert numbers["trap_untrained_log_attention"].null > 0.95, "no kernel at all looks as good"
    assert numbers["exchange_p"].value == 0.01
    assert numbers["random_tokens_r"].value > numbers["other_head_r"].value
    steps = [numbers[f"zoo_rope_step{step}_explained"].value for step in (0, 10, 100, 1000)]
    assert steps[0] < 0.2
    assert np.all(np.diff(steps) > 0)
    assert steps[-1] > 0.9
    assert min(numbers[f"zoo_{arm}_explained"].value for arm in ("prope", "alibi", "t5")) > 0.9
    assert numbers["zoo_nope_explained"].value == 0

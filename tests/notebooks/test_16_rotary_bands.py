import pytest


def test_a_change_is_the_mean_of_its_classes_and_fast_pairs_cost_the_previous_token(numbers, tables):
    """127 predicted tokens fall into thirds of 43, 42 and 42."""
    for action in ("zero", "freeze", "shuffle"):
        for band in ("high", "mid", "low"):
            of = (f"{action}_{band}_{third}_third" for third in ("first", "middle", "last"))
            thirds = [numbers[name].value for name in of]
            mean = sum(n * third for n, third in zip((43, 42, 42), thirds, strict=True)) / 127
            assert numbers[f"{action}_{band}_all"].value == pytest.approx(mean, abs=1e-6)
    assert numbers["freeze_high_all"].low > 0.1
    assert numbers["freeze_high_all"].value > 5 * abs(numbers["freeze_low_all"].value)
    usual = numbers["previous_token_unchanged"].value
    assert numbers["previous_token_freeze_high"].value < 0.5 * usual
    assert numbers["previous_token_freeze_low"].value == pytest.approx(usual, rel=0.2)


def test_logits_follow_the_stretched_kernel_and_roles_are_judged_beside_random_groups(numbers):
    rope, t5 = numbers["covariance_2"], numbers["covariance_zoo_t5"]
    assert rope.low > 0.9 > 0.7 > rope.null
    assert t5.value < t5.null
    assert numbers["dilation_logits_2"].value == pytest.approx(1, abs=0.1)
    assert numbers["covariance_zoo_alibi_2"].low > 0.9 > numbers["covariance_zoo_alibi_2"].null
    parts = [numbers[f"C15_{name}_beyond"].value for name in ("syntax", "sentences", "discourse")]
    assert numbers["C15_groups"].value == pytest.approx(sum(parts) / 3)
    assert numbers["C15_syntax_found_80"].value <= numbers["C15_syntax_found_95"].value


def test_every_pair_and_every_layer_has_its_loss(numbers, tables):
    pairs = tables["pairs"].set_index("change").value
    assert [*pairs.index] == [f"{action} {pair}" for action in ("zero", "freeze") for pair in range(16)]
    fastest = pairs.filter(like="freeze").abs().idxmax()
    assert int(fastest.split()[1]) < 6, "the positions of slow pairs carry little"
    assert pairs[fastest] < numbers["freeze_high_all"].value, "one pair costs less than a third of them"
    layers = tables["layers"].set_index("change").value
    bands = [f"{action} {band}" for action in ("zero", "freeze") for band in ("high", "mid", "low")]
    assert [*layers.index] == [f"{band} {layer}" for band in bands for layer in range(4)]
    in_turn = layers.filter(like="freeze high")
    assert 0 < in_turn.max() < numbers["freeze_high_all"].value, "one layer costs less than all"

import dataclasses
import json

import numpy as np
import pytest
import torch

from nbhelpers.inputs.text import scaled_variant
from nbhelpers.protocol import OPTIONS, PAPER, REASONS, Protocol

FIELDS = {field.name: field.default for field in dataclasses.fields(Protocol)}
# Another legal value of every field.
OTHER = {
    "signal": "rows", "sink": "drop_renormalise", "detrend": "mean", "window": "boxcar", "pad": 2,
    "sided": "two", "dc": "drop", "edges": (0.25, 0.5), "log_base": 2.0, "wavelet": "haar",
    "mode": "periodization", "level": "own", "order": "mean then metric", "factors": (0.5,),
    "scaled_variant": "stride", "alignment": "per-level", "local_distance": 8, "entropy_windows": (16, 32),
}  # fmt: skip


def test_paper_is_the_literal_reading():
    # Section 4a of the specification of the paper, field by field.
    assert PAPER.to_dict() == {
        "signal": "key_profile", "sink": "keep", "detrend": "none", "window": "hann", "pad": 1,
        "sided": "one", "dc": "keep", "edges": [0.25, 0.75], "log_base": None, "wavelet": "db2",
        "mode": "symmetric", "level": "shortest", "order": "metric then mean", "factors": [0.5, 0.25],
        "scaled_variant": "prefix",
        "alignment": "concatenate-truncate", "local_distance": 16, "entropy_windows": [16, 32, 64],
    }  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_hash_and_equality_change_with_every_field(name):
    changed = PAPER.replace(**{name: OTHER[name]})
    assert getattr(changed, name) == OTHER[name]
    assert changed != PAPER
    assert changed.hash != PAPER.hash
    assert changed.replace(**{name: FIELDS[name]}) == PAPER


def test_equal_values_of_other_types_are_the_same_choice_also_by_way_of_json():
    options = {"factors": [0.5], "entropy_windows": [16.0], "pad": 2.0, "log_base": 2, "local_distance": 8.0}
    listed = Protocol(**options)
    other = Protocol(factors=(0.5,), entropy_windows=(16,), pad=2, log_base=2.0, local_distance=8)
    assert listed == other
    assert hash(listed) == hash(other)
    assert listed.hash == other.hash
    protocol = Protocol(**OTHER)
    assert Protocol(**json.loads(json.dumps(protocol.to_dict()))) == protocol


@pytest.mark.parametrize("name", OPTIONS)
def test_an_unknown_option_is_refused_with_the_list(name):
    for value in ("no such thing", None, True):
        with pytest.raises(ValueError, match=f"{name} of Protocol must be one of") as caught:
            Protocol(**{name: value})
        assert all(repr(option) in str(caught.value) for option in OPTIONS[name])


def test_impossible_numbers_are_refused():
    for change, said in (
        ({"edges": (0.75, 0.25)}, "edges"),
        ({"edges": (0.0, 0.5)}, "edges"),
        ({"factors": (0.5, 1.0)}, "factors"),
        ({"wavelet": "morl"}, "morl"),
        ({"entropy_windows": (16, 1)}, "from 2"),
    ):
        with pytest.raises(ValueError, match=said):
            PAPER.replace(**change)


def test_explain_covers_every_field_in_order():
    rows = PAPER.replace(window="boxcar").explain()
    assert [row["field"] for row in rows] == list(FIELDS) == list(REASONS)
    assert all(row["the paper"] and row["the literal choice, and why"] for row in rows)
    window = next(row for row in rows if row["field"] == "window")
    assert window["value"] == "boxcar"


def test_the_shortest_variant_is_as_long_as_the_one_drawn():
    for length in range(4, 301):
        for factor in (0.5, 0.25, 0.29, 0.1, 0.7):
            n = max(length, int(np.ceil(1 / factor)))  # of which one token is left
            drawn = scaled_variant(torch.zeros(1, n, dtype=torch.long), factor).shape[-1]
            assert PAPER.replace(factors=(factor,)).shortest(length) == drawn, (length, factor)
    assert PAPER.replace(level="own").shortest(128) == PAPER.replace(factors=()).shortest(128) == 128

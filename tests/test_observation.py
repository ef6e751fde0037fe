"""One observation serves many protocols: the same numbers as analyze, without running the model again."""

import pandas as pd
import pytest
from tiny_models import make_model, make_tokens

from nbhelpers.metrics import Observation, analyze, measure, observe
from nbhelpers.protocol import PAPER

LENGTH = 64
OTHERS = [
    PAPER,
    PAPER.replace(signal="last_query", window="boxcar", mode="zero"),
    PAPER.replace(signal="lag_profile", factors=(0.5,)),
    PAPER.replace(sink="drop_renormalise", order="mean then metric"),
]


@pytest.fixture(scope="module")
def llama():
    return make_model("llama")


@pytest.fixture(scope="module")
def ids():
    return make_tokens(LENGTH, 3)


@pytest.fixture(scope="module")
def observed(llama, ids):
    return observe(llama, ids, corpus="made up", seed=3, progress=False)


@pytest.mark.parametrize("protocol", OTHERS, ids=lambda p: p.hash)
def test_one_observation_gives_what_analyze_gives(llama, ids, observed, protocol):
    table = measure(observed, protocol)
    expected = analyze(llama, ids, protocol, corpus="made up", seed=3, progress=False)
    pd.testing.assert_frame_equal(table.frame, expected.frame)
    assert table.provenance["protocol_hash"] == protocol.hash
    assert (table.provenance["corpus"], table.provenance["seed"]) == ("made up", 3)


def test_the_cache_serves_every_protocol(llama, ids, tmp_path, monkeypatch):
    first = analyze(llama, ids, PAPER, cache=tmp_path, progress=False)
    monkeypatch.setattr("nbhelpers.hooks.capture._run_batch", None)  # the model must not be run again
    again = analyze(llama, ids, PAPER, cache=tmp_path, progress=False)
    pd.testing.assert_frame_equal(first.frame, again.frame)
    assert analyze(llama, ids, OTHERS[1], cache=tmp_path, progress=False).metrics


def test_map_reaches_every_part(observed):
    lengths = []

    def look(profiles):
        lengths.append(profiles.key_profile.shape[-1])
        return profiles

    mapped = observed.map(look)
    assert isinstance(mapped, Observation)
    assert sorted(lengths) == [LENGTH // 4, LENGTH // 2, LENGTH]
    pd.testing.assert_frame_equal(measure(mapped).frame, measure(observed).frame)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signal": "rows"}, "call analyze"),
        ({"factors": (0.5, 0.125)}, r"\[0.125, 0.5\]|\[0.5, 0.125\]"),
        ({"scaled_variant": "stride"}, "observed were prefix variants"),
        ({"local_distance": 7}, "local_distance=7 was not observed"),
        ({"signal": "lag_profile", "sink": "drop_renormalise"}, "has lags, not keys"),
    ],
)
def test_what_was_not_observed_is_said(observed, changes, message):
    with pytest.raises(ValueError, match=message):
        measure(observed, PAPER.replace(**changes))


def test_padding_is_refused(llama, ids):
    with pytest.raises(ValueError, match="without padding"):
        observe(llama, ids, attention_mask=ids > 0, progress=False)

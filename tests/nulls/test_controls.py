import pytest
import torch

from nbhelpers.analysis import measure
from nbhelpers.nulls.controls import RANDOM, SHUFFLED, bare_label, control_label, panel

SIZES = {"n_sequences": 5, "length": 32, "control_seeds": 2, "progress": False}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    cache = tmp_path_factory.mktemp("profiles")
    return panel("minilm-l6", "moby-dick", cache=cache, **SIZES), cache


def test_the_rows_and_their_order(rows):
    observed, _ = rows
    controls = [control_label(0), control_label(1)]
    assert list(observed) == ["minilm-l6", SHUFFLED, RANDOM, *controls]  # the encoder is the model itself
    assert observed["minilm-l6"].profiles.n_sequences == 5
    assert all(observed[control].profiles.n_sequences == 4 for control in controls)
    assert all(measure(row).metrics for row in observed.values())
    profiles = [row.profiles.key_profile[:4] for row in observed.values()]
    for k, one in enumerate(profiles):
        assert all(not torch.allclose(one, other) for other in profiles[:k]), "a row repeats another"


def test_the_next_notebook_finds_the_same_panel(rows, monkeypatch):
    observed, cache = rows
    monkeypatch.setattr("nbhelpers.hooks.capture._run_batch", None)  # no model must be run again
    again = panel("minilm-l6", "moby-dick", cache=cache, **SIZES)
    for label, row in observed.items():
        assert torch.equal(row.profiles.key_profile, again[label].profiles.key_profile)
        assert torch.equal(row.scaled[0.25].lag_profile, again[label].scaled[0.25].lag_profile)


def test_an_encoder_comes_with_and_without_special_tokens():
    sizes = SIZES | {"n_sequences": 3, "control_seeds": 0}
    observed = panel("random:minilm-l6", "moby-dick", encoder="minilm-l6", **sizes)
    bare = observed[bare_label("minilm-l6")]
    assert list(observed)[-2:] == ["minilm-l6", bare_label("minilm-l6")]
    assert bare.profiles.key_profile.shape == observed["minilm-l6"].profiles.key_profile.shape
    # [CLS] and [SEP] at the ends draw attention that words do not.
    ends = [row.profiles.key_profile[..., [0, -1]].sum(-1).mean() for row in (observed["minilm-l6"], bare)]
    assert ends[0] > ends[1]

import gc
import weakref

import numpy as np
import pytest
import torch
from tqdm.std import tqdm

from nbhelpers.analysis import Observation, analyze, measure
from nbhelpers.inputs.models import load_model
from nbhelpers.inputs.text import load_text
from nbhelpers.nulls import controls
from nbhelpers.nulls.controls import RANDOM, SHUFFLED, bare_label, control_label, null_of, panel, uniform_null
from nbhelpers.profiles import Profiles
from nbhelpers.protocol import PAPER
from nbhelpers.stats import position_spectrum_correlation

SIZES = {"n_sequences": 5, "length": 32, "control_seeds": 2}


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


def test_one_model_is_held_at_a_time(rows, monkeypatch):
    held = weakref.WeakSet()

    def load(name, **options):
        gc.collect()
        assert not held, "the last model is still there"
        loaded = load_model(name, **options)
        held.add(loaded.model)
        return loaded

    monkeypatch.setattr(controls, "load_model", load)
    monkeypatch.setattr(controls, "tqdm", lambda *a, **options: tqdm(*a, **options | {"disable": False}))
    panel("minilm-l6", "moby-dick", cache=rows[1], **SIZES)


PROTOCOLS = [
    {},
    {"signal": "lag_profile"},
    {"signal": "last_query", "window": "boxcar"},
    {"sink": "drop_renormalise", "alignment": "per-level"},
    {"order": "mean then metric", "factors": (0.6, 0.29), "local_distance": 4},
]


def uniform_matrix(n, causal):
    seen = torch.ones(n, n, dtype=torch.float64).tril() if causal else torch.ones(n, n, dtype=torch.float64)
    return Profiles.from_attention((seen / seen.sum(-1, keepdim=True))[None, None, None], causal=causal)


@pytest.fixture(scope="module")
def table(tiny_llama_folder):
    model = load_model(tiny_llama_folder, device="cpu")
    return analyze(model, load_text("moby-dick", model, n_sequences=4, length=48), progress=False)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize("changes", PROTOCOLS, ids=str)
def test_the_null_is_that_of_the_uniform_matrix(changes, causal):
    protocol, n = PAPER.replace(**changes), 100
    scaled = {a: uniform_matrix(round(100 * a), causal) for a in protocol.factors}
    table = measure(Observation(uniform_matrix(n, causal), scaled), protocol)
    found = uniform_null(n, protocol, causal=causal)
    assert list(found) == table.metrics
    for metric, array in table.arrays.items():
        room = 1e-6 if metric == "reconstruction_error" else 1e-12  # which is rounding of float32
        assert found[metric] == pytest.approx(array.item(), abs=room, rel=1e-9), metric


def test_a_table_knows_its_own_null_and_rows_have_none(table):
    assert uniform_null(64, PAPER.replace(signal="rows"), causal=True) == {}
    assert null_of(table) == uniform_null(48, PAPER, causal=True)
    other = table.with_provenance(stream="encoder")
    assert null_of(other) == uniform_null(48, PAPER, causal=False)
    boxcar = table.with_provenance(protocol=PAPER.replace(window="boxcar").to_dict())
    assert null_of(boxcar)["low_band"] != null_of(table)["low_band"]


def test_a_summary_is_the_table_s_with_the_correlation_and_the_null(table):
    null = null_of(table)
    summary = controls.summarise(table, null=null).set_index("metric")
    own = table.summary()
    assert list(summary.index) == [*own.index, controls.CORRELATION]
    assert summary.loc[own.index, list(own)].astype(float).equals(own.astype(float))
    rho = position_spectrum_correlation(table, over="heads of a layer")
    assert summary.loc[controls.CORRELATION, ["mean", "low", "high"]].tolist() == list(rho[:3])
    assert summary.null[own.index].tolist() == [null[metric] for metric in own.index]
    assert np.isnan(summary.null[controls.CORRELATION]), "uniform heads are all alike"
    assert "null" not in controls.summarise(table)
    assert controls.summarise(table, null={}).null.isna().all()

"""Wrong input is refused at the door: what nobody listed is thrown at the rules and at every function."""

import inspect
import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers import nulls, stats
from nbhelpers.arguments import RULES, BadArgument, checked, one_of, real, several, whole
from nbhelpers.collection.plan import list_notebooks, plan_runs
from nbhelpers.kernels import entropy, frames, rope, spectra, wavelets
from nbhelpers.protocol import PAPER, Protocol
from nbhelpers.sweeps.grid import MOST_RUNS, load_grid, make_grid

quick = settings(derandomize=True, deadline=None, max_examples=60, database=None)
ATTN = torch.full((2, 3, 16), 1 / 16, dtype=torch.float64)
SIGNAL = torch.linspace(0.1, 1, 96, dtype=torch.float64).view(2, 3, 16)
LEVELS = wavelets.wavedec(SIGNAL, level=2)
PSD, FREQUENCY = spectra.psd(SIGNAL), spectra.frequencies(16)
VALUES = np.random.default_rng(0).normal(size=(6, 4))
IDS = torch.arange(24).view(2, 12)
SMALL = {"model": "zoo:rope", "corpus": "moby-dick", "n_sequences": 2, "length": 32}

of_numpy = st.floats(width=32).map(np.float32), st.integers(-9, 9).map(np.int64)
numbers = st.one_of(st.integers(), st.just(10**400), st.floats(), *of_numpy, st.complex_numbers())
atoms = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8), st.binary(max_size=4))
anything = st.one_of(
    atoms,
    st.lists(atoms, max_size=4),
    st.dictionaries(st.text(max_size=3), atoms, max_size=2),
    st.sampled_from([object(), int, np.zeros((0, 2)), np.full((2, 16), np.nan), -np.ones((2, 16))]),
    st.sampled_from([torch.zeros(0), torch.ones(2, 16) * 1j, torch.tensor(True), torch.ones(5, 7)]),
    st.just([[1, 2], [3]]),
)

# Every public kernel, with arguments that it takes: a good value for each name, as there is a rule for each.
GOOD = {
    "attn": ATTN, "signal": SIGNAL, "vectors": SIGNAL, "scores": SIGNAL, "x": SIGNAL, "table": SIGNAL[0].T,
    "psd": PSD, "frequency": FREQUENCY, "coefficients": LEVELS, "coefficients_scaled": LEVELS,
    "similarity": np.eye(3), "inverse_frequencies": [1.0, 0.1], "positions": [0, 1, 2], "lags": [0, 1],
    "relative_position": [0, 1], "effective_support": 2.0, "edges": (0.2, 0.4), "base": 2.0, "theta": 10.0,
    "fraction": 0.5, "tolerance": 0.1, "rtol": 0.1, "length": 16, "n_vectors": 3, "n_draws": 2, "n_heads": 6,
    "head_dim": 8, "dim": 4, "n_buckets": 8, "max_distance": 9, "level": 2, "pad": 2, "seed": 0,
    "window": "hann", "detrend": "mean", "sided": "two", "wavelet": "db2", "mode": "symmetric",
    "alignment": "per-level", "check": True, "normalize": True, "center": True, "absolute": True,
    "interleaved": True, "bidirectional": True,
}  # fmt: skip
OWN = {"window_entropy": {"window": 4}, "window": {"name": "hann"}}
MODULES = (entropy, frames, rope, spectra, wavelets)
KERNELS = [getattr(module, name) for module in MODULES for name in module.__all__ if name != "weighted_sum"]


def good_for(function):
    named = {name: GOOD[name] for name in inspect.signature(function).parameters if name in GOOD}
    return named | OWN.get(function.__name__, {})


CALLS = [(function, good_for(function)) for function in filter(inspect.isfunction, KERNELS)]
CALLS += [
    (stats.student_interval, {"values": VALUES, "confidence": 0.9}),
    (lambda **own: stats.jackknife_interval(0.0, **own), {"left_out": VALUES[:, 0], "confidence": 0.9}),
    (stats.pearson, {"x": VALUES, "y": VALUES, "axis": 0}),
    (stats.partial_correlation, {"x": VALUES, "y": VALUES, "given": [VALUES]}),
    (stats.permutation_test, {"values": VALUES, "other": VALUES, "clusters": [0, 0, 1, 1], "n_draws": 9}),
    (stats.equivalence_test, {"values": VALUES[:, 0], "margin": 1.0, "against": 0.0, "alpha": 0.1}),
    (nulls.uniform_profiles, {"length": 8, "causal": True, "distances": [0, 4]}),
    (nulls.shuffled_tokens, {"token_ids": IDS, "seed": 0, "keep": [1]}),
    (nulls.random_tokens, {"token_ids": IDS, "vocab_size": 64, "seed": 0, "keep": [1]}),
    (Protocol, PAPER.to_dict()),
    (lambda **raw: make_grid(raw), SMALL | {"seed": 0, "bos": "add", "dtype": "float32", "paper_table": 1}),
]
NAMES = [getattr(function, "__name__", "") for function, _ in CALLS]


def refused(function, given):
    try:
        function(**given)
    except BadArgument:
        return True
    except (ValueError, LookupError, MemoryError, FileNotFoundError) as error:
        frame = inspect.trace()[-1]
        if "/nbhelpers/" not in frame.filename or "raise" not in "".join(frame.code_context):
            raise AssertionError(f"no sentence of ours: {error!r} in {frame.filename}") from error
        return True
    return False


@pytest.mark.parametrize(("function", "good"), CALLS, ids=NAMES)
@settings(quick, max_examples=25)
@given(data=st.data())
def test_anything_is_taken_or_refused_in_a_sentence(function, good, data):
    name = data.draw(st.sampled_from(sorted(good)))
    wrong = data.draw(anything)
    if name in ("length", "n_heads", "n_vectors", "dim", "n_draws", "vocab_size", "head_dim"):
        wrong = 0 if isinstance(wrong, (int, np.int64)) and wrong > 99 else wrong  # large is not wrong
    refused(function, good | {name: wrong})


def test_good_arguments_are_taken():
    assert len(CALLS) > 40
    assert not any(refused(function, good) for function, good in CALLS)


@quick
@given(value=anything)
def test_rules_say_no_unless_a_plain_description_says_yes(value):
    known = {
        whole(1): isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 1 <= value < 2**31,
        RULES["check"]: isinstance(value, (bool, np.bool_)),
        real(): isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, complex)),
        one_of("a", 1): isinstance(value, (str, int, float)) and value in ("a", 1) and value is not True,
        several(whole()): isinstance(value, list),
    }
    for rule, may_pass in known.items():
        if refused(rule, {"name": "x", "value": value}):
            continue
        kept = rule("x", value)
        assert may_pass or isinstance(value, (np.ndarray, torch.Tensor))
        assert not isinstance(kept, float) or math.isfinite(kept)


def test_scalars_of_arrays_are_taken_and_plain_afterwards():
    assert [type(whole()("n", n)) for n in (3, np.int64(3), torch.tensor(3))] == [int, int, int]
    assert type(real()("x", np.float32(0.5))) is float
    for boolean in (True, np.True_, torch.tensor(True)):
        with pytest.raises(BadArgument, match="n must be a whole number"):
            whole()("n", boolean)

    @checked(kind=one_of("a"))
    def named(kind, *, seed=None):
        return kind, seed

    assert (named("a", seed=np.int32(4)), named("a", seed=None)) == (("a", 4), ("a", None))
    with pytest.raises(BadArgument, match=r"seed of named must be a whole number from 0 .*got '3'"):
        named("a", seed="3")


@pytest.mark.parametrize(
    "bomb",
    [
        "a: &a [x, x]\nb: &b [*a, *a, *a]\nmodel: [*b, *b]\n",
        "model: " + "[" * 5000,
        "model: " + "{a: " * 30 + "}" * 30,
        "model: a\n" * 200_000,
        "seed: " + "9" * 5000,
        "length: " + json.dumps(list(range(1, 1000))) + "\nseed: " + json.dumps(list(range(MOST_RUNS)))
        + "\nmodel: a/b\ncorpus: moby-dick\nn_sequences: 1",
        b"\xff\xfe\x00",
        "model: !!python/object/apply:os.system ['touch PLANTED']",
    ],
    ids=["aliases", "brackets", "deep", "huge", "digits", "product", "bytes", "object"],
)  # fmt: skip
def test_a_bomb_in_a_grid_ends_in_a_sentence(bomb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.yaml").write_bytes(bomb if isinstance(bomb, bytes) else bomb.encode())
    with pytest.raises(ValueError, match="grid") as caught:
        load_grid("bomb.yaml")
    assert len(str(caught.value)) < 700
    assert not (tmp_path / "PLANTED").exists()


class Planted:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (exec, (f"open({str(self.marker)!r}, 'w')",))


def test_no_planted_code_runs(tmp_path, tiny_llama_folder, tiny_tokenizer):
    import shutil

    from nbhelpers.files import read_parquet
    from nbhelpers.inputs.models import load_model
    from nbhelpers.inputs.text import read_documents
    from nbhelpers.profiles import Profiles

    marker = tmp_path / "PLANTED"
    bad = pickle.dumps(Planted(marker))
    for name in ("profiles.safetensors", "table.parquet", "model.gguf"):
        (tmp_path / name).write_bytes(bad)
    np.savez(tmp_path / "values.npz", values=np.array([Planted(marker)], dtype=object))
    for read, name in (
        (Profiles.load, "profiles.safetensors"), (read_parquet, "table.parquet"), (load_model, "model.gguf"),
        (read_documents, "values.npz"), (load_model, "values.npz"),
    ):  # fmt: skip
        with pytest.raises((ValueError, LookupError, OSError)):
            read(tmp_path / name)
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama_folder, folder)
    code = f"open({str(marker)!r}, 'w')\n"
    (folder / "modeling_own.py").write_text(code)
    (folder / "configuration_own.py").write_text(code)
    own = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    config = json.loads((folder / "config.json").read_text())
    for model_type in ("llama", "own"):
        (folder / "config.json").write_text(json.dumps(config | {"auto_map": own, "model_type": model_type}))
        if model_type == "own":
            with pytest.raises(ValueError, match="its own code"):
                load_model(folder)
        else:
            load_model(folder, device="cpu")
    assert not marker.exists()


def test_parameters_of_notebooks_are_refused_before_anything_runs():
    first = list_notebooks()[:1]
    for name, value in {"length": -5, "n_sequences": 0, "seed": -1, "layer": True, "bos": "maybe"}.items():
        with pytest.raises(ValueError, match=f"parameter {name} of 00_start_here"):
            plan_runs(first, parameters={name: value})

"""The collection on models other than its default: what they give is measured, what they cannot is skipped
aloud."""

import functools
import math

import nbformat
import pytest

from nbhelpers import load_model
from nbhelpers.collection.results import load_results
from nbhelpers.collection.run import run_notebooks

LENGTH = 64  # tokens of a passage at smoke size


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    loaded = load_model("minilm-l6")
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a notebook with a model, once a module: ``run("05", "zoo:rope")`` -> (NotebookRun, numbers)."""
    out = tmp_path_factory.mktemp("others")

    @functools.cache
    def of(name, model):
        folder = out / model.replace("/", "-").replace(":", "-")
        ended = run_notebooks([name], size="smoke", model=model, out=folder, progress=False)[0]
        assert ended.status in ("passed", "skipped"), ended.error
        frame = load_results(folder)
        return ended, {row.name: row for row in frame[frame.notebook == ended.name].itertuples(index=False)}

    return of


def printed(ended):
    notebook = nbformat.read(ended.output, as_version=4)
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def test_a_zoo_model_is_captured_exactly_and_an_encoder_starts_beside_the_whole_uniform_matrix(run, encoder):
    ended, numbers = run("05", "zoo:rope")
    assert ended.status == "passed"
    for profile in ("key_profile", "lag_profile"):
        assert numbers[f"float32_{profile}_error"].value < 1e-6
        assert numbers[f"float32_{profile}_float64_error"].value < 1e-6
    ended, numbers = run("00", encoder)
    assert ended.status == "passed"
    assert numbers["n_heads"].value == 6 * 12
    assert numbers["positional_entropy"].null == pytest.approx(math.log(LENGTH))
    assert numbers["sink_mass"].null == pytest.approx(1 / LENGTH)
    assert "Warning" not in printed(ended)


def test_what_an_encoder_cannot_give_is_skipped_with_its_reason_and_the_rest_is_recorded(run, encoder):
    ended, numbers = run("05", encoder)
    assert ended.status == "skipped"
    assert "(bert) is no decoder, and this notebook needs one" in ended.error
    assert numbers == {}
    assert f"Skipped: {ended.error}" in printed(ended)
    ended, numbers = run("06", encoder)
    assert ended.status == "passed"
    assert "skipped: this bert model is not causal: it predicts no next token" in printed(ended)
    assert not {"loss", "ablation_change"} & set(numbers)
    assert numbers["n_heads"].value == 6 * 12
    assert numbers["positional_entropy"].null == pytest.approx(math.log(LENGTH))

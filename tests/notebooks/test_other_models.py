"""The collection on an encoder: what it gives is measured, what it cannot is skipped aloud."""

import math

import nbformat
import pytest

from nbhelpers import load_model
from nbhelpers.collection.results import load_results
from nbhelpers.collection.run import run_notebooks

LENGTH = 64  # tokens of a passage at smoke size


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a notebook with the encoder: ``run("05")`` -> (NotebookRun, numbers, what was printed)."""
    out, encoder = tmp_path_factory.mktemp("others"), str(tmp_path_factory.mktemp("encoder"))
    loaded = load_model("minilm-l6")
    loaded.model.save_pretrained(encoder)
    loaded.tokenizer.save_pretrained(encoder)

    def of(name):
        (ended,) = run_notebooks([name], size="smoke", model=encoder, out=out / name, progress=False)
        assert ended.status in ("passed", "skipped"), ended.error
        cells = nbformat.read(ended.output, as_version=4).cells
        printed = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
        return ended, load_results(out / name).set_index("name"), printed

    return of


@pytest.mark.parametrize("name", ["00", "06"])
def test_an_encoder_stands_beside_the_whole_uniform_matrix(run, name):
    ended, numbers, printed = run(name)
    assert ended.status == "passed"
    assert numbers.value["n_heads"] == 6 * 12
    assert numbers.null["positional_entropy"] == pytest.approx(math.log(LENGTH))
    if name == "00":
        assert numbers.null["sink_mass"] == pytest.approx(1 / LENGTH)
        assert "Warning" not in printed
    else:
        assert "skipped: this bert model is not causal: it predicts no next token" in printed
        assert not {"loss", "ablation_change"} & set(numbers.index)


def test_a_notebook_that_needs_a_decoder_is_skipped_with_its_reason(run):
    ended, numbers, printed = run("05")
    assert ended.status == "skipped"
    assert "(bert) is no decoder, and this notebook needs one" in ended.error
    assert numbers.empty
    assert f"Skipped: {ended.error}" in printed

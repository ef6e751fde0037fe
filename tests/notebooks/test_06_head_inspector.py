"""What 06_head_inspector records at smoke size: the head's numbers, the null in closed form."""

import base64

import nbformat
import numpy as np
import pytest
from oracles import entropy, power, uniform_profile

from nbhelpers.analysis import analyze
from nbhelpers.inputs.text import load_text

pytestmark = pytest.mark.notebook
NAME = "06_head_inspector"
LENGTH, LAYER, HEAD = 64, 5, 6  # of the smoke size


@pytest.fixture(scope="module")
def ids(smollm2):
    drawn = load_text("moby-dick", smollm2, n_sequences=1, length=LENGTH, seed=0)
    # The widget reads text, and the tokens of a decoded passage may join at its ends.
    again = smollm2.tokenizer(smollm2.tokenizer.decode(drawn[0]), return_tensors="pt")["input_ids"]
    return again[:, :LENGTH]


def test_the_inspector_shows_what_the_library_measures(numbers, smollm2, ids):
    assert numbers["largest_difference"].value == 0
    table = analyze(smollm2, ids, progress=False)
    for name in ("low_band", "spectral_entropy", "positional_entropy"):
        values = table.values(name)[0]
        own = values[LAYER, HEAD]
        assert numbers[name].value == pytest.approx(own, rel=1e-4)
        share = ((values < own).sum() + 0.5 * (values == own).sum()) / values.size
        assert numbers[f"{name}_percentile"].value == pytest.approx(100 * share, abs=1.0)


def test_the_null_is_uniform_attention(numbers, ids):
    n = ids.shape[1]
    profile = uniform_profile(n)
    assert numbers["positional_entropy"].null == pytest.approx(entropy(profile), rel=1e-6)
    low = power(profile)[np.fft.rfftfreq(n) < 0.125].sum() / power(profile).sum()
    assert numbers["low_band"].null == pytest.approx(low)


def test_a_page_without_widgets_has_a_picture_in_their_place(smoke_run):
    notebook = nbformat.read(smoke_run(NAME).output, as_version=4)
    bundles = [o["data"] for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o]
    widgets = [data for data in bundles if "application/vnd.jupyter.widget-view+json" in data]
    shown = [data for data in widgets if "image/png" in data]
    assert len(shown) == 1
    assert base64.b64decode(shown[0]["image/png"]).startswith(b"\x89PNG")

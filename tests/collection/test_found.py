"""What the texts say was found, against the reference run."""

import re

import pandas as pd
import pytest
from readme_verdicts import MARKED, cited, texts

from nbhelpers.collection.plan import list_notebooks, notebook_parameters
from nbhelpers.collection.results import Results, differences, reference

FOUND = {own: text for text, own in texts()}  # by notebook; README's name is ""


def unmarked(text):
    """Return the numbers that name no record; code and names (C3, SmolLM2-135M) have none."""
    plain = re.sub(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->", "", MARKED.sub("", text))
    return re.findall(r"(?<![\w.-])\.?\d[\d.,]*(?![\w-])", plain)


@pytest.mark.parametrize("own", FOUND)
def test_every_number_is_that_of_the_reference_run(own):
    known = reference()
    parameters = {path.stem[:2]: notebook_parameters(path) for path in list_notebooks()}
    for value, half, number, name, part in cited(FOUND[own], own):
        given = parameters[number].get(name)
        recorded = known.loc[(number, name), part] if given is None else given
        assert abs(recorded - value) <= half * (1 + 1e-6), f"{number}/{name} is {recorded:g}, not {value:g}"
    assert not own or unmarked(FOUND[own]) == []


def test_what_a_text_cites_is_read_as_it_is_printed():
    text = "−.60<!--rho-->, 28 %<!--07/C2 share:high-->, 1.2e-7<!--error:null--> in 256 tokens of `x 1`, C3."
    read = [(v, pytest.approx(half), *rest) for v, half, *rest in cited(text, "09_rho")]
    assert read == [
        (-0.6, 0.005, "09", "rho", "value"),
        (0.28, 0.005, "07", "C2 share", "high"),
        (1.2e-7, 0.5e-8, "09", "error", "null"),
    ]
    assert unmarked(text) == ["256"]


def test_a_run_of_another_model_says_where_it_differs(tmp_path):
    known = reference().loc["07"]
    store = Results("07_frequency_bands", tmp_path)
    for row in known.itertuples():
        store.record(row.Index, row.value)
    assert "Other than" not in store._repr_html_()
    name, value = known.index[0], known.value.iloc[0]
    numbers = pd.DataFrame({"name": [name], "value": [value * 2], "low": [value / 2], "high": [value * 3]})
    assert differences("07_frequency_bands", numbers) == ""
    told = differences("07_frequency_bands", numbers.assign(low=value * 1.5))
    assert told.endswith(f"of SmolLM2-135M: {name} is {2 * value:.3g}, not {value:.3g}.")

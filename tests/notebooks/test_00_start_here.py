import re

import nbformat
import numpy as np

from nbhelpers.collection.plan import list_notebooks

NAME = "00_start_here"
LENGTH = 64  # of the smoke size


def test_the_model_is_where_it_was_seen_before_and_its_sink_widens_the_spectrum(numbers):
    # 0.65 at 128 tokens and 0.63 at 512 on other passages; three short passages scatter by a few hundredths
    assert 0.55 < numbers["low_band"].value < 0.80
    assert numbers["low_band"].high < numbers["low_band"].null
    assert numbers["spectral_entropy"].low > numbers["spectral_entropy"].null
    assert numbers["sink_mass"].low > 2 * numbers["sink_mass"].null
    assert numbers["scale_sensitivity_0.25"].low > numbers["scale_sensitivity_0.25"].null
    assert numbers["spectral_entropy_boxcar"].value > numbers["spectral_entropy"].value + 0.3
    assert numbers["low_band_boxcar"].value < numbers["low_band"].value - 0.1
    assert numbers["spectral_entropy_boxcar"].value < np.log(LENGTH // 2 + 1)


def test_every_notebook_is_in_the_map(smoke_run):
    cells = nbformat.read(smoke_run(NAME).output, as_version=4).cells
    (shown,) = [o.data["text/markdown"] for c in cells if "collection_map()" in c.source for o in c.outputs]
    assert re.findall(r"\((\S+\.ipynb)\)", shown) == [path.name for path in list_notebooks()]

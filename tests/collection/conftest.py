import pytest
from tiny_notebooks import make_notebook


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    return folder


@pytest.fixture
def notebook(folder):
    """Make a notebook in the folder: ``notebook("01_name", "code of a cell", …)``."""
    return lambda name, *cells, **options: make_notebook(folder / f"{name}.ipynb", *cells, **options)

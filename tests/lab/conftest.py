"""Tiny notebooks, made on the spot, for the runner and the site."""

import nbformat
import pytest


def make_notebook(path, *cells, parameters="length = 8  # tokens", title="# 00 · Tiny\nDoes it run?"):
    """Write a notebook: title, a tagged cell of parameters (none if None), then the code cells."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook.cells = [nbformat.v4.new_markdown_cell(title)]
    if parameters is not None:
        notebook.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def folder(tmp_path):
    """An empty folder of notebooks."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    return folder


@pytest.fixture
def notebook(folder):
    """Make a notebook in the folder: ``notebook("01_name", "code of a cell", …)``."""
    return lambda name, *cells, **options: make_notebook(folder / f"{name}.ipynb", *cells, **options)

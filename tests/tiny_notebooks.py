"""Tiny notebooks, made on the spot, for the tests of the runner, the site and the command line."""

import nbformat


def make_notebook(path, *cells, parameters="length = 8  # tokens", title="# 00 · Tiny\nIs it?", tags=()):
    """Write a notebook: title, a tagged cell of parameters (none if None), then code cells with `tags`."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook.cells = [nbformat.v4.new_markdown_cell(title)]
    if parameters is not None:
        notebook.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    notebook.cells += [nbformat.v4.new_code_cell(cell, metadata={"tags": list(tags)}) for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path

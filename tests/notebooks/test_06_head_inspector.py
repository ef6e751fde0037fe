"""06_head_inspector at smoke size; that it shows what the library measures it asserts itself."""

import base64

import nbformat


def test_a_page_without_widgets_has_a_picture_in_their_place(numbers, smoke_run):
    assert numbers["largest_difference"].value == 0
    notebook = nbformat.read(smoke_run("06").output, as_version=4)
    bundles = [o["data"] for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o]
    widgets = [data for data in bundles if "application/vnd.jupyter.widget-view+json" in data]
    (shown,) = [data for data in widgets if "image/png" in data]
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")

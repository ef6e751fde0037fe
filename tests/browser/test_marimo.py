import pytest

pytest.importorskip("marimo", reason="no marimo here: pip install marimo")
NOTEBOOK = """
import marimo

app = marimo.App(width="full")


@app.cell
def _():
    from nbhelpers import inspect_heads

    inspector = inspect_heads("zoo:rope", "The ship sails, the whale dives. " * 12, progress=False)
    inspector
    return


if __name__ == "__main__":
    app.run()
"""


def test_a_click_and_a_typed_text_reach_the_kernel(serve, page, shot, tmp_path):
    (tmp_path / "heads.py").write_text(NOTEBOOK)
    options = ["run", "heads.py", "--no-token"]
    page.goto(serve("marimo", tmp_path, options, port_option="--port", quiet="--headless"))
    page.locator(".nbh[data-drawn]").wait_for()
    assert page.locator(".nbh-cell").count() == 4 * 4
    page.locator('.nbh-cell[data-layer="1"][data-head="2"]').click()
    page.locator('.nbh[data-drawn="1.2"]').wait_for()
    page.locator(".nbh-pop-text summary").click()
    page.locator(".nbh-typed").fill("A lantern, a lantern and the night. " * 12)
    page.locator(".nbh-text", has_text="lantern").wait_for()
    shot(page, "marimo")
    assert page.complaints == []

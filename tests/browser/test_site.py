import pytest
from tiny_notebooks import make_notebook

from nbhelpers.collection.run import run_notebooks
from nbhelpers.collection.site.build import build_site

TITLE = "# 01 · Formulas\n\nIs $x^2$ drawn?\n\n$$\\int_0^1 x\\,dx = \\frac{1}{2}$$"
WIDGET = "import ipywidgets\nipywidgets.IntSlider(3, description='how many')"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    root = tmp_path_factory.mktemp("site")
    make_notebook(root / "notebooks" / "01_formulas.ipynb", WIDGET, title=TITLE)
    run_notebooks(folder=root / "notebooks", out=root / "out", progress=False)
    build_site(root / "out" / "executed", root / "out", reference=False)
    return root / "out"


def test_formulas_and_widgets_are_drawn_without_a_network(page, site, shot):
    asked, failed = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.goto((site / "01_formulas.html").as_uri())
    page.locator(".widget-subarea .widget-slider").wait_for()
    page.locator("mjx-container svg").first.wait_for()
    assert page.locator("mjx-container").count() == 2
    assert "how many" in page.locator(".widget-subarea").inner_text()
    assert page.locator(".widget-readout").inner_text() == "3"
    shot(page, "site")
    assert asked
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert failed == []
    assert page.complaints == []


def test_a_narrow_page_scrolls_down_only(page, site):
    page.set_viewport_size({"width": 400, "height": 800})
    for name in ("index", "01_formulas"):
        page.goto((site / f"{name}.html").as_uri())
        width = page.evaluate("document.scrollingElement.scrollWidth")
        assert width <= 400, f"{name} is {width} pixels wide"


def test_search_finds_a_word_of_a_page(page, site):
    page.goto((site / "search.html").as_uri() + "?q=formulas")
    page.locator("ul.search li a", has_text="Formulas").first.wait_for()

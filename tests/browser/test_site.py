import html
import re
import subprocess
from unittest.mock import Mock

import pytest
import warm_kernels
from tiny_notebooks import make_notebook

import nbhelpers
from nbhelpers.claims.paper import CLAIMS
from nbhelpers.collection.results import Results
from nbhelpers.collection.run import run_notebooks
from nbhelpers.collection.site.build import build_site

FIGURE = "import matplotlib.pyplot as plt\nax = plt.figure().gca()\nax.plot([1, 2])\nprint('rises by 1')"
WIDGET = "import ipywidgets\nipywidgets.IntSlider(3, description='how many')"
PRINTED = "from IPython.display import Markdown\nMarkdown(r'so $\\pi > 3$')"
STRANGER = """\
import ipywidgets, traitlets

class Stranger(ipywidgets.DOMWidget):
    _model_module = _view_module = traitlets.Unicode('stranger').tag(sync=True)
    text = traitlets.Unicode('drawn by a script of its own').tag(sync=True)

ipywidgets.VBox([Stranger()])"""
TITLE = "# 01 · Figures | tables\n\nThis one draws. Is the *figure* there? See $x^2$.\n\n$$\\int_0^1 x\\,dx$$"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of notebooks that pass, fail and skip themselves; all run and built once."""
    root = tmp_path_factory.mktemp("site")
    folder, out = root / "notebooks", root / "demo"
    drawing = FIGURE, WIDGET, PRINTED, STRANGER
    make_notebook(folder / "01_figure.ipynb", *drawing, title=TITLE, tags=["gallery"])
    make_notebook(folder / "02_bad.ipynb", "raise ValueError('told on the page')", title="# 02 · Bad")
    skips = "from nbhelpers.collection.skip import skip_notebook\nskip_notebook('no decoder: take another')"
    make_notebook(folder / "03_skips.ipynb", skips, "1", title="# 03 · Skips")
    card = "# 20 · Card\n\n[A word](glossary.md#key-profile) and [a source](references.md#ruscio-et-al-2024)."
    make_notebook(folder / "20_scorecard.ipynb", "print('six' + 'teen')", title=card, tags=["solution"])
    Results("10_scale_invariance", out / "results").record("C5_half", 0.2)

    def fork(command, **_):  # of a process that has imported what Sphinx will document
        process = warm_kernels.start("import sphinx.__main__", *map(str, command[3:]), log=root / "log")
        process.join()
        return Mock(returncode=process.exitcode, stderr=(root / "log").read_text())

    with pytest.MonkeyPatch.context() as patch:
        warm_kernels.use(patch)
        run_notebooks(folder=folder, out=out, progress=False)
        patch.setattr(subprocess, "run", fork)
        assert build_site(out / "executed", out) == out / "index.html"
    return out


def test_index_has_title_question_status_and_links_and_sphinx_nothing_to_warn_of(site):
    assert (site / "sphinx-warnings.txt").read_text() == ""
    index = (site / "index.html").read_text()
    assert 'href="01_figure.html"' in index
    assert "01 · Figures | tables" in index
    assert "Is the <em>figure</em> there?" in index
    assert re.search(r"passed, \d+ s, \d+ MB", index)
    assert "<strong>failed</strong>" in index
    assert re.search(r"skipped, \d+ s, \d+ MB", index)
    assert "2 of 4 notebooks passed, 1 did not. 1 skipped: not to be had of this model." in index
    assert all(known.title in index for known in CLAIMS), "the verdicts of the store"
    assert "Of the paper's 19 claims none holds" in html.unescape(index).replace("’", "'")
    assert not re.search(r"C\d+_\w", index), "no name of a record"


def test_figures_are_files_that_their_page_and_the_home_page_show(site):
    narrow = r'<picture><source media="\(max-width: 600px\)" srcset="([^"]+)">'  # of the summary, for phones
    summary = re.search(narrow + '<img src="([^"]+)" alt="Of the paper', (site / "index.html").read_text())
    shown = re.findall(r'<img[^>]+src="(_images/[^"]+\.png)"', (site / "01_figure.html").read_text())
    assert len(shown) == 1
    for page in ("01_figure.html", "index.html"):
        assert 'alt="01 · Figures | tables. rises by 1"' in (site / page).read_text(), page
    link = r'<a[^>]+href="01_figure.html"><img[^>]+src="(_images/01_figure.png)"'
    tagged = re.findall(link, (site / "index.html").read_text())
    assert len(tagged) == 1
    images = [site / image for image in (*shown, *tagged, *summary.groups())]
    assert all(image.read_bytes().startswith(b"\x89PNG") for image in images)


def test_core_widgets_are_drawn_by_a_script_of_the_site_and_others_leave_no_trace(site):
    page = (site / "01_figure.html").read_text()
    script = re.search(r'src="(_static/widgets-embed\.js)[^"]*"', page).group(1)
    assert (site / script).stat().st_size > 1_000_000
    assert page.count('type="application/vnd.jupyter.widget-view+json"') == 1
    assert "how many" in page
    assert "drawn by a script of its own" not in page.split("Stranger()")[1]
    page = (site / "02_bad.html").read_text()
    assert page.index("<h1>02 · Bad") < page.index("This run failed") < page.index("told on the page")
    page = (site / "03_skips.html").read_text()
    told = page.index("Skipped; what follows the reason was not run.")
    assert page.index("<h1>03 · Skips") < told < page.index("no decoder: take another", told)
    assert "Traceback" not in page


def test_nothing_is_loaded_from_a_network_code_is_folded_and_words_have_pages(site):
    load = r'<(?:script|img)[^>]+src="([^"]+)"|<link[^>]+href="([^"]+)"'
    for page in site.glob("*.html"):
        loaded = [source or link for source, link in re.findall(load, page.read_text())]
        assert loaded
        assert not [link for link in loaded if re.match(r"(https?:)?//", link)], page.name
    page = (site / "01_figure.html").read_text()
    script = re.search(r'src="(_static/tex-svg-full\.js)[^"]*"', page).group(1)
    assert (site / script).stat().st_size > 500_000
    assert "\\int_0^1" in page
    assert "\\(\\pi &gt; 3\\)" in page, "of an output too"
    folded = re.findall(r'<details class="[^"]*hide[^"]*input.*?</details>', page, flags=re.DOTALL)
    assert len(folded) == 4, "the four cells begin with imports"
    assert "<img" not in "".join(folded)
    assert "length" not in page, "parameters, and the folder a run injects, are left out"
    page = (site / "20_scorecard.html").read_text()
    assert re.search(r'<details class="[^"]*hide.*?Show the solution.*?sixteen.*?</details>', page, re.DOTALL)
    for name, anchor in (("glossary.html", "key-profile"), ("references.html", "ruscio-et-al-2024")):
        assert f'href="{name}#{anchor}"' in page
        assert f'id="{anchor}"' in (site / name).read_text()


def test_reference_has_every_public_name_and_search_knows_its_words(site, tmp_path):
    page = (site / "reference.html").read_text()
    functions = [name for name in nbhelpers.__all__ if callable(getattr(nbhelpers, name))]
    assert len(functions) > 10
    assert all(f">{name}<" in page for name in functions)
    kernels = (site / "reference-kernels.html").read_text()
    assert 'id="nbhelpers.kernels.spectra.band_shares"' in kernels
    assert "torch.Tensor" in kernels
    assert re.search(r'\bwavelet"?:', (site / "searchindex.js").read_text())
    with pytest.raises(FileNotFoundError, match="holds no executed notebook"):
        build_site(tmp_path, tmp_path / "out")


# The same pages in a real Chromium


def test_formulas_and_widgets_are_drawn_without_a_network(page, site, shot):
    asked, failed = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.goto((site / "01_figure.html").as_uri())
    page.locator(".widget-subarea .widget-slider").wait_for()
    page.locator("mjx-container svg").first.wait_for()
    assert page.locator("mjx-container").count() == 3
    assert "how many" in page.locator(".widget-subarea").inner_text()
    assert page.locator(".widget-readout").inner_text() == "3"
    shot(page, "site")
    assert asked
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert failed == []
    assert page.complaints == []


def test_a_narrow_page_scrolls_down_only_and_search_finds_a_word_of_a_page(page, site):
    page.set_viewport_size({"width": 400, "height": 800})
    for name in ("index", "01_figure"):
        page.goto((site / f"{name}.html").as_uri())
        width = page.evaluate("document.scrollingElement.scrollWidth")
        assert width <= 400, f"{name} is {width} pixels wide"
    page.goto((site / "search.html").as_uri() + "?q=figures")
    page.locator("ul.search li a", has_text="Figures").first.wait_for()

import re

import pytest
from tiny_notebooks import make_notebook

from nbhelpers.evidence.paper import CLAIMS
from nbhelpers.lab.notebooks import run_notebooks
from nbhelpers.lab.results import Results
from nbhelpers.lab.site import build_site, read_title

FIGURE = (
    "import matplotlib.pyplot as plt\nfig, ax = plt.subplots(figsize=(2, 2))\nax.plot([1, 2])\nplt.show()"
)
WIDGET = "import ipywidgets\nipywidgets.IntSlider(3)"
TITLE = "# 01 · Figures | tables\n\nThis one draws. Is the *figure* there? See $x^2$.\n\n$$\\int_0^1 x\\,dx$$"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of one notebook that passes and one that fails; both run and built once."""
    root = tmp_path_factory.mktemp("site")
    make_notebook(root / "notebooks" / "01_figure.ipynb", FIGURE, WIDGET, title=TITLE)
    make_notebook(
        root / "notebooks" / "02_bad.ipynb", "raise ValueError('told on the page')", title="# 02 · Bad"
    )
    make_notebook(root / "notebooks" / "15_scorecard.ipynb", "1", title="# 15 · Card")
    out = root / "demo"
    Results("08_scale_invariance", out / "results").record("C5_half", 0.2)
    run_notebooks(folder=root / "notebooks", out=out, progress=False)
    assert build_site(out / "executed", out) == out / "index.html"
    return out


def test_sphinx_has_nothing_to_warn_of(site):
    assert (site / "sphinx-warnings.txt").read_text() == ""


def test_index_has_title_question_status_and_links(site):
    index = (site / "index.html").read_text()
    assert 'href="01_figure.html"' in index
    assert "01 · Figures | tables" in index
    assert "Is the <em>figure</em> there?" in index
    assert re.search(r"passed, \d+ s, \d+ MB", index)
    assert "<strong>failed</strong>" in index
    assert "2 of 3 notebooks passed, 1 did not" in index


def test_index_shows_the_verdicts_of_the_store(site):
    index = (site / "index.html").read_text()
    for known in CLAIMS:
        assert known.title in index
    assert index.count("not testable here") == sum(not known.criteria for known in CLAIMS)


def test_figure_is_a_file_the_page_shows(site):
    images = re.findall(r'<img[^>]+src="(_images/[^"]+\.png)"', (site / "01_figure.html").read_text())
    assert len(images) == 1
    assert (site / images[0]).read_bytes().startswith(b"\x89PNG")


def test_failed_notebook_has_its_page_with_the_error_under_the_title(site):
    page = (site / "02_bad.html").read_text()
    assert page.index("<h1>02 · Bad") < page.index("This run failed") < page.index("told on the page")


def test_nothing_is_loaded_from_a_network(site):
    for page in site.glob("*.html"):
        text = page.read_text()
        loaded = re.findall(
            r"<script[^>]+src=\"([^\"]+)\"|<link[^>]+href=\"([^\"]+)\"|<img[^>]+src=\"([^\"]+)\"", text
        )
        assert loaded
        assert not [link for links in loaded for link in links if re.match(r"(https?:)?//", link)], page.name


def test_formulas_have_their_script(site):
    page = (site / "01_figure.html").read_text()
    script = re.search(r'src="(_static/tex-svg-full\.js)[^"]*"', page).group(1)
    assert (site / script).stat().st_size > 500_000
    assert "\\int_0^1" in page


def test_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no executed notebook"):
        build_site(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# A\nFirst words\nhere. Then this? More?", ("A", "Then this?")),
        ("# A\n\nOnly this. And that.", ("A", "Only this.")),
        ("# A\n\nFirst. **Is it bold?** After. Or this?", ("A", "**Is it bold?**")),
        ("no heading", ("05", "no heading")),
        ("", ("05", "")),
    ],
)
def test_title_and_question(text, expected):
    assert read_title(text, default="05") == expected

"""Sphinx's settings for the site; build.py copies this file beside the pages and fills in @repository@."""

import re
from pathlib import Path

project = "nbhelpers"
author = "the nbhelpers authors"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
extensions += ["sphinxcontrib.bibtex"]
html_theme = "sphinx_book_theme"
html_title = "nbhelpers"
html_static_path = ["_static"]
html_css_files, html_js_files = ["site.css"], ["site.js"]
launch_sites = {"binderhub_url": "https://mybinder.org", "colab_url": "https://colab.research.google.com"}
html_theme_options = {
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the sidebar has the search already
    "repository_url": "@repository@",
    "repository_branch": "main",
    "path_to_docs": "notebooks",
    "launch_buttons": launch_sites | {"notebook_interface": "jupyterlab"},
}
smartquotes = False  # --out stays --out
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # printed sentences have formulas too
# The script that draws the core widgets comes with the pages; without it they would ask a network for it.
nb_ipywidgets_js = {"widgets-embed.js": {}}
# A picture beside a widget is shown instead of it: only the core widgets can be drawn without a kernel.
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", 45)]
myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence"]
myst_heading_anchors = 3  # notebooks link to a word of the glossary
bibtex_bibfiles = [path.name for path in Path(__file__).parent.glob("*.bib")]
bibtex_reference_style = "author_year"
bibtex_cite_id = "{key}"  # the address of a source is its key
mathjax_path = "tex-svg-full.js"
mathjax_config_path = "mathjax-config.js"
autodoc_member_order = "bysource"
autodoc_use_type_comments = False
autodoc_typehints = "none"  # the docstrings give types and shapes
napoleon_google_docstring = False
autodoc_inherit_docstrings = False  # those of transformers are not ours
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]  # fields of one name in two classes are no link's target


def plain_marks(app, what, name, obj, options, lines):
    """Take from docstrings what reStructuredText would read as marks of its own.

    |a|² is an absolute value, not a substitution; the references of two functions on one page are both [1].
    """
    for i, line in enumerate(lines):
        parts = line.split("``")  # literals are every second part
        parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
        line = re.sub(r"^\.\. (\[\d+\]) ", r"- \1 ", "``".join(parts))
        lines[i] = re.sub(r"(\[\d+\])_", r"\1", line)


def cite(app, name, source):
    """Make links to a source citations, which Sphinx holds against the bibliography."""
    source[0] = re.sub(r"\[[^][\n]*\]\(references\.md#([\w-]+)\)", r"{cite:alp}`\1`", source[0])


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", cite)
    app.connect("autodoc-process-docstring", plain_marks, priority=900)  # after napoleon

"""Build the site: write Sphinx's source into a scratch folder, run Sphinx, keep its pages and warnings."""

import importlib
import importlib.metadata
import pkgutil
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbhelpers
from nbhelpers.collection.plan import find_notebook_folder
from nbhelpers.collection.run import load_runs
from nbhelpers.collection.site.home import home_page
from nbhelpers.collection.site.pages import prepare_page
from nbhelpers.files import writable_folder
from nbhelpers.inputs.families import tested_families

_MATHJAX = "sphinx-mathjax-offline/static/mathjax/tex-svg-full.js"  # one file, draws with no font to load
_STATIC = ("site.css", "site.js", "widgets-embed.js", "1551f4f60c37af51121f.woff2")  # the last: icons
_ASSETS = Path(__file__).parent / "assets"


def build_site(executed_folder, out):
    """Build pages from executed notebooks, without running them and without a network; return the index.

    Where a folder ``runs`` lies beside the notebooks (see `run_notebooks`), the pages say how each run ended;
    a folder ``results`` gives the home page its scorecard. Sphinx's warnings are kept in
    ``<out>/sphinx-warnings.txt`` and printed on stderr.
    """
    executed, out = Path(executed_folder), Path(out)
    if not (notebooks := sorted(executed.glob("*.ipynb"))):
        state = "holds no executed notebook" if executed.is_dir() else "does not exist"
        raise FileNotFoundError(f"{executed} {state}; run them first: python -m nbhelpers run --out {out}")
    writable_folder(out)
    runs = {run.name: run for run in load_runs(executed.parent)}
    with tempfile.TemporaryDirectory(prefix="site-") as scratch:  # Sphinx wants its source outside its output
        source = Path(scratch).resolve() / "source"
        _write_static(source)
        pages = [prepare_page(path, runs.get(path.stem), source) for path in notebooks]
        texts = sorted(find_notebook_folder().glob("*.md"))  # glossary and references
        for path in [*texts, *find_notebook_folder().glob("*.bib")]:
            shutil.copy(path, source)
        names = [path.stem for path in texts] + write_reference(source)
        home = home_page(pages, names, executed.parent, source / "_static")
        (source / "index.md").write_text(home, encoding="utf-8")
        warnings = _run_sphinx(source, out.resolve())
    (out / "sphinx-warnings.txt").write_text(warnings, encoding="utf-8")
    if warnings:
        print(f"sphinx warns:\n{warnings}", file=sys.stderr)
    return out / "index.html"


def _write_static(source):
    """Write Sphinx's settings, the style sheet and the scripts."""
    (source / "_static").mkdir(parents=True)
    urls = dict(url.split(", ", 1) for url in importlib.metadata.metadata("nbhelpers").get_all("Project-URL"))
    conf = (_ASSETS / "conf.py").read_text(encoding="utf-8").replace("@repository@", urls["Repository"])
    (source / "conf.py").write_text(conf, encoding="utf-8")
    shutil.copy(_ASSETS / "mathjax-config.js", source)
    mathjax = importlib.metadata.distribution("sphinx-mathjax-offline").locate_file(_MATHJAX)
    for file in (str(mathjax), *(_ASSETS / name for name in _STATIC)):
        shutil.copy(file, source / "_static")


def _run_sphinx(source, out):
    """Build the pages and return Sphinx's warnings, files named as seen from its source folder."""
    warnings = source.parent / "warnings.txt"
    places = ["-d", source.parent / "doctrees", "-w", warnings, source, out]
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", *places]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"sphinx failed with status {done.returncode}:\n{done.stderr[-3000:]}")
    return warnings.read_text(encoding="utf-8").replace(f"{source}/", "")


def write_reference(source):
    """Write the reference and the table of tested models into Sphinx's source; return the pages' names."""
    pages = {"ground": "# Modules at the top\n"}
    for module in pkgutil.walk_packages(nbhelpers.__path__, "nbhelpers."):
        _, room, *inner = module.name.split(".")
        if room == "data" or module.name.endswith("__main__"):
            continue
        page, short = (room if inner or module.ispkg else "ground"), module.name.removeprefix("nbhelpers.")
        heading, option = f"# {room.capitalize()}", ""
        if page in pages:
            here = vars(importlib.import_module(module.name))
            public = {name: here[name] for name in here.get("__all__", here) if not name.startswith("_")}
            made = {name: getattr(value, "func", value) for name, value in public.items()}
            # Those defined there: autodoc by itself reads the modules of all imported names, too.
            names = [name for name in made if getattr(made[name], "__module__", "") == module.name]
            heading, option = f"\n## {short}", f"   :members: {', '.join(names)}\n"
        text = f"{heading}\n\n```{{eval-rst}}\n.. automodule:: {module.name}\n{option}```\n"
        pages[page] = pages.get(page, "") + text
    reference = (_ASSETS / "reference.md").read_text(encoding="utf-8")
    for value in filter(callable, (getattr(nbhelpers, name) for name in nbhelpers.__all__)):
        reference += f"| `{value.__name__}` | {value.__doc__.splitlines()[0]} | `{value.__module__}` |\n"
    (source / "reference.md").write_text(reference, encoding="utf-8")
    for page, text in pages.items():
        (source / f"reference-{page}.md").write_text(text, encoding="utf-8")
    page, table = (_ASSETS / "tested-models.md").read_text(encoding="utf-8"), tested_families()
    page = page.format(summary=table.attrs["summary"], table=table.to_html(index=False, border=0))
    (source / "tested-models.md").write_text(page, encoding="utf-8")
    return ["reference", *(f"reference-{page}" for page in pages), "tested-models"]

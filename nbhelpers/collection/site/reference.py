"""The reference of the package, from its docstrings: the public names, and a page per room."""

import pkgutil
from pathlib import Path

import nbhelpers
from nbhelpers.inputs import tested

_PUBLIC = """\
# Reference

What the notebooks import; the pages below have the rest.

| name | what it does | from |
|---|---|---|
"""


def write_reference(source: Path) -> list[str]:
    """Write the reference and the table of tested models into Sphinx's source; return the pages' names."""
    pages = {"ground": "# Modules at the top\n"}
    for module in pkgutil.walk_packages(nbhelpers.__path__, "nbhelpers."):
        _, room, *inner = module.name.split(".")
        if room == "data" or module.name.endswith("__main__"):
            continue
        page, short = (room if inner or module.ispkg else "ground"), module.name.removeprefix("nbhelpers.")
        heading, option = f"# {room.capitalize()}", ""
        if page in pages:
            heading, option = f"\n## {short}", "   :members:\n"
        text = f"{heading}\n\n```{{eval-rst}}\n.. automodule:: {module.name}\n{option}```\n"
        pages[page] = pages.get(page, "") + text
    (source / "reference.md").write_text(_public_names(), encoding="utf-8")
    for page, text in pages.items():
        (source / f"reference-{page}.md").write_text(text, encoding="utf-8")
    (source / "tested-models.md").write_text(tested.page(tested.tested_families()), encoding="utf-8")
    return ["reference", *(f"reference-{page}" for page in pages), "tested-models"]


def _public_names() -> str:
    rows = []
    for name in nbhelpers.__all__:
        value = getattr(nbhelpers, name)
        if callable(value):
            about = (value.__doc__ or "").strip().splitlines()[0]
            rows.append(f"| `{name}` | {about} | `{value.__module__}` |\n")
    return _PUBLIC + "".join(rows)

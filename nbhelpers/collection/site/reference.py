"""The reference: a page per floor of the package from its docstrings, and all error messages on one page."""

import ast
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path

import nbhelpers

# In the order of the floors, from the ground up; what is named here is a page each.
_FLOORS = {
    "kernels": "Kernels: tensor to tensor",
    "hooks": "Hooks: models and capture",
    "evidence": "Evidence: nulls, statistics, claims",
    "zoo": "Zoo: models trained here",
    "lab": "Lab: notebooks, results, pages",
}
_GROUND = "Protocol, profiles, tables and text"
_PUBLIC = """\
# Reference

What the notebooks import; the pages below have the rest.

| name | what it does | from |
|---|---|---|
{rows}
"""


@dataclass(frozen=True)
class Message:
    """An error message as the source has it, with … where a value is filled in."""

    text: str
    kind: str
    raised_by: str


def write_reference(source: Path) -> list[str]:
    """Write the reference pages into Sphinx's source and return their names."""
    root = Path(nbhelpers.__file__).parent
    modules = [name for _, name, _ in pkgutil.walk_packages([str(root)], "nbhelpers.")]
    modules = [m for m in modules if not m.endswith("__main__") and not m.startswith("nbhelpers.data")]
    pages = {"reference-ground": (_GROUND, [m for m in modules if m.count(".") == 1 and _is_module(root, m)])}
    for floor, title in _FLOORS.items():
        pages[f"reference-{floor}"] = (title, [m for m in modules if m.startswith(f"nbhelpers.{floor}.")])
    for name, (title, members) in pages.items():
        (source / f"{name}.md").write_text(_page(title, members), encoding="utf-8")
    (source / "reference.md").write_text(_public_names(), encoding="utf-8")
    (source / "errors.md").write_text(_errors(error_messages(root)), encoding="utf-8")
    return ["reference", *pages, "errors"]


def error_messages(root: Path) -> list[Message]:
    """Return every message that the package raises, in the order of their text.

    Parameters
    ----------
    root : Path
        Folder of the package.
    """
    found = set()
    for path in sorted(root.rglob("*.py")):
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        found |= set(_raised(ast.parse(path.read_text(encoding="utf-8")), module))
    return sorted(found, key=lambda message: message.text.lstrip("… (),:").lower())


def _raised(node, place):
    """Yield the messages raised below a node; `place` is the dotted name of what holds it."""
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.FunctionDef | ast.ClassDef)
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call) and child.exc.args:
            text = _template(child.exc.args[0])
            if len(re.findall(r"[^\W\d]{2,}", text)) > 1:  # others only pass on what was said elsewhere
                yield Message(text, ast.unparse(child.exc.func), place.removeprefix("nbhelpers."))
        yield from _raised(child, f"{place}.{child.name}" if named else place)


def _template(node) -> str:
    """Return the text of a string expression with … for what is filled in; "" if it is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) or "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_template(node.left) or "…") + (_template(node.right) or "…")
    return ""


def _errors(messages: list[Message]) -> str:
    rows = "\n".join(f"- {_plain(m.text)}\n\n  `{m.kind}` from `{m.raised_by}`\n" for m in messages)
    return (
        "# Error messages\n\nEvery message that the package raises, in alphabetical order; … stands for what "
        "is filled in. What to do is part of the message. Below it stands where it is raised.\n\n"
        f":::{{container}} messages\n{rows}:::\n"
    )


def _plain(text: str) -> str:
    """Return text whose characters mean nothing to Markdown."""
    for mark in "\\`*_|<>[]$#{}":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _page(title: str, modules: list[str]) -> str:
    parts = [f"# {title}\n"]
    for module in modules:
        short = module.removeprefix("nbhelpers.")
        parts.append(f"## {short}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```\n")
    return "\n".join(parts)


def _public_names() -> str:
    rows = []
    for name in nbhelpers.__all__:
        value = getattr(nbhelpers, name)
        if not name.startswith("_") and callable(value):
            about = (value.__doc__ or "").strip().splitlines()[0]
            rows.append(f"| `{name}` | {about} | `{value.__module__}` |")
    return _PUBLIC.format(rows="\n".join(rows))


def _is_module(root: Path, name: str) -> bool:
    return (root / f"{name.rsplit('.', 1)[1]}.py").is_file()

"""Which models of the zoo travel with the package, and where their files are."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

PREFIX = "zoo:"
INDEX = "models.json"


@dataclass(frozen=True)
class ZooEntry:
    """One model of the zoo: its folder, that of its tokenizer, a few words about it."""

    folder: Path
    tokenizer: Path
    about: str


def shipped_folder():
    """Return nbhelpers/data/zoo, which `python -m nbhelpers.zoo collect` fills."""
    return Path(str(resources.files("nbhelpers.data") / "zoo"))


def zoo_models():
    """Return the models that are shipped, "zoo:rope" and so on, by name; empty if there are none.

    Returns
    -------
    dict of str to ZooEntry
    """
    folder = shipped_folder()
    if not (folder / INDEX).exists():
        return {}
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return {
        PREFIX + name: ZooEntry(folder / row["folder"], folder / row["tokenizer"], row["about"])
        for name, row in index.items()
    }


def find_zoo_model(name):
    """Return the entry of a name such as "zoo:rope" or "zoo:alibi@step1000".

    Raises
    ------
    LookupError
        There is no such model; the message lists those there are.
    """
    models = zoo_models()
    if name in models:
        return models[name]
    if not models:
        raise LookupError(
            f"there is no model {name!r}: no zoo is shipped with this installation. Train one with\n"
            "    python -m nbhelpers.zoo train-all && python -m nbhelpers.zoo collect\n"
            "or give the folder of a trained run: build/zoo/runs/<run>/weights/final"
        )
    close = difflib.get_close_matches(name, models, n=1, cutoff=0.6)
    guess = f"; did you mean {close[0]!r}?" if close else "."
    raise LookupError(f"the zoo has no model {name!r}{guess} It has {', '.join(models)}.")

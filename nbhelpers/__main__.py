"""Command line: ``python -m nbhelpers COMMAND``; ``data/commands.toml`` says which there are."""

import argparse
import contextlib
import signal
import sys
import textwrap
import threading
import tomllib
from importlib import resources
from pathlib import Path

# What the library raises for wrong input, printed in one line; anything else is a bug, with its traceback.
USER_ERRORS = (LookupError, ValueError, OSError, ModuleNotFoundError)


def main(arguments=None):
    """Run one command; return 0 if all is done, 1 if a notebook or a run failed, 2 for wrong input, 130 for
    Ctrl-C or SIGTERM."""
    return run_command(_parser(), arguments)


def run_command(parser, arguments, errors=USER_ERRORS):
    """Run the command that arguments name; return its status, as :func:`main` does."""
    options = parser.parse_args(arguments)
    try:
        with _one_interrupt(for_good=arguments is None):
            return options.command(options) or 0
    except KeyboardInterrupt:
        if options.traceback:
            raise
        return 130
    except errors as error:
        if options.traceback:
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        program = parser.prog.removeprefix("python -m ")
        print(f"{program}: {' '.join(str(text).split())} (--traceback shows where)", file=sys.stderr)
        return 2


@contextlib.contextmanager
def _one_interrupt(*, for_good):
    """Make Ctrl-C and SIGTERM raise KeyboardInterrupt once; ignore the next, if `for_good` for ever."""
    before = {}

    def interrupt(*_):
        ignore()
        raise KeyboardInterrupt

    def ignore():
        for number in before:
            signal.signal(number, signal.SIG_IGN)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # ignored, as in a shell's background
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        ignore()  # a Python that is ending can hang on a signal
        for number, handler in before.items() if not for_good else ():
            signal.signal(number, handler)


def _parser():
    parser = argparse.ArgumentParser(prog="python -m nbhelpers", description="Run the notebook collection.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    table = (resources.files("nbhelpers.data") / "commands.toml").read_text(encoding="utf-8")
    for name, arguments in tomllib.loads(table).items():
        command = commands.add_parser(name, help=arguments.pop("about"))
        command.set_defaults(command=globals()[f"_{name}"])
        command.add_argument("--traceback", action="store_true", help="show where an error was raised")
        for argument, options in arguments.items():
            kind = options.get("type", type(options.get("default")).__name__)
            kinds = {"type": {"int": int, "float": float}[kind]} if kind in ("int", "float") else {}
            metavars = {"metavar": tuple(options["metavar"])} if options.get("nargs") == 2 else {}
            command.add_argument(argument, **options | kinds | metavars)
    return parser


def _run(options):
    from nbhelpers.collection.run import run_notebooks
    from nbhelpers.inputs.files import locate
    from nbhelpers.inputs.packaged import PACKAGED

    if (base := (options.model or "").removeprefix("random:")) in PACKAGED:
        locate(base)  # one sentence if it is not here, in place of one for each notebook
    names = ("size", "model", "out", "cell_timeout", "folder", "jobs")
    settings = {name: getattr(options, name) for name in names} | {"resume": not options.fresh}
    settings["parameters"] = {key: parse_value(value) for key, value in options.p}
    runs = run_notebooks(options.notebooks or None, **settings)
    return int(any(run.status == "failed" for run in runs))


def _notebooks(options):
    from nbhelpers.collection.plan import copy_notebooks, list_notebooks

    if options.action == "copy":
        folder = copy_notebooks(options.folder)
        print(f"{len(list_notebooks(folder))} notebooks in {folder}; explore them with: jupyter lab {folder}")
        return
    print(*list_notebooks(), "A folder of your own: python -m nbhelpers notebooks copy FOLDER", sep="\n")


def _sweep(options):
    from nbhelpers.sweeps.grid import load_grid, shipped_grids

    if options.grid is None:
        for name, about in shipped_grids().items():
            print(f"{name:24} {' '.join(about.split())}")
        return 0
    grid = load_grid(options.grid)
    out = options.out or f"build/sweeps/{grid.name}"
    if options.dry_run:
        from nbhelpers.sweeps.estimate import print_plan

        print_plan(grid, out, workers=options.workers)
        return 0
    from nbhelpers.sweeps.engine import run_sweep

    settings = {name: getattr(options, name) for name in ("scheduler", "workers", "timeout", "fresh")}
    return int(run_sweep(grid, out, **settings).n_done < len(grid.runs))


def _models(options):
    from nbhelpers.inputs.files import get_model
    from nbhelpers.inputs.models import available_models

    def accept(question):
        print(question, flush=True)
        if options.accept:
            return True
        if not sys.stdin.isatty():
            raise PermissionError("nothing was fetched, since nobody can be asked here; say --accept")
        return input("Fetch it under this licence? [y/N] ").strip().lower() in ("y", "yes")

    if options.action:
        files = get_model(options.name, accept)
        print(f"{options.name} is in {files.path} ({files.revision})")
        return
    for name, about in available_models().items():
        print(f"{name:26} {about}")


def _specs(options):
    from nbhelpers.specifications import load_choices, measure_worlds, write_worlds

    grid = load_choices(options.grid)
    sizes = {"n_sequences": options.sequences, "length": options.length, "n_draws": options.draws}
    worlds = measure_worlds(options.model, options.text, grid, **sizes)
    shares = write_worlds(worlds, options.out, {"model": options.model, "text": options.text, **sizes})
    for name, row in shares.iterrows():
        largest = row.dropna().nlargest(3).items()
        told = ", ".join(f"{choice.replace('_', ' ')} {share:.0%}" for choice, share in largest)
        print(f"{name:30} is decided by {told}")
    print(f"curves, shares and figures: {options.out}")


def _families(options):
    from nbhelpers.inputs.families import tested_families

    table = tested_families()
    print(table.to_string(index=False), table.attrs["summary"], sep="\n\n")


def _kernels(options):
    from nbhelpers.files import replacing, write_text
    from nbhelpers.head_kernels import draw_kernels, head_kernels
    from nbhelpers.inputs.models import load_model
    from nbhelpers.inputs.text import load_text

    model, n = load_model(options.model), options.sequences
    ids = load_text(options.text, model, n_sequences=2 * n, length=options.length, seed=options.seed)
    kernels = head_kernels(model, ids[:n], ids[n:])
    folder = Path(options.out)
    write_text(folder / "kernels.csv", kernels.table().to_csv(index=False))
    with replacing(folder / "kernels.png") as partial:
        draw_kernels(kernels)[0].figure.savefig(partial, format="png", dpi=100)
    print(model, f"computed from {n} passages, measured on {n} others", sep="\n")
    for of, numbers in (("own", kernels.median()), ("another head's", kernels.median_of_others())):
        print("median over heads, {} kernel: r {:.3f}, R² {:.3f}".format(of, *numbers))
    for longest, numbers in kernels.by_rotation().items():
        print("layers with a slowest pair of {:.3g} tokens: r {:.3f}, R² {:.3f}".format(longest, *numbers))
    print(f"table and figure: {folder / 'kernels.csv'} and .png")


def _report(options):
    from nbhelpers.collection import scorecard as cards
    from nbhelpers.collection.results import load_results
    from nbhelpers.files import write_text

    numbers = load_results(options.folder)
    for notebook, rows in numbers.groupby("notebook") if options.numbers else ():
        print(notebook)
        shown = rows.drop(columns=["notebook", "note"])
        print(shown.to_string(index=False, float_format="{:.4g}".format, na_rep=""), end="\n\n")
    card = cards.scorecard(options.folder)
    path = Path(options.folder) / "scorecard.csv"
    write_text(path, card.to_csv(index=False))
    write_text(path.with_suffix(".md"), cards.scorecard_markdown(card, cards.ANSWERS))
    for group, rows in card.groupby("group", sort=False):
        print(f"{group[0].upper()}{group[1:]}")
        for row in rows.itertuples():
            print(f"  {row.claim} {row.title}: {row.verdict}")
            models = card.set_index("claim").at[row.claim, cards.BESIDE[1]]
            for words in (row.why, *[f"Packaged models: {models}."][: bool(models)]):
                print(textwrap.fill(words, 100, initial_indent="      ", subsequent_indent="      "))
    print(f"\n{textwrap.fill(cards.in_short(card), 100)}\n")
    print(f"{len(numbers)} numbers of {numbers['notebook'].nunique()} notebooks in {options.folder}")
    print(f"{cards.rules_version()}; scorecard: {path} and .md")
    if missing := cards.missing_notebooks(card):
        print(f"to measure the rest: python -m nbhelpers run {' '.join(missing)} --out {options.folder}")


def _site(options):
    from nbhelpers.collection.site.build import build_site

    print(f"pages: {build_site(Path(options.folder) / 'executed', options.out or options.folder)}")


def parse_value(text):
    """Return a parameter's value from text, by papermill's rules (True, False, None, numbers, text)."""
    named = {"True": True, "False": False, "None": None}
    for kind in (named.__getitem__, int, float):
        with contextlib.suppress(LookupError, ValueError):
            return kind(text)
    return text


if __name__ == "__main__":
    sys.exit(main())

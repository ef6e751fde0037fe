"""Command line of the zoo's makers: ``python -m nbhelpers.zoo.training COMMAND``."""

import argparse
import functools
import sys
from pathlib import Path

from filelock import Timeout

from nbhelpers.__main__ import run_command
from nbhelpers.inputs.devices import one_device
from nbhelpers.zoo.settings import arms
from nbhelpers.zoo.text import SOURCES, prepare
from nbhelpers.zoo.training.runs import train
from nbhelpers.zoo.training.shipping import collect

FAILURES = (LookupError, ValueError, OSError, RuntimeError)  # said in a sentence; anything else is a bug


def main(arguments=None):
    """Run one command and return the exit status: 0 done, 1 a run failed, 2 wrong input, 130 Ctrl-C."""
    status = run_command(_parser(), arguments, FAILURES)
    if status == 130:
        print("interrupted; the same command goes on from the last state", file=sys.stderr)
    return status


def _parser():
    parser = argparse.ArgumentParser(prog="python -m nbhelpers.zoo.training", description="Make the zoo.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    every = commands.add_parser("train-all", help="train every run of the collection, one after the other")
    every.add_argument("--only", nargs="+", metavar="RUN", help="such as rope-seed0 (default: all)")
    gather = commands.add_parser("collect", help="gather the finished runs into what is shipped")
    gather.add_argument("--to", default="nbhelpers/data/zoo", help="(default: %(default)s)")
    for command, function in ((every, _train_all), (gather, lambda o: print(collect(o.out, o.to)))):
        command.set_defaults(command=function)
        command.add_argument("--out", default="build/zoo", help="folder of all runs (default: %(default)s)")
        command.add_argument("--traceback", action="store_true", help="show where an error was raised")
    return parser


def _train_all(options):
    """Train what is not trained yet. Started twice, the two processes share the work."""
    runs, failed = {run.name: run for run in arms()}, []
    if unknown := [name for name in options.only or () if name not in runs]:
        raise ValueError(f"There is no run {unknown[0]!r}; there are {', '.join(runs)}.")
    corpus, device = prepare(SOURCES, Path(options.out) / "text"), str(one_device("auto"))
    say = functools.partial(print, flush=True)
    for number, name in enumerate(options.only or runs, start=1):
        say(f"run {number} of {len(options.only or runs)}: {name}")
        try:
            train(runs[name], corpus, Path(options.out) / "runs", device=device, report=say)
        except Timeout:
            say(f"{name}: another process trains it")
        except FAILURES as error:
            failed.append(name)
            say(f"{name} failed: {error}")
    if failed:
        print(f"{len(failed)} runs failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Command line of the zoo's makers: ``python -m nbhelpers.zoo.training COMMAND``."""

import argparse
import functools
import sys
from pathlib import Path

import torch

from nbhelpers.__main__ import run_command
from nbhelpers.inputs.devices import one_device
from nbhelpers.inputs.zoo import ENCODINGS
from nbhelpers.zoo.measure import Yardstick
from nbhelpers.zoo.settings import PRESETS, Settings, arms
from nbhelpers.zoo.text import prepared
from nbhelpers.zoo.training.ngrams import baselines
from nbhelpers.zoo.training.runs import BusyError, train
from nbhelpers.zoo.training.shipping import collect

_say = functools.partial(print, flush=True)
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
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", default="build/zoo", help="folder of text and runs (default: %(default)s)")
    about = "files, folders, .jsonl, or the .tgz of the addresses (default: moby-dick and the addresses)"
    common.add_argument("--text", nargs="+", default=[], metavar="PATH", help=about)
    common.add_argument("--traceback", action="store_true", help="show where an error was raised")

    def add(name, function, about):
        command = commands.add_parser(name, parents=[common], help=about, description=about)
        command.set_defaults(command=function)
        return command

    add("prepare", lambda o: print(_corpus(o)), "train the tokenizer and encode the text")
    add("baselines", _baselines, "print the losses of n-gram models on the validation windows")
    one = add("train", _train, "train one model, or go on where it was interrupted")
    one.add_argument("--preset", default="nano", choices=list(PRESETS))
    one.add_argument("--encoding", default="rope", choices=list(ENCODINGS))
    one.add_argument("--seed", type=int, default=0, help="of weights and of the order of the data")
    one.add_argument("--bidirectional", action="store_true", help="no causal mask: predict masked tokens")
    one.add_argument("--bos", action="store_true", help="every sequence begins with <bos>")
    every = add("train-all", _train_all, "train every run of the collection, one after the other")
    every.add_argument("--seeds", type=int, default=3, help="seeds of each arm (default: %(default)s)")
    small = ["nano", "pico", "micro", "mini"]
    every.add_argument("--presets", nargs="+", default=small, choices=list(PRESETS))
    for command in (one, every):
        command.add_argument("--tokens", type=int, help="to train on (default: the preset's)")
        command.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
        command.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
        command.add_argument("--compile", action="store_true", help="faster; needs a C++ compiler")
        command.add_argument("--threads", type=int, help="of the CPU (default: as many as cores)")
    about = "gather the finished runs into the tables and weights that are shipped"
    gather = add("collect", lambda o: print(collect(o.out, o.to)), about)
    gather.add_argument("--to", default="nbhelpers/data/zoo", help="(default: %(default)s)")
    return parser


def _baselines(options):
    corpus = _corpus(options)
    for name, loss in baselines(corpus, Yardstick.of(corpus).validation).items():
        print(f"{name:8} {loss:.3f} nats per token")


def _train(options):
    same = {name: getattr(options, name) for name in ("preset", "encoding", "bos", "seed", "precision")}
    settings = Settings(**same, causal=not options.bidirectional, n_tokens=options.tokens)
    print(_trained(settings, _corpus(options), options))


def _train_all(options):
    """Train what is not trained yet. Started twice, the two processes share the work."""
    corpus, failed = _corpus(options), []
    every = arms(n_seeds=options.seeds, n_tokens=options.tokens, precision=options.precision)
    runs = [settings for settings in every if settings.preset in options.presets]
    for number, settings in enumerate(runs, start=1):
        _say(f"run {number} of {len(runs)}: {settings.name}")
        try:
            _trained(settings, corpus, options)
        except BusyError:
            _say(f"{settings.name}: another process trains it")
        except FAILURES as error:
            failed.append(settings.name)
            _say(f"{settings.name} failed: {error}")
    if failed:
        print(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _corpus(options):
    return prepared(options.text, Path(options.out) / "text")


def _trained(settings, corpus, options):
    if options.threads:
        torch.set_num_threads(options.threads)
    out, device = Path(options.out) / "runs", str(one_device(options.device))
    return train(settings, corpus, out, device=device, compiled=options.compile, report=_say)


if __name__ == "__main__":
    sys.exit(main())

"""Command line of the zoo: ``python -m nbhelpers.zoo {prepare, baselines, train, train-all, collect}``."""

import argparse
import sys
from pathlib import Path

from nbhelpers.inputs.zoo import ENCODINGS
from nbhelpers.zoo.settings import PRESETS, Settings, arms

FAILURES = (LookupError, ValueError, OSError, RuntimeError)  # said in a sentence; anything else is a bug


def main(arguments=None):
    """Run one command and return the exit status: 0 done, 1 a run failed, 2 wrong input, 130 Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last state", file=sys.stderr)
        return 130
    except FAILURES as error:
        if options.traceback:
            raise
        print(f"nbhelpers.zoo: {error} (--traceback shows where)", file=sys.stderr)
        return 2


def _parser():
    parser = argparse.ArgumentParser(prog="python -m nbhelpers.zoo", description=__doc__.split(":")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", default="build/zoo", help="folder of text and runs (default: %(default)s)")
    common.add_argument(
        "--text",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files, folders, .jsonl, or the .tgz of the addresses (default: moby-dick and the addresses)",
    )
    common.add_argument("--traceback", action="store_true", help="show where an error was raised")

    def add(name, function, about):
        command = commands.add_parser(name, parents=[common], help=about, description=about)
        command.set_defaults(command=function)
        return command

    add("prepare", _prepare, "train the tokenizer and encode the text")
    add("baselines", _baselines, "print the losses of n-gram models on the validation windows")
    train = add("train", _train, "train one model, or go on where it was interrupted")
    train.add_argument("--preset", default="nano", choices=list(PRESETS))
    train.add_argument("--encoding", default="rope", choices=list(ENCODINGS))
    train.add_argument("--seed", type=int, default=0, help="of weights and of the order of the data")
    train.add_argument("--bidirectional", action="store_true", help="no causal mask: predict masked tokens")
    train.add_argument("--bos", action="store_true", help="every sequence begins with <bos>")
    every = add("train-all", _train_all, "train every run of the collection, one after the other")
    every.add_argument("--seeds", type=int, default=3, help="seeds of each arm (default: %(default)s)")
    every.add_argument(
        "--presets", nargs="+", default=["nano", "pico", "micro", "mini"], choices=list(PRESETS)
    )
    for command in (train, every):
        command.add_argument("--tokens", type=int, help="to train on (default: the preset's)")
        command.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
        command.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
        command.add_argument("--compile", action="store_true", help="faster; needs a C++ compiler")
        command.add_argument("--threads", type=int, help="of the CPU (default: as many as cores)")
    collect = add(
        "collect", _collect, "gather the finished runs into the tables and weights that are shipped"
    )
    collect.add_argument("--to", default="nbhelpers/data/zoo", help="(default: %(default)s)")
    return parser


def _prepare(options):
    corpus = _corpus(options)
    sizes = ", ".join(f"{name} {len(tokens):,}" for name, tokens in corpus.tokens.items())
    print(f"{corpus.folder}: tokens {sizes}; vocabulary {corpus.vocab_size}; {corpus.fingerprint}")


def _baselines(options):
    from nbhelpers.zoo.measure import Yardstick
    from nbhelpers.zoo.training.ngrams import baselines

    corpus = _corpus(options)
    for name, loss in baselines(corpus, Yardstick.of(corpus).validation).items():
        print(f"{name:8} {loss:.3f} nats per token")


def _train(options):
    from nbhelpers.zoo.train import train

    settings = Settings(
        preset=options.preset,
        encoding=options.encoding,
        causal=not options.bidirectional,
        bos=options.bos,
        seed=options.seed,
        n_tokens=options.tokens,
        precision=options.precision,
    )
    print(train(settings, _corpus(options), Path(options.out) / "runs", report=_say, **_machine(options)))


def _train_all(options):
    """Train what is not trained yet. Started twice, the two processes share the work."""
    from nbhelpers.zoo.train import train
    from nbhelpers.zoo.training.runs import BusyError

    corpus, machine = _corpus(options), _machine(options)
    runs = [
        arm
        for arm in arms(n_seeds=options.seeds, n_tokens=options.tokens, precision=options.precision)
        if arm.preset in options.presets
    ]
    failed = []
    for number, settings in enumerate(runs, start=1):
        _say(f"run {number} of {len(runs)}: {settings.name}")
        try:
            train(settings, corpus, Path(options.out) / "runs", report=_say, **machine)
        except BusyError:
            _say(f"{settings.name}: another process is at it")
        except FAILURES as error:
            failed.append(settings.name)
            _say(f"{settings.name} failed: {error}")
    if failed:
        print(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _collect(options):
    from nbhelpers.zoo.training.shipping import collect

    print(collect(Path(options.out), options.to))


def _corpus(options):
    from nbhelpers.zoo.text import prepared

    return prepared(options.text, Path(options.out) / "text")


def _machine(options):
    """Return where and how to train, as arguments of :func:`nbhelpers.zoo.train.train`."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"device": device, "compiled": options.compile}


def _say(line):
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

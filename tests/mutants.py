"""Break hooks and kernels on purpose, one small change at a time, and count what the tests notice.

    python tests/mutants.py [--n 200] [--seed 0] [--jobs 2] [--only hooks/proof.py]

Each mutant is one changed comparison, operator, number, truth value or dropped `not`, in a process of its own
that imports it in place of the module. The test files that name its function run first, then the others of
the rooms; the first failure kills it. Survivors are printed, and the status is 1 if more than 2 % survive.
"""

import argparse
import ast
import copy
import csv
import importlib
import multiprocessing
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import SourceFileLoader
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("hooks", "kernels")
LEAST_KILLED = 0.98
PRELOADED = ("hypothesis", "pandas", "pywt", "scipy.stats", "torch", "transformers.models.auto.modeling_auto")
SECONDS = 900  # a mutant that runs for longer hangs, which a test would report
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub,
    ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
with (Path(__file__).parent / "mutants_equivalent.csv").open(encoding="utf-8") as file:
    EQUIVALENT = list(csv.reader(file))[1:]  # module, start of the line, change ("" for any), reason


def places(tree):
    """Yield what can be changed: (function, node, change), the same nodes for the same source."""
    parts = {ast.Raise: ("exc",), ast.JoinedStr: ("values",), ast.arg: ("annotation",)}
    parts[ast.FunctionDef] = ("returns",)
    keywords = [node for node in ast.walk(tree) if isinstance(node, ast.keyword)]
    left_alone = {id(node.value) for node in keywords if node.arg == "strict"}
    for node in ast.walk(tree):  # what is said, annotations, and (above) zip's guard against what cannot be
        for field in parts.get(type(node), ()):
            inner = getattr(node, field)
            for each in inner if isinstance(inner, list) else [inner] if inner else []:
                left_alone |= {id(n) for n in ast.walk(each)}
    owner = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            owner |= {id(inner): node.name for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) not in left_alone and (change := change_of(node)):
            yield owner.get(id(node), ""), node, change


def change_of(node):
    """Return how a node is changed, in words, and which field becomes what; None where it is left alone."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
            return None  # an index from the end, whose number is changed
        case ast.Compare(ops=[op]) | ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op):
            if swap := SWAPS.get(type(op)):
                field, new = ("ops", [swap()]) if isinstance(node, ast.Compare) else ("op", swap())
                return f"{type(op).__name__} to {swap.__name__}", field, new
        case ast.UnaryOp(op=ast.USub()):
            return "sign dropped", "op", ast.UAdd()
        case ast.UnaryOp(op=ast.Not()):
            return "not dropped", "operand", ast.UnaryOp(ast.Not(), node.operand)
        case ast.Constant(value=bool() as value):
            return f"{value} to {not value}", "value", not value
        case ast.Constant(value=int() | float() as value):
            return f"{value} to {value + 1}", "value", value + 1
    return None


def mutated(tree, number):
    """Return a copy of a module's tree with its change of that number made."""
    tree = copy.deepcopy(tree)
    _, node, (_, field, new) = list(places(tree))[number]
    setattr(node, field, new)
    return ast.fix_missing_locations(tree)


def test_files(function, module):
    """Return the test files of the rooms, first those that speak most of a function, then of its module."""
    files = [file for room in ROOMS for file in sorted((ROOT / "tests" / room).glob("test_*.py"))]
    return sorted(files, key=lambda f: -(t := f.read_text()).count(function) * 10 - t.count(module))


def run_mutant(file, number, log):
    """Run the tests with one mutant, or with none, in this fork; its exit status is theirs."""
    import pytest

    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    tree, function = ast.parse(file.read_text()), ""
    if number is not None:
        function = list(places(tree))[number][0]
        tree = mutated(tree, number)
    code, own = SourceFileLoader.get_code, compile(tree, file, "exec")
    SourceFileLoader.get_code = lambda self, name: own if self.path == str(file) else code(self, name)
    options = ["-x", "-q", "-W", "ignore::pytest.PytestAssertRewriteWarning", "--timeout=240"]
    options += ["-p", "no:cacheprovider", "-p", "no:xdist"]
    os._exit(pytest.main([*options, *map(str, test_files(function, file.stem))]))


def verdict(file, number, folder):
    """Run one mutant in a fork; return whether it was killed, with how it ended."""
    log = folder / f"{file.stem}-{number}.txt"
    process = multiprocessing.get_context("fork").Process(target=run_mutant, args=(file, number, log))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
    return process.exitcode != 0, process.exitcode


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", help="a module, such as hooks/proof.py")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "10000"}
    for name in PRELOADED:
        importlib.import_module(name)
    files = [f for room in ROOMS for f in sorted((ROOT / "nbhelpers" / room).glob("*.py"))]
    files.remove(ROOT / "nbhelpers/kernels/fused.py")  # numba keeps what it compiles for all processes
    files = [f for f in files if not options.only or f.as_posix().endswith(options.only)]
    found = []
    for file in files:
        lines = file.read_text().splitlines()
        for number, (function, node, (change, *_)) in enumerate(places(ast.parse(file.read_text()))):
            line = lines[node.lineno - 1].strip()
            where = f"{file.relative_to(ROOT)}:{node.lineno} {function}"
            own = [(start, kind) for name, start, kind, _ in EQUIVALENT if name == file.name]
            same = any(line.startswith(start) and kind in ("", change) for start, kind in own)
            found.append((same, file, number, f"{where}: {change}: {line}"))
    chosen = random.Random(options.seed).sample(found, min(options.n, len(found)))
    chosen = [mutant for same, *mutant in chosen if not same]
    folder = ROOT / "build" / "mutants"
    folder.mkdir(parents=True, exist_ok=True)
    if verdict(files[0], None, folder)[0]:
        sys.exit(f"the tests fail on the code as it is, see {folder}")
    started, survivors = time.monotonic(), []
    with ThreadPoolExecutor(options.jobs) as pool:
        ended = pool.map(lambda mutant: verdict(*mutant[:2], folder), chosen)
        for done, ((_, _, said), (killed, code)) in enumerate(zip(chosen, ended, strict=True), 1):
            survivors += [] if killed else [said]
            ended_how = f"{time.monotonic() - started:.0f} s] {'killed' if killed else 'SURVIVED'} ({code})"
            print(f"[{done}/{len(chosen)}, {ended_how} {said}", flush=True)
    share = 1 - len(survivors) / len(chosen)
    print(f"{len(chosen)} of {len(found)} mutants, {share:.1%} killed; survivors:", *survivors, sep="\n")
    return int(share < LEAST_KILLED)


if __name__ == "__main__":
    sys.exit(main())

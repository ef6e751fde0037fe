"""Measure capture against what one would otherwise do: time over a plain forward pass, and peak memory.

Every variant lives in a process of its own that has loaded the model; they are called in turn, round after
round, so that a machine whose speed drifts slows all alike. Where there is a GPU, it gets a table of its own
beside that of the CPU. It writes a CSV, the table of the README and a figure.

    python tests/benchmarks/bench.py --out build/bench
"""

import argparse
import contextlib
import ctypes
import gc
import importlib.util
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pywt
import seaborn as sns
import torch

from nbhelpers.hooks.capture import capture
from nbhelpers.inputs.models import load_model
from nbhelpers.inputs.text import load_text

FLOOR = "plain forward pass (SDPA)"
LOOPS = "every row, compiled loops"  # on a CPU, with numba
EAGER = ("output_attentions only", "every row, numpy")  # ask the model for every matrix
LENS = "TransformerLens, patterns cached"  # where it is installed: pip install transformer-lens


def every_row_by_numpy(model, ids):
    """Store all matrices; then for all rows of a layer at once eqs. 1-7 as they read, and db2 entropies."""
    for layer in model.model(ids, use_cache=False, output_attentions=True).attentions:
        rows = layer[0].float().cpu().numpy()
        n = rows.shape[-1]
        psd = np.abs(np.fft.rfft(rows * np.hanning(n), axis=-1)) ** 2
        total = psd.sum(-1, keepdims=True) + 1e-10
        share, bins = psd / total, psd.shape[-1]
        [part.sum(-1) for part in np.split(share, [bins // 4, 3 * bins // 4], axis=-1)]
        psd.max(-1) / (total[..., 0] - psd.max(-1) + 1e-10)
        [-(p * np.log(p + 1e-10)).sum(-1) for p in (share, rows)]
        level = pywt.dwt_max_level(n // 4, "db2")
        energies = [c**2 for c in pywt.wavedec(rows, "db2", level=level, axis=-1)]
        [-(e * np.log(e + 1e-10)).sum(-1) for e in energies]


def streamed(*reductions, **options):
    """Return a variant that captures some reductions."""
    return lambda model, ids: capture(model, ids, list(reductions), progress=False, **options)


VARIANTS = {
    FLOOR: lambda model, ids: model.model(ids, use_cache=False),
    "the same without the head": lambda model, ids: model.model.base_model(ids, use_cache=False),
    EAGER[0]: lambda model, ids: model.model(ids, use_cache=False, output_attentions=True),
    EAGER[1]: every_row_by_numpy,
    "key profile": streamed("key_profile"),
    "key + lag profiles": streamed("key_profile", "lag_profile"),
    "every row, blocks": streamed("row_entropy", "row_metrics", fused=False),
    LOOPS: streamed("row_entropy", "row_metrics"),
    LENS: lambda bridge, ids: bridge.run_with_cache(ids, names_filter=lambda name: "hook_pattern" in name),
}


def serve(pipe, variant, model_name, device, dtype, threads):
    """Load the model, send facts, then run the variant for each length that comes and send what it took."""
    torch.set_num_threads(threads)
    model = load_model(model_name, device=device, dtype=dtype)
    if variant in EAGER:
        model.model.set_attn_implementation("eager")
    place = model.model.device
    with torch.inference_mode():  # weights read from disk page by page belong to the loaded model
        VARIANTS[FLOOR](model, load_text("moby-dick", model, n_sequences=1, length=16).to(place))
    meter = _GpuMeter(place) if place.type == "cuda" else _HostMeter()
    facts = {"machine": _machine(threads, place), "dtype": str(model.model.dtype).removeprefix("torch.")}
    if variant == LENS:
        from transformer_lens.model_bridge import TransformerBridge

        network, own = model.model, {"tokenizer": model.tokenizer}
        model = TransformerBridge.boot_transformers(network.config.name_or_path, hf_model=network, **own)
    pipe.send(facts)
    while length := pipe.recv():
        ids = load_text("moby-dick", model, n_sequences=1, length=length).to(place)
        gc.collect()
        try:
            with torch.inference_mode(), meter:
                VARIANTS[variant](model, ids)
            pipe.send({"seconds": meter.seconds, "peak_mb": meter.peak_mb})
        except (MemoryError, torch.OutOfMemoryError) as error:
            print(f"{variant}, T = {length}: {str(error).splitlines()[0]}", file=sys.stderr)
            pipe.send({"seconds": None, "peak_mb": None})
            torch.cuda.empty_cache()  # or the other variants miss it; nothing happens without a GPU


class _HostMeter:
    """Seconds, and peak resident memory beyond what the process held once the model was loaded."""

    def __init__(self):
        self.loaded = self._read("VmRSS")

    def __enter__(self):
        with contextlib.suppress(OSError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the kernel forgets the peak so far
        self._start = time.perf_counter()

    def __exit__(self, *exception):
        self.seconds = time.perf_counter() - self._start
        self.peak_mb = self._read("VmHWM") - self.loaded

    @staticmethod
    def _read(field):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024


class _GpuMeter:
    """Seconds to the end of the last kernel, and peak memory of a device beyond the weights."""

    def __init__(self, device):
        self.device = device

    def __enter__(self):
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self._loaded = torch.cuda.memory_allocated(self.device)
        self._start = time.perf_counter()

    def __exit__(self, *exception):
        torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._start
        self.peak_mb = (torch.cuda.max_memory_allocated(self.device) - self._loaded) / 2**20


def _machine(threads, device):
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        cpu = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    return f"{cpu}, {threads} threads, torch {torch.__version__}"


class _Worker:
    """A process that serves one variant on one device."""

    def __init__(self, *given):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *given), daemon=True)
        self.process.start()
        theirs.close()
        self.facts = self._answer()

    def run(self, length):
        self.pipe.send(length)
        return self._answer()

    def _answer(self):
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            status = f"exit status {self.process.exitcode}"
            raise RuntimeError(f"a worker died ({status}); its message stands above") from None


def measure(device, arguments):
    """Yield, after each length, a row per variant and round so far: seconds and peak MB."""
    only = arguments.only or [""]
    found = {name: importlib.util.find_spec(name) is not None for name in ("numba", "transformer_lens")}
    possible = {LOOPS: device == "cpu" and found["numba"], LENS: found["transformer_lens"]}
    names = [name for name in VARIANTS if possible.get(name, True)]
    names = [name for name in names if name == FLOOR or any(part in name for part in only)]
    given = arguments.model, device, arguments.dtype, arguments.threads
    workers = {name: _Worker(name, *given) for name in names}
    facts = workers[FLOOR].facts
    print("{}, {dtype}, {machine}".format(arguments.model, **facts), flush=True)
    rows, began = [], time.perf_counter()
    for length in arguments.lengths:
        for turn in range(arguments.rounds + 1):  # turn 0 warms up
            for name in names:
                rows.append({"variant": name, "length": length, "round": turn, **workers[name].run(length)})
        print(f"  T = {length} done after {time.perf_counter() - began:.0f} s", flush=True)
        yield pd.DataFrame(rows).astype({"seconds": float, "peak_mb": float}).assign(**facts)
    for worker in workers.values():
        worker.pipe.send(0)
        worker.process.join()


def summarise(frame):
    """Return seconds, their ratios to the floor's, peak MB and rounds per variant and length; NaN is out of
    memory, and round 0 the warm-up."""
    grouped = frame[frame["round"] > 0].groupby(["variant", "length"], sort=False)
    table = grouped.agg(
        seconds_min=("seconds", "min"),
        seconds_median=("seconds", "median"),
        peak_mb=("peak_mb", "max"),
        rounds=("seconds", "size"),
    ).reset_index()
    floor = table[table.variant == FLOOR].set_index("length")
    table["ratio_of_minima"] = table.seconds_min / table.length.map(floor.seconds_min)
    table["ratio_of_medians"] = table.seconds_median / table.length.map(floor.seconds_median)
    for column in ("machine", "dtype"):
        table[column] = frame[column].iloc[0]
    return table


def markdown(table):
    """Return a summary as a Markdown table: ratio of minima per length, peak MB at the largest.

    A dash where a variant ran out of memory; a line below says what the numbers were measured on.
    """
    longest = table.length.max()
    ratio = table.pivot(index="variant", columns="length", values="ratio_of_minima")
    peak = table[table.length == longest].set_index("variant").peak_mb
    last = f"peak MB over the model, T = {longest}"
    titles = ["time over a plain forward pass", *map(str, ratio.columns), last]
    lines = [titles, ["---"] * len(titles)]
    for variant in table.variant.unique():
        cells = [*(f"{value:.2f}" for value in ratio.loc[variant]), f"{peak[variant]:.0f}"]
        lines.append([variant, *("-" if cell == "nan" else cell for cell in cells)])
    machine, dtype, rounds = table[["machine", "dtype", "rounds"]].iloc[0]
    measured = f"{machine}; dtype {dtype}, minima of {rounds} rounds"
    return "\n".join([f"| {' | '.join(line)} |" for line in lines] + ["", measured, ""])


def figure(table):
    """Return a figure of the ratios of each variant by length: minima as lines, medians as dots."""
    drawn, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    options = {"x": "length", "hue": "variant", "ax": ax}
    sns.lineplot(table, y="ratio_of_minima", **options)
    sns.scatterplot(table, y="ratio_of_medians", legend=False, **options)
    ax.set(xscale="log", yscale="log", xlabel="length (tokens)", ylabel="time over a plain forward pass")
    ax.set_title(table.machine.iloc[0], fontsize="small")
    return drawn


def main(argv=None):
    """Measure, print the table, and write it as CSV, as Markdown and as a figure."""
    parser = argparse.ArgumentParser(prog="python tests/benchmarks/bench.py", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", help="cpu, cuda or cuda:1; if not given the CPU and, if any, the GPU")
    parser.add_argument("--dtype")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count()))
    parser.add_argument("--only", nargs="+", help="parts of names of variants to measure beside the floor")
    parser.add_argument("--busy", type=int, default=0, help="loops of other processes that run beside it")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as beside:
        for _ in range(arguments.busy):
            loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            beside.callback(loop.kill)
        here = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        for device in [arguments.device] if arguments.device else here:
            _bench(device, arguments)


def _bench(device, arguments):
    """Measure on one device, write what was found and print it."""
    name = f"bench-{device.replace(':', '')}-{arguments.dtype or 'default'}"
    name += f"-beside-{arguments.busy}" if arguments.busy else ""
    for frame in measure(device, arguments):  # an interrupted run keeps the lengths it finished
        table = summarise(frame).assign(busy_loops=arguments.busy)
        table.to_csv(arguments.out / f"{name}.csv", index=False)
        (arguments.out / f"{name}.md").write_text(markdown(table), encoding="utf-8")
        figure(table).savefig(arguments.out / f"{name}.png", dpi=150)
    print(f"\n{markdown(table)}")


if __name__ == "__main__":
    main()

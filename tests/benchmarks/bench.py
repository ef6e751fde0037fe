"""Measure capture against the ways one would otherwise do it: time over a plain forward pass, and peak
memory.

Every variant lives in a process of its own that has loaded the model; they are called in turn, round after
round, so that a machine whose speed drifts slows all alike. Ratios are taken over the plain forward pass of
the same round. Where there is a GPU, it gets a table of its own beside that of the CPU.

    python tests/benchmarks/bench.py --out build/bench
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

FLOOR = "plain forward pass (SDPA)"
# The settings that keep glibc from returning large blocks to the system after every use, page fault by page
# fault.
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}


def plain_forward(model, ids):
    """Run the model with its language-model head."""
    model.model(ids, use_cache=False)


def output_attentions(model, ids):
    """Ask the model for every attention matrix."""
    return model.model(ids, use_cache=False, output_attentions=True).attentions


def natural_mean_signal(model, ids):
    """Do what comes naturally: store all matrices, then FFT and wavedec of each head's mean row in a loop."""
    for layer in output_attentions(model, ids):
        for head in layer[0].float().cpu().numpy():
            _row_by_numpy(head.mean(0))


def natural_every_row(model, ids):
    """The same for every row of every head, in loops."""
    for layer in output_attentions(model, ids):
        for head in layer[0].float().cpu().numpy():
            for row in head:
                _row_by_numpy(row)


def vectorised_every_row(model, ids):
    """The same for all rows of a layer at once, by numpy and PyWavelets."""
    for layer in output_attentions(model, ids):
        _row_by_numpy(layer[0].float().cpu().numpy())


def streamed_key_profile(model, ids):
    """Capture the key profile alone, which on a GPU takes two fused passes from 2048 tokens on."""
    from nbhelpers.hooks.capture import capture

    capture(model, ids, progress=False)


def streamed_profiles(model, ids):
    """Capture key and lag profiles."""
    from nbhelpers.hooks.capture import capture

    capture(model, ids, ["key_profile", "lag_profile"], progress=False)


def streamed_every_row(model, ids):
    """Capture bands, selectivity, entropies and wavelet entropies of every row."""
    from nbhelpers.hooks.capture import capture

    capture(model, ids, ["row_entropy", "row_metrics"], progress=False)


VARIANTS = {
    FLOOR: plain_forward,
    "output_attentions only": output_attentions,
    "natural stack, mean signal, loops": natural_mean_signal,
    "natural stack, every row, loops": natural_every_row,
    "every row, numpy vectorised": vectorised_every_row,
    "streamed key profile": streamed_key_profile,
    "streamed key + lag profiles": streamed_profiles,
    "streamed every row": streamed_every_row,
}
EAGER = {"output_attentions only", *(name for name in VARIANTS if "row" in name or "natural" in name)} - {
    "streamed every row"
}


def _row_by_numpy(rows):
    """PSD, bands, selectivity, both entropies and db2 entropies of rows along the last axis, as eqs. 1-7
    read."""
    import numpy as np
    import pywt

    n = rows.shape[-1]
    psd = np.abs(np.fft.rfft(rows * np.hanning(n), axis=-1)) ** 2
    total = psd.sum(-1, keepdims=True) + 1e-10
    share, bins = psd / total, psd.shape[-1]
    bands = [part.sum(-1) for part in np.split(share, [bins // 4, 3 * bins // 4], axis=-1)]
    selectivity = psd.max(-1) / (total[..., 0] - psd.max(-1) + 1e-10)
    entropies = [-(p * np.log(p + 1e-10)).sum(-1) for p in (share, rows)]
    level = pywt.dwt_max_level(n // 4, "db2")
    energies = [c**2 for c in pywt.wavedec(rows, "db2", level=level, axis=-1)]
    return bands, selectivity, entropies, [-(e * np.log(e + 1e-10)).sum(-1) for e in energies]


def serve(variant, model_name, device, dtype, threads):
    """Load the model, then run the variant once for each length read from standard input; answer in JSON
    lines."""
    import torch

    from nbhelpers.inputs.models import load_model
    from nbhelpers.inputs.text import load_text

    torch.set_num_threads(threads)
    model = load_model(model_name, device=device, dtype=dtype)
    if variant in EAGER:
        model.model.set_attn_implementation("eager")
    with torch.inference_mode():  # weights read from disk page by page belong to the loaded model
        plain_forward(model, load_text("moby-dick", model, n_sequences=1, length=16).to(model.model.device))
    place = model.model.device
    meter = _GpuMeter(place) if place.type == "cuda" else _HostMeter()
    facts = {"machine": _machine(threads, place), "dtype": str(model.model.dtype).removeprefix("torch.")}
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        ids = load_text("moby-dick", model, n_sequences=1, length=int(line)).to(model.model.device)
        gc.collect()
        answer = {}
        try:
            with torch.inference_mode(), meter:
                VARIANTS[variant](model, ids)
            answer = {"seconds": meter.seconds, "peak_mb": meter.peak_mb}
        except (MemoryError, torch.OutOfMemoryError) as error:
            print(f"{variant}, T = {int(line)}: {str(error).splitlines()[0]}", file=sys.stderr)
            answer = {"seconds": None, "peak_mb": None}
            torch.cuda.empty_cache()  # or the other variants miss it; nothing happens without a GPU
        print(json.dumps(answer), flush=True)


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
        import torch

        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self._loaded = torch.cuda.memory_allocated(self.device)
        self._start = time.perf_counter()

    def __exit__(self, *exception):
        import torch

        torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._start
        self.peak_mb = (torch.cuda.max_memory_allocated(self.device) - self._loaded) / 2**20


def _machine(threads, device):
    import torch

    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
        cpu = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    return f"{cpu}, {threads} threads, torch {torch.__version__}"


class _Worker:
    """A process that serves one variant on one device."""

    def __init__(self, variant, device, arguments):
        command = [
            sys.executable,
            __file__,
            "--serve",
            variant,
            "--model",
            arguments.model,
        ]
        command += ["--device", device, "--threads", str(arguments.threads)]
        command += ["--dtype", arguments.dtype] if arguments.dtype else []
        environment = os.environ | (TUNED if arguments.malloc == "tuned" else {}) | {"TQDM_DISABLE": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.facts = self._answer()

    def run(self, length):
        self.process.stdin.write(f"{length}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"a worker died (exit status {self.process.wait()}); its own message stands above"
            )
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def devices_here():
    """Return what the bench measures if no device is named: the CPU, and the GPU where there is one."""
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def measure(device, arguments):
    """Yield, after each length, a row per variant and round so far: seconds, peak MB, ratio to the floor."""
    only = arguments.only or [""]
    names = [name for name in VARIANTS if name == FLOOR or any(part in name for part in only)]
    workers = {name: _Worker(name, device, arguments) for name in names}
    facts = workers[FLOOR].facts | {"malloc": arguments.malloc}
    print("{}, {dtype}, {malloc} malloc, {machine}".format(arguments.model, **facts), flush=True)
    rows, began = [], time.perf_counter()
    for length in arguments.lengths:
        for turn in range(arguments.rounds + 1):  # turn 0 warms up
            for name in names:
                answer = workers[name].run(length)
                rows.append({"variant": name, "length": length, "round": turn, **answer})
        print(f"  T = {length} done after {time.perf_counter() - began:.0f} s", flush=True)
        yield _with_ratios(rows).assign(**facts)
    for worker in workers.values():
        worker.close()


def _with_ratios(rows):
    import pandas as pd

    frame = pd.DataFrame(rows).astype(
        {"seconds": float, "peak_mb": float}
    )  # out of memory, None, becomes NaN
    frame = frame[frame["round"] > 0]
    floor = frame[frame.variant == FLOOR].set_index(["length", "round"]).seconds
    return frame.assign(
        ratio=frame.seconds / floor.reindex(pd.MultiIndex.from_frame(frame[["length", "round"]])).to_numpy()
    )


def summarise(frame):
    """Return per variant and length: minimum and median seconds, median ratio, ratio of minima, peak MB,
    rounds."""
    grouped = frame.groupby(["variant", "length"], sort=False)
    table = grouped.agg(
        seconds_min=("seconds", "min"),
        seconds_median=("seconds", "median"),
        ratio_median=("ratio", "median"),
        peak_mb=("peak_mb", "max"),
        rounds=("seconds", "size"),
    ).reset_index()
    floor = table[table.variant == FLOOR].set_index("length").seconds_min
    table["ratio_of_minima"] = table.seconds_min / table.length.map(floor)
    for column in ("machine", "malloc", "dtype"):
        table[column] = frame[column].iloc[0]
    return table


def markdown(table):
    """Return a summary as a Markdown table: time over the plain pass per length, peak MB at the largest.

    Parameters
    ----------
    table : pandas.DataFrame
        From :func:`summarise`.

    Returns
    -------
    str
        Time is the ratio of minima, memory the peak beyond the model. A dash where a variant ran out of
        memory. A line below says what the numbers were measured on.
    """
    lengths, longest = table.length.unique(), table.length.max()
    ratio = table.pivot(index="variant", columns="length", values="ratio_of_minima")
    peak = table[table.length == longest].set_index("variant").peak_mb
    titles = ["time over a plain forward pass", *map(str, lengths), f"peak MB over the model, T = {longest}"]
    lines = [titles, ["---"] * len(titles)]
    for variant in table.variant.unique():
        times = [_cell(ratio.loc[variant, length], ".2f") for length in lengths]
        lines.append([variant, *times, _cell(peak[variant], ".0f")])
    machine, malloc, dtype, rounds = table[["machine", "malloc", "dtype", "rounds"]].iloc[0]
    measured = f"{machine}; dtype {dtype}, {malloc} malloc, minima of {rounds} rounds"
    return "\n".join([f"| {' | '.join(line)} |" for line in lines] + ["", measured, ""])


def _cell(value, form):
    return "-" if value != value else format(value, form)  # NaN is the one value that differs from itself


def draw(table, path):
    """Draw time over the floor and peak memory against length."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    style = {"hue": "variant", "style": "variant", "markers": True, "dashes": False, "palette": "colorblind"}
    sns.lineplot(table, x="length", y="ratio_of_minima", ax=axes[0], **style)
    sns.lineplot(table, x="length", y="peak_mb", ax=axes[1], legend=False, **style)
    axes[0].set(xlabel="length T (tokens)", ylabel="time over a plain forward pass", title="Time")
    axes[1].set(xlabel="length T (tokens)", ylabel="peak memory beyond the model (MB)", title="Memory")
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
    axes[0].legend(fontsize=7, title=None)
    figure.suptitle(table.machine.iloc[0], fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv=None):
    """Measure, print the table, and write it as CSV, as Markdown and as a figure."""
    parser = argparse.ArgumentParser(
        prog="python tests/benchmarks/bench.py", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--device", help="cpu, cuda or cuda:1; the CPU and, where there is one, the GPU if not given"
    )
    parser.add_argument("--dtype")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count()))
    parser.add_argument("--malloc", choices=["stock", "tuned"], default="stock")
    parser.add_argument(
        "--only", nargs="+", help="measure only variants whose name holds one of these, and the floor"
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--serve", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.serve:
        serve(arguments.serve, arguments.model, arguments.device, arguments.dtype, arguments.threads)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    for device in [arguments.device] if arguments.device else devices_here():
        _bench(device, arguments)


def _bench(device, arguments):
    """Measure on one device, write what was found and print it."""
    name = f"bench-{device.replace(':', '')}-{arguments.dtype or 'default'}-{arguments.malloc}"
    for frame in measure(device, arguments):  # an interrupted run keeps the lengths it finished
        table = summarise(frame)
        table.to_csv(arguments.out / f"{name}.csv", index=False)
        (arguments.out / f"{name}.md").write_text(markdown(table), encoding="utf-8")
    draw(table, arguments.out / f"{name}.png")
    for column, title in [
        ("ratio_of_minima", "time over the plain forward pass"),
        ("peak_mb", "peak MB beyond the model"),
    ]:
        wide = table.pivot(index="variant", columns="length", values=column).reindex(table.variant.unique())
        print(f"\n{title}; {table.machine.iloc[0]}\n{wide.round(2).to_string()}")


if __name__ == "__main__":
    main()

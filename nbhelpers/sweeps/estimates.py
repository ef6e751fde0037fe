"""What a run will take, before it runs: time and memory, and what the estimate is based on."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from nbhelpers.hooks.attention import default_chunk
from nbhelpers.hooks.memory import CUDA_BATCH_TOKENS, plan
from nbhelpers.inputs.models import load_skeleton
from nbhelpers.sweeps.grids import NOTEBOOK, Run
from nbhelpers.sweeps.sweep_records import read_record

LIBRARY_MB = 600  # torch, transformers and the rest before any model
ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
# Time of a capture over that of its matrix products at the speed of one large product: small products,
# softmax and reductions make up the rest. With it, runs of SmolLM2-135M and MiniLM (8 sequences of 128 to 512
# tokens) took 0.4 to 0.9 of the estimate on a busy CPU.
OVERHEAD = 3.0
LOADING_BYTES_PER_SECOND = 5e8
# Metrics are taken on one core of the CPU: seconds for each token of each head's signal, all of PAPER's.
METRIC_SECONDS = 8e-7


@dataclass(frozen=True)
class Estimate:
    """Seconds and megabytes of one run, NaN where nothing is known, and what they are based on."""

    seconds: float
    megabytes: float
    basis: str


UNKNOWN = float("nan")


class Estimator:
    """Estimates runs, looking each model up once.

    Parameters
    ----------
    out : path, optional
        A sweep's folder; finished runs of the same model there say how fast it really is.
    device : str
        "cpu" or "cuda".
    """

    def __init__(self, out=None, *, device):
        self.out = out
        self.device = device
        self._speed = None
        self._skeletons = {}
        self._unreachable = None

    def estimate(self, run: Run, *, others: Iterable[Run] = ()) -> Estimate:
        """Estimate a run; `others` are runs that may have been done, to learn the model's speed from."""
        measured = self._measured(run, others)
        if run.target.startswith(NOTEBOOK) and measured is None:
            return Estimate(UNKNOWN, UNKNOWN, "a notebook, not run before: no estimate")
        if measured is not None:
            return measured
        skeleton = self._skeleton(run)
        if isinstance(skeleton, str):
            return self._from_stated_size(run, skeleton)
        count = skeleton.description.n_parameters
        memory = self._weights(run, count, skeleton.model.dtype.itemsize)
        memory += self._plan(run, skeleton).working_bytes / 2**20
        basis = (
            f"{count / 1e6:.4g} M parameters from the configuration, capture's plan, {self._speed_basis()}"
        )
        heads = skeleton.description.n_layers * skeleton.description.n_heads
        seconds = self._seconds(run, count) + METRIC_SECONDS * heads * tokens(run)
        return Estimate(seconds, memory, basis)

    def _from_stated_size(self, run, reason):
        if run.n_parameters is None:
            return Estimate(UNKNOWN, UNKNOWN, f"no estimate: {reason}")
        size = ITEM_BYTES.get(run.dtype) or (4 if self.device == "cpu" else 2)
        basis = f"{run.n_parameters / 1e6:.4g} M parameters as the grid says, without activations and metrics"
        basis += f", {self._speed_basis()}"
        return Estimate(
            self._seconds(run, run.n_parameters), self._weights(run, run.n_parameters, size), basis
        )

    def _measured(self, run, others):
        """Estimate from finished runs of the same model, target and device, by tokens."""
        if self.out is None:
            return None
        records = []
        for other in others:
            alike = (other.model, other.target, other.dtype, other.device)
            if alike == (run.model, run.target, run.dtype, run.device):
                record = read_record(Path(self.out), other.id)
                records += [(other, record)] if record.get("status") == "done" else []
        if not records:
            return None
        spent = sum(record["seconds"] for _, record in records) / sum(tokens(other) for other, _ in records)
        peak = max(record["peak_mb"] for _, record in records)
        return Estimate(spent * tokens(run), peak, f"{len(records)} finished runs of this model")

    def _skeleton(self, run):
        """Return the model without weights, or in words why there is none."""
        key = run.model, run.revision, run.dtype
        if key not in self._skeletons:
            self._skeletons[key] = self._look_up(run)
        return self._skeletons[key]

    def _look_up(self, run):
        if self._unreachable and "/" in run.model and not Path(run.model).exists():
            return self._unreachable  # asked once: every further model would wait for the network again
        try:
            return load_skeleton(run.model, revision=run.revision, dtype=run.dtype, device=self.device)
        except ConnectionError:
            self._unreachable = "the Hugging Face Hub could not be reached"
            return self._unreachable
        except (LookupError, OSError, ValueError, ImportError) as error:  # the run itself will say it again
            return str(error).splitlines()[0]

    def _plan(self, run, skeleton):
        if self.device == "cpu":
            size = {"batch_size": run.batch_size, "free_bytes": math.inf}  # of another machine, perhaps
            return plan(skeleton, run.n_sequences, run.length, **size)
        batch = run.batch_size or max(1, min(run.n_sequences, CUDA_BATCH_TOKENS // run.length))
        chunk = min(run.length, default_chunk(batch, skeleton.description.n_heads, run.length, "cuda"))
        size = {"batch_size": batch, "chunk": chunk, "free_bytes": math.inf}
        return plan(skeleton, run.n_sequences, run.length, **size)

    def _weights(self, run, count, item_bytes):
        return LIBRARY_MB + count * item_bytes / 2**20

    def _seconds(self, run, count):
        size = ITEM_BYTES.get(run.dtype) or 4
        products = 2 * count * tokens(run) / self._flops()
        return OVERHEAD * products + count * size / LOADING_BYTES_PER_SECOND

    def _flops(self):
        if self._speed is None:
            self._speed = matmul_speed(self.device)
        return self._speed

    def _speed_basis(self):
        return f"{self._flops() / 1e9:.3g} GFLOP/s of a matrix product here"


def tokens(run):
    """Return how many tokens a run reads, scaled variants included."""
    return run.n_sequences * run.length * (1 + sum(run.protocol["factors"]))


def matmul_speed(device, *, size=None, repeats=3):
    """Return the floating-point operations per second of a matrix product on a device, best of a few.

    Parameters
    ----------
    device : str
        "cpu" (float32) or "cuda" (bfloat16).
    size : int, optional
        Rows and columns; 768 on a CPU, 4096 on a GPU.
    repeats : int
    """
    size = size or (768 if device == "cpu" else 4096)
    a = torch.ones(size, size, dtype=torch.float32 if device == "cpu" else torch.bfloat16, device=device)
    best = float("inf")
    for _ in range(repeats + 1):  # the first one also warms up
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best

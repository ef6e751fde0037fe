"""What a run will take before it runs: time and memory, and what the estimate is based on."""

import math
import timeit
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from nbhelpers.arguments import checked, made_by
from nbhelpers.hooks.memory import plan
from nbhelpers.inputs.models import load_skeleton
from nbhelpers.sweeps.grid import read_run
from nbhelpers.words import duration, memory

FACTOR = """Estimates are for this machine, from sizes alone: expect a factor of 3. Downloads are not counted.
Once runs of a model are done their times are used instead."""
LIBRARY_MB = 600  # torch, transformers and the rest before any model
ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
# Time of a run over that of its matrix products at the speed of one large product: small products, softmax,
# reductions and metrics make up the rest. With it, runs of SmolLM2-135M and MiniLM (8 sequences of 128 to 512
# tokens) took 0.4 to 0.9 of the estimate on a busy CPU.
OVERHEAD = 3.0


class Cost(NamedTuple):
    """What one run takes, NaN where nothing is known, and what that is based on."""

    seconds: float
    megabytes: float
    basis: str


class Estimator:
    """Estimates what runs cost on a device ("cpu" or "cuda"), looking each model up once.

    Finished runs of the same model in the sweep's folder `out` say how fast it really is.
    """

    def __init__(self, out, *, device):
        self.out, self.device = out, device
        self._skeleton, self._unreachable = cache(self._look_up), ""

    def cost(self, run, *, others=()):
        """Return what a run costs; `others` are runs that may have been done, to learn the speed from."""
        alike = [other for other in others if (other.model, other.dtype) == (run.model, run.dtype)]
        done = [(other, facts["sweep"]) for other in alike if (facts := read_run(self.out, other))]
        if done:
            spent = sum(took["seconds"] for _, took in done) / sum(other.n_tokens for other, _ in done)
            peak = max(took["peak_mb"] for _, took in done)
            return Cost(spent * run.n_tokens, peak, f"{len(done)} finished runs of this model")
        skeleton = self._skeleton(run.model, run.revision, run.dtype)
        known = not isinstance(skeleton, str)
        n_parameters = skeleton.description.n_parameters if known else run.n_parameters
        if n_parameters is None:
            return Cost(math.nan, math.nan, f"no estimate: {skeleton}")
        usual = 4 if self.device == "cpu" else 2
        size = skeleton.model.dtype.itemsize if known else ITEM_BYTES.get(run.dtype, usual)
        weights, flops = n_parameters * size / 2**20, matmul_speed(self.device)
        told = "as the grid says, without activations"
        if known:
            told = "from the configuration, capture's plan"
            weights *= 1 + (run.control_seeds > 0)  # an untrained control stands beside the model
            options = {"batch_size": run.batch_size, "free_bytes": math.inf}  # of another machine, perhaps
            weights += plan(skeleton, run.n_sequences, run.length, **options).working_bytes / 2**20
        speed = f"{flops / 1e9:.3g} GFLOP/s of a matrix product here"
        basis = f"{n_parameters / 1e6:.4g} M parameters {told}, {speed}"
        return Cost(OVERHEAD * 2 * n_parameters * run.n_tokens / flops, LIBRARY_MB + weights, basis)

    def _look_up(self, model, revision, dtype):
        """Return the model without its weights, or in words why there is none."""
        if self._unreachable and "/" in model and not Path(model).exists():
            return self._unreachable  # asked once: every further model would wait for the network again
        try:
            return load_skeleton(model, revision=revision, dtype=dtype, device=self.device)
        except ConnectionError:
            self._unreachable = "the Hugging Face Hub could not be reached"
            return self._unreachable
        except (LookupError, OSError, ValueError, ImportError) as error:  # the run itself will say it again
            return str(error).splitlines()[0]


@cache
def matmul_speed(device):
    """Return the floating-point operations per second of a large matrix product, the best of a few."""
    size, dtype = (768, torch.float32) if device == "cpu" else (4096, torch.bfloat16)
    a = torch.ones(size, size, dtype=dtype, device=device)
    # the first one also warms up; a number is there once the device is ready
    return 2 * size**3 / min(timeit.repeat(lambda: (a @ a)[0, 0].item(), number=1, repeat=4))


@checked(grid=made_by("Grid", "load_grid"))
def print_plan(grid, out, *, workers=1):
    """Print what a sweep would run, each run with an estimate of time and memory, and run nothing."""
    estimator = Estimator(out, device="cuda" if torch.cuda.is_available() else "cpu")
    print(f"sweep {grid.name}: {len(grid.runs)} runs\n{grid.about}\n")
    total, largest, bases = 0.0, 0.0, {}
    for run in grid.runs:
        if read_run(out, run):
            print(f"{run.id}  done before                {run.label}")
            continue
        cost = estimator.cost(run, others=grid.runs)
        number = bases.setdefault(cost.basis, len(bases) + 1)
        total += cost.seconds  # NaN once one is unknown
        largest = max(largest, 0.0 if math.isnan(cost.megabytes) else cost.megabytes)
        print(f"{run.id} {duration(cost.seconds):>12} {memory(cost.megabytes):>10} [{number}]  {run.label}")
    spent = "unknown (some runs have no estimate)" if math.isnan(total) else duration(total / workers)
    print(f"\ntogether {spent} with {workers} at a time; at most {memory(largest)} for one run. Based on")
    for basis, number in bases.items():
        print(f"[{number}] {basis}")
    print(FACTOR)

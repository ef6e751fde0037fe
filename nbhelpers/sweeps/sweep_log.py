"""What a sweep says while it runs, before it runs, and at its end."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbhelpers.sweeps.estimates import Estimator, tokens
from nbhelpers.sweeps.grids import Grid, Run
from nbhelpers.sweeps.sweep_records import is_whole, read_record
from nbhelpers.sweeps.sweep_tables import wide, wide_beside_paper
from nbhelpers.words import duration, memory

MOST_PRINTED = 60  # rows of a table


class SweepLog:
    """Plain lines on stdout: one when a run ends, with the time left.

    Parameters
    ----------
    grid : Grid
    todo : list of Run
        The runs that are not done yet.
    out : path
    workers : int
    enabled : bool
    """

    def __init__(self, grid: Grid, todo: list[Run], out: Path, *, workers: int, enabled: bool) -> None:
        self.grid, self.out, self.enabled = grid, out, enabled
        self.workers = workers
        self.left = {run.id: run for run in todo}
        self.n_kept = len(grid.runs) - len(todo)
        self.n_done = self.n_kept
        self.started = time.monotonic()
        self.tokens_done = 0.0

    def say(self, text: str) -> None:
        if self.enabled:
            print(text, flush=True)

    def start(self) -> None:
        kept = f", {self.n_kept} kept from before" if self.n_kept else ""
        self.say(
            f"sweep {self.grid.name}: {len(self.grid.runs)} runs{kept}; {self.workers} at a time; {self.out}"
        )
        for run in self.grid.runs:
            if run.id not in self.left:
                self._tell_versions(run)

    def _tell_versions(self, run: Run) -> None:
        """Say where a kept run was measured with another version of the package."""
        from nbhelpers import __version__

        version = read_record(self.out, run.id).get("version", __version__)
        if version != __version__:
            self.say(f"note: {run.label} was measured with nbhelpers {version}; --fresh measures it again")

    def done(self, record: Mapping[str, Any]) -> None:
        run = self.left.pop(record["id"])
        self.n_done += 1
        self.tokens_done += tokens(run)
        told = f"{record['status']} in {duration(record['seconds'])}, peak {memory(record['peak_mb'])}"
        attempts = f", attempt {record['attempts']}" if record["attempts"] > 1 else ""
        place = f"[{self.n_done}/{len(self.grid.runs)}]"
        self.say(f"{place} {run.label}: {told}{attempts}{self._time_left()}")
        if record["error"]:
            self.say(f"    {record['error'].splitlines()[0]}")

    def _time_left(self) -> str:
        left = sum(tokens(run) for run in self.left.values())
        if not left:
            return ""
        spent = time.monotonic() - self.started
        return f"  (about {duration(spent * left / self.tokens_done)} left)"

    def broken(self, n_waiting: int) -> None:
        self.say(f"a worker was killed: its pool is opened anew, {n_waiting} runs go on")

    def interrupted(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        done = sum(record["status"] == "done" for record in records.values())
        self.say(
            f"interrupted; {done} of {len(self.grid.runs)} runs are done and kept in {self.out}. The same "
            "command resumes there."
        )

    def summary(self, sweep: Any) -> None:
        frame = sweep.tables["sweep"]
        if len(frame):
            rows = wide(frame)
            self.say("\n" + rows.head(MOST_PRINTED).to_string(index=False, float_format=_number))
        for name, table in sweep.tables.items():
            if name != "sweep" and table["run"].notna().any():
                shown = wide_beside_paper(table).head(MOST_PRINTED)
                self.say(f"\n{name.replace('_', ' ')}\n{shown.to_string(index=False, float_format=_number)}")
        for group in sweep.same_weights:
            self.say(f"\nwarning: the same weights were loaded for {', '.join(group)}")
        if sweep.failed:
            self.say(f"\n{len(sweep.failed)} failed:")
        for record in sweep.failed:
            self.say(f"  {record['label']} ({record['id']})\n    {record['error'].splitlines()[0]}")
        done = sum(record["status"] == "done" for record in sweep.records.values())
        self.say(
            f"\n{done} of {len(self.grid.runs)} runs done, {sweep.kept} of them before; "
            f"{self.out}/sweep.parquet"
        )


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1e-3 else f"{value:.3f}"


def print_plan(grid: Grid, out: str | Path, *, workers: int = 1, device: str | None = None) -> None:
    """Print what a sweep would run, each with an estimate of time and memory, and run nothing.

    Parameters
    ----------
    grid : Grid
    out : path
        The sweep's folder: what is done there is not run again, and says how fast a model is.
    workers : int
        Runs at a time, for the total.
    device : {"cpu", "cuda"}, optional
        Estimated for; CUDA where there is a GPU if None.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    estimator = Estimator(out, device=device)
    print(f"sweep {grid.name}: {len(grid.runs)} runs\n{grid.about}\n")
    total, largest, bases = 0.0, 0.0, {}
    for run in grid.runs:
        if is_whole(Path(out), run.id):
            print(f"{run.id}  done before                {run.label}")
            continue
        estimate = estimator.estimate(run, others=grid.runs)
        bases.setdefault(estimate.basis, len(bases) + 1)
        total += estimate.seconds  # NaN once one is unknown
        largest = max(largest, estimate.megabytes) if not math.isnan(estimate.megabytes) else largest
        told = f"{duration(estimate.seconds):>12} {memory(estimate.megabytes):>10} [{bases[estimate.basis]}]"
        print(f"{run.id} {told}  {run.label}")
    said = "unknown, because some runs have no estimate" if math.isnan(total) else duration(total / workers)
    print(f"\ntogether {said} with {workers} at a time; at most {memory(largest)} for one run. Based on")
    for basis, number in bases.items():
        print(f"[{number}] {basis}")
    print(
        "Estimates are for this machine, from sizes alone: expect a factor of 3. Downloads are not counted, "
        "and once runs of a model are done their times are used instead."
    )

"""Updates per second on several GPUs over nccl, and with faiss-gpu's search: what no machine of ours has had.

`python -m benchmarks.gpus [--rounds N] [--seconds S] [--out FILE]`, one process per GPU of this machine. Gaussian-Bernoulli
1024-512, driven, k = 100, fused sweeps in bfloat16; 128 chains and data rows of all GPUs (strong) or of each (weak). Cases
that this machine or its faiss cannot run are left out, and are "not measured" in docs/speed.md. `--try` runs the same cases on
two processes of the CPU over gloo with torch's sweeps, k = 1, to see that the benchmark works, and writes nothing.
"""

import argparse
import contextlib
import dataclasses
import functools
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from benchmarks.cost_model import Job
from benchmarks.machine import revision, write_result
from benchmarks.scaling_cases import HELDOUT_ROWS, TRAIN_ROWS, Mode, config_of
from benchmarks.workers import Group
from pipeline.build import build_beam
from pipeline.comm import Comm
from pipeline.critics.faiss_search import MissingFaiss, search_faiss
from pipeline.training.beam import BeamObjective

Search = Literal["torch", "faiss"]
WORKERS = (1, 2, 4, 8)
RESULT = Path("benchmarks/results/gpus.json")


class GpuCase(NamedTuple):
    """One configuration; with one worker strong and weak are one."""

    workers: int
    mode: Mode
    search: Search | None
    """Of the critic's neighbors; None: likelihood alone."""

    @property
    def name(self) -> str:
        """For people, and the key in the results."""
        critic = f"with the adversary, {self.search}'s search" if self.search else "likelihood alone"
        mode = "" if self.workers == 1 else f", {self.mode}"
        return f"{critic}, {self.workers} GPU{'s' * (self.workers > 1)}{mode}"


def all_cases() -> list[GpuCase]:
    """What there is to measure, also where it cannot be measured here."""
    searches: tuple[Search | None, ...] = (None, "torch", "faiss")
    modes: tuple[Mode, ...] = ("strong", "weak")
    return [GpuCase(n, mode, search) for search in searches for n in WORKERS for mode in modes[: 1 + (n > 1)]]


@functools.cache
def _objective(case: GpuCase, device: str) -> BeamObjective:
    job = Job(sweeps=100 if device == "cuda" else 1, adversary=case.search is not None)
    job = dataclasses.replace(job, num_blocks=max(WORKERS))
    config = config_of(job if case.mode == "strong" else job.weak(case.workers))
    assert config.critic is not None and config.sampler is not None
    critic = dataclasses.replace(config.critic, search=case.search or "torch")
    sampler = config.sampler
    if device == "cuda":
        sampler = dataclasses.replace(sampler, kernel="fused", precision="bfloat16")
    config = dataclasses.replace(config, critic=critic, sampler=sampler)
    comm = Comm.current(torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else device)
    rows = torch.randn(TRAIN_ROWS + HELDOUT_ROWS, job.visible, generator=torch.Generator().manual_seed(0))
    return build_beam(config, rows[HELDOUT_ROWS:], rows[:HELDOUT_ROWS], comm)


def seconds_per_update(case: GpuCase, device: str, first: int, updates: int) -> float:
    """Of updates `first` to `first + updates`; to be called on all workers of a group at once."""
    objective = _objective(case, device)
    objective.comm.from_first(0)  # begin together
    _wait(device)
    start = time.perf_counter()
    for step in range(first, first + updates):
        objective.step(step, measure=False)
    _wait(device)
    return (time.perf_counter() - start) / updates


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(cases: list[GpuCase], device: str, rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Updates per second of each case, median and range over rounds in turns; the slowest worker counts."""
    found: dict[GpuCase, list[float]] = {case: [] for case in cases}
    counts, done = {}, dict.fromkeys(cases, 0)
    with contextlib.ExitStack() as stack:
        groups = {n: stack.enter_context(Group(n, device=device)) for n in sorted({case.workers for case in cases})}

        def turn(case: GpuCase, updates: int) -> float:
            slowest = max(groups[case.workers].call(seconds_per_update, case, device, done[case], updates))
            done[case] += updates
            return float(slowest)

        for case in cases:
            turn(case, 3)  # kernels are compiled, graphs made
            counts[case] = max(3, round(seconds / turn(case, 3)))
        for _ in range(rounds):
            for case in cases:
                found[case].append(1 / turn(case, counts[case]))
    return {
        case.name: {"updates_per_second": statistics.median(rates), "range": [min(rates), max(rates)]}
        for case, rates in found.items()
    }


def _faiss_works(device: str) -> bool:
    rows = torch.zeros(8, 4, device=device)
    try:
        search_faiss(rows, rows, 1)
    except MissingFaiss as error:
        print(f"faiss: not measured: {error}", file=sys.stderr)
        return False
    return True


def main() -> int:
    """Measure, print a table, write JSON; 2 without a CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each case in a round")
    parser.add_argument("--try", action="store_true", dest="trial", help="two processes of the CPU, nothing is written")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    device, count = ("cpu", 2) if args.trial else ("cuda", torch.cuda.device_count())
    if count == 0:
        print("no CUDA device here: nothing was measured", file=sys.stderr)
        return 2
    searches = {None, "torch", *(["faiss"] if _faiss_works(device) else [])}
    cases = [case for case in all_cases() if case.workers <= count and case.search in searches]
    if args.trial:
        print("on processes of the CPU, one sweep an update; of GPUs nothing is measured")
    found = measure(cases, device, args.rounds, args.seconds)
    for name, row in found.items():
        low, high = row["range"]
        print(f"{name:56s} {row['updates_per_second']:8.4g} updates/s ({low:.4g} to {high:.4g})")
    if args.trial:
        return 0
    record = {
        "command": "python -m benchmarks.gpus",
        "revision": revision(),
        "device": torch.cuda.get_device_name(),
        "devices": count,
        "torch": torch.__version__,
        "cases": found,
    }
    write_result(args.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())

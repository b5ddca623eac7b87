"""Weak and strong scaling of the face-sized BEAM over gloo workers on this machine, and how well the cost model tells it.

`python -m benchmarks.scaling [--rounds N] [--seconds S]` (`make bench-scaling`). Gaussian-Bernoulli 1024-512, driven, 128
chains and data rows of all workers (strong) or of each (weak), k = 10 and 100, likelihood alone and with the adversary
(gamma .5). Real updates; configurations, kernels and collectives take turns; medians over rounds with their range.

The model is given what kernels and collectives took, on their own, and predicts the updates. Then `python -m
benchmarks.scaling_page` writes the tables and the picture of docs/scaling.md.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import statistics
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.cost_model import Job, Machine, bytes_per_update, update_seconds
from benchmarks.links import gather_seconds, sum_seconds
from benchmarks.rates import link_of, rates_of, time_collectives, time_kernels
from benchmarks.scaling_cases import Case, Turn, build_cases, take_turn
from benchmarks.timed_comm import KINDS
from benchmarks.updates import _processor
from benchmarks.workers import Group

RESULT = Path("benchmarks/results/scaling_cpu.json")
WORKERS = (1, 2, 4)
SIZES = (Job().visible, Job().hidden)
Collectives = dict[int, dict[str, dict[int, float]]]
"""Workers -> kind -> bytes that each puts in -> seconds."""


def measure(
    cases: list[Case], rounds: int, seconds: float, kernel_seconds: float
) -> tuple[dict[Case, list[list[Turn]]], dict[int, dict[str, float]], Collectives]:
    """Turns of each case (round, rank), and medians over rounds of kernels (one worker, all cores busy) and collectives."""
    cores = usable_cores()
    turns: dict[Case, list[list[Turn]]] = {case: [] for case in cases}
    kernels: dict[int, list[dict[str, float]]] = {n: [] for n in {1, min(cores, max(WORKERS))}}
    collectives: dict[int, list[dict[str, dict[int, float]]]] = {n: [] for n in WORKERS if n > 1}
    with contextlib.ExitStack() as stack:
        groups = {n: stack.enter_context(Group(n)) for n in sorted({*WORKERS, *kernels})}
        counts = {}
        for case in cases:
            first = groups[case.workers].call(take_turn, case, 1)
            counts[case] = max(2, round(seconds / first[0].wall))
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", flush=True)
            for n, found in kernels.items():
                answers = groups[n].call(time_kernels, *SIZES, kernel_seconds)
                found.append({name: statistics.mean(a[name] for a in answers) for name in answers[0]})
            for n, one in collectives.items():
                one.append(groups[n].call(time_collectives, kernel_seconds / 2)[0])
            for case in cases:
                turns[case].append(groups[case.workers].call(take_turn, case, counts[case]))
    medians = {
        n: {name: statistics.median(f[name] for f in found) for name in found[0]} for n, found in kernels.items()
    }
    links = {
        n: {
            kind: {size: statistics.median(f[kind][size] for f in found) for size in found[0][kind]}
            for kind in found[0]
        }
        for n, found in collectives.items()
    }
    return turns, medians, links


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machines_of(kernels: dict[int, dict[str, float]], collectives: Collectives) -> dict[bool, Machine]:
    """The machine as the model sees it, by whether more than one worker runs: kernels on busy cores are slower."""
    cores = usable_cores()
    points: dict[str, list[tuple[float, float, float]]] = {"sum": [], "gather": []}
    for n, found in collectives.items():
        turns = max(1.0, n / cores)
        for kind in points:
            for size, seconds in found[kind].items():
                steps, moved = (2 * (n - 1), 2 * (n - 1) * size / n) if kind == "sum" else (n - 1, (n - 1) * size)
                points[kind].append((turns * steps, turns * moved, seconds))
    links = {kind: link_of(found) for kind, found in points.items()}
    rates = {busy: rates_of(kernels[n], *SIZES) for busy, n in ((False, 1), (True, max(kernels)))}
    # the cores that sweep are the ones that copy for gloo: nothing is hidden from the count of work
    return {busy: Machine(r, links["sum"], links["gather"], cores=cores, overlap=0.0) for busy, r in rates.items()}


def record_of_case(case: Case, rounds: list[list[Turn]], machines: dict[bool, Machine]) -> dict[str, Any]:
    """Medians and ranges of one case over rounds, and what the model says of it."""
    walls = [max(turn.wall for turn in turns) for turns in rounds]
    wall, every = statistics.median(walls), [turn for turns in rounds for turn in turns]
    job = case.job()
    parts = update_seconds(job, case.workers, machines[case.workers > 1])
    predicted, cpu = sum(parts), statistics.median(turn.cpu for turn in every)
    own = parts.own / max(1.0, case.workers / machines[True].cores)  # turns taken on one core are nobody's work
    return {
        **case._asdict(),
        "chains": job.chains,
        "blocks_swept_as_one": every[0].merged,
        "updates_per_second": 1 / wall,
        "range": [1 / max(walls), 1 / min(walls)],
        "ms_per_update": 1e3 * wall,
        "cpu_ms_per_worker": 1e3 * cpu,
        "bytes_per_update": {k: statistics.median(t.traffic[k] for t in every) for k in every[0].traffic},
        "bytes_predicted": bytes_per_update(job, case.workers),
        "ms_in_collectives": {kind: 1e3 * statistics.median(turn.seconds[kind] for turn in every) for kind in KINDS},
        "model": {
            "ms_per_update": 1e3 * predicted,
            "relative_error": predicted / wall - 1,
            "cpu_ms": 1e3 * own,
            "cpu_relative_error": own / cpu - 1,
            "ms": {name: 1e3 * value for name, value in parts._asdict().items()},
        },
    }


def overlap_of(cases: dict[Case, dict[str, Any]], collectives: Collectives) -> list[dict[str, Any]]:
    """Per configuration with a memory to gather: what a worker spends on it with and without the sweeps in between."""
    found = []
    for case, record in cases.items():
        if not case.adversary or case.workers == 1 or not case.overlap:
            continue
        blocking = cases[case._replace(overlap=False)]
        left, whole = record["ms_in_collectives"], blocking["ms_in_collectives"]
        spent = left["gather_start"] + left["gather_wait"]
        found.append(
            {
                "case": case.name,
                "ms_started": left["gather_start"],
                "ms_waited_after_sweeps": left["gather_wait"],
                "ms_blocking": whole["gather_start"],
                "hidden": 1 - spent / whole["gather_start"],
                "updates_per_second": record["updates_per_second"],
                "updates_per_second_blocking": blocking["updates_per_second"],
            }
        )
    return found


def fits(machine: Machine, collectives: Collectives) -> list[dict[str, float | str]]:
    """Each measured collective beside the fitted link's."""
    rows: list[dict[str, float | str]] = []
    for n, found in collectives.items():
        turns = max(1.0, n / machine.cores)
        for kind, sizes in found.items():
            for size, seconds in sizes.items():
                of = gather_seconds(size, n, machine.gather_link)
                if kind == "sum":
                    of = sum_seconds(size, n, machine.sum_link)
                rows.append(
                    {"kind": kind, "workers": n, "bytes": size, "ms": 1e3 * seconds, "model_ms": 1e3 * turns * of}
                )
    return rows


def as_record(
    turns: dict[Case, list[list[Turn]]], kernels: dict[int, dict[str, float]], collectives: Collectives
) -> dict[str, Any]:
    """Everything that was measured and predicted."""
    machines = machines_of(kernels, collectives)
    cases = {case: record_of_case(case, rounds, machines) for case, rounds in turns.items()}
    return {
        "cases": {case.name: record for case, record in cases.items()},
        "overlap": overlap_of(cases, collectives),
        "rates": {name: dataclasses.asdict(machines[busy].rates) for name, busy in (("alone", False), ("busy", True))},
        "links": {k: dataclasses.asdict(getattr(machines[True], f"{k}_link")) for k in ("sum", "gather")},
        "collectives": fits(machines[True], collectives),
    }


def print_table(cases: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Updates per second, CPU, bytes, waits and the model's error of each case."""
    print(f"\n{'':66s} updates/s (range)           CPU ms  in collectives  model: wall, CPU")
    for name, case in cases:
        low, high = case["range"]
        waits = sum(case["ms_in_collectives"].values())
        print(
            f"{name:66s} {case['updates_per_second']:7.3g} ({low:.3g} to {high:.3g})".ljust(94)
            + f"{case['cpu_ms_per_worker']:7.1f} {waits:11.1f} ms {100 * case['model']['relative_error']:+7.0f} %"
            + f" {100 * case['model']['cpu_relative_error']:+5.0f} %"
        )


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="of each configuration in a round, at least two updates"
    )
    parser.add_argument("--kernel-seconds", type=float, default=0.2, help="of each kernel in a round")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    found = measure(build_cases(WORKERS), args.rounds, args.seconds, args.kernel_seconds)
    record = {
        "what": "updates per second of the wall clock; times in milliseconds per update; one thread per worker, float32",
        "command": f"python -m benchmarks.scaling --rounds {args.rounds} --seconds {args.seconds:g} "
        f"--kernel-seconds {args.kernel_seconds:g}",
        "machine": platform.machine(),
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": usable_cores(),
        "load_before": load,
        "versions": {"torch": version("torch"), "python": platform.python_version()},
        **as_record(*found),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print_table(record["cases"].items())


if __name__ == "__main__":
    main()

"""From the command to the first update of `python -m jobs.train` on a prepared data set, and to its answer to a question.

`python -m benchmarks.startup [--rounds N] [--cases NAME ...]` (`make bench-startup`). Every round starts each command as a new
process, one after another, in a fresh folder of runs, and looks for the row of update 1 in the run's metrics.jsonl. Seconds
are of the wall clock and of CPU time, the latter summed over the command's process and all that it started, Ray's servers
too. Cases that end in `-first` have no MLflow database yet, as in a new clone: MLflow then makes its tables. Packages are in
the page cache in every case but the machine's very first run.

Before update 1 a run is measured on held-out rows as it stands, which is 400 rows of 1024 units through two sampling protocols
here; `local-bare` and `ray-bare` have 20 rows, and show the start without it.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from benchmarks.machine import describe_machine, write_result
from data_prep.tasks import measure_moments, merge_moments
from pipeline.data.manifest import Manifest, SplitEntry, write_manifest
from pipeline.data.shards import write_shard

LIMIT_SECONDS = 300.0
ROWS = {"train": 3200, "valid": 400, "test": 400}
"""As many as `make celeba-train` has of its stand-in faces."""
FIRST = "-first"
ANSWERS = {"help": ["--help"], "list": ["--list"], "wrong-recipe": ["no_such_recipe"]}
TRAINING = {
    "local-untracked": ["--local", "--no-tracking"],
    "local-bare": ["--local", "--no-tracking", "--set", "evaluation.num_rows=20"],
    "local": ["--local"],
    f"local{FIRST}": ["--local"],
    "ray-bare": ["--workers", "2", "--no-tracking", "--set", "evaluation.num_rows=20"],
    "ray": ["--workers", "2"],
    f"ray{FIRST}": ["--workers", "2"],
}


class Elapsed(NamedTuple):
    """Seconds of one start."""

    wall: float
    cpu: float


def write_latents(folder: Path) -> None:
    """Random rows float32 [n, 1024] as a finished folder of latent shards."""
    splits = {}
    for seed, (name, count) in enumerate(ROWS.items()):
        rows = torch.randn(count, 1024, generator=torch.Generator().manual_seed(seed)).numpy()
        folder.mkdir(parents=True, exist_ok=True)
        shard = write_shard(folder / f"{name}-00000.tar", rows)
        splits[name] = SplitEntry(count, (shard,), *merge_moments([measure_moments(rows)]))
    settings = {"encoder_version": "none"}
    write_manifest(folder, Manifest("latents", "random-rows", "0" * 64, settings, (1024,), splits))


def answer(arguments: list[str]) -> Elapsed:
    """Seconds until `jobs.train` has answered and ended."""
    start = time.perf_counter()
    process = subprocess.Popen(_command(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    return Elapsed(time.perf_counter() - start, usage.ru_utime + usage.ru_stime)


def first_update(arguments: list[str], folder: Path, data: Path, database: Path) -> Elapsed:
    """Seconds until the row of update 1 is in metrics.jsonl; the run (two updates) is waited for.

    Raises RuntimeError, with the command's last words, when it ends or takes too long without that row.
    """
    settings = ["evaluation.every_updates=1000", "checkpoint.log_every_updates=1"]
    settings += ["schedules.likelihood.updates=2", "schedules.adversarial.updates=0"]
    where = ["--data", str(data), "--runs", str(folder), "--cache", str(folder / "cache"), "--name", "run"]
    command = _command(["faces_quick", *where, *(part for s in settings for part in ("--set", s)), *arguments])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{database}"}
    history, log = folder / "run" / "metrics.jsonl", folder / "log.txt"
    start, used = time.perf_counter(), {}
    with log.open("wb") as output:
        process = psutil.Popen(command, env=environment, stdout=output, stderr=output)
        while not (history.exists() and len(history.read_text().splitlines()) > 1):
            used |= _cpu_seconds(process)
            if process.poll() is not None or time.perf_counter() - start > LIMIT_SECONDS:
                process.kill()
                raise RuntimeError(f"{' '.join(command)}: no update\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        wall = time.perf_counter() - start
        used |= _cpu_seconds(process)
        process.wait(LIMIT_SECONDS)  # two updates, and Ray's end
    return Elapsed(wall, sum(used.values()))


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "jobs.train", *arguments]


def _cpu_seconds(process: psutil.Process) -> dict[int, float]:
    """CPU seconds so far of a process and its descendants, by process id."""
    found = {}
    try:
        for each in (process, *process.children(recursive=True)):
            try:
                times = each.cpu_times()
                found[each.pid] = times.user + times.system
            except psutil.Error:
                continue
    except psutil.Error:  # it has just ended
        pass
    return found


def measure(cases: list[str], rounds: int) -> dict[str, list[Elapsed]]:
    """Every case's seconds, by round; the cases take turns."""
    found: dict[str, list[Elapsed]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as scratch:
        data, made = Path(scratch) / "latents", Path(scratch) / "made.db"
        write_latents(data)
        if {"local", "ray"} & set(cases):  # a database with its tables, that every warm start gets a copy of
            first_update(["--local"], _fresh(Path(scratch) / "first"), data, made)
        for number in range(rounds):
            for case in cases:
                if case in ANSWERS:
                    found[case].append(answer(ANSWERS[case]))
                    continue
                folder = _fresh(Path(scratch) / f"{number}-{cases.index(case)}")
                database = folder / "mlflow.db"
                if made.exists() and not case.endswith(FIRST):
                    shutil.copy(made, database)
                found[case].append(first_update(TRAINING[case], folder, data, database))
    return found


def _fresh(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*ANSWERS, *TRAINING]
    parser.add_argument("--cases", nargs="*", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/startup_cpu.json"))
    args = parser.parse_args()
    found = measure(args.cases, args.rounds)
    record = {
        "what": "seconds from `python -m jobs.train` to its answer, or to update 1 of faces_quick (1024-512) on random rows",
        "command": "make bench-startup",
        **describe_machine("torch", "ray", "mlflow"),
        "rounds": args.rounds,
        "cases": {
            case: {
                unit: {"median": statistics.median(values), "range": [min(values), max(values)]}
                for unit, values in zip(("wall_seconds", "cpu_seconds"), zip(*each))
            }
            for case, each in found.items()
        },
    }
    write_result(args.out, record)
    print(f"{'':16s} wall s (range)          CPU s (range)")
    for case, units in record["cases"].items():
        shown = (f"{u['median']:6.2f} ({u['range'][0]:.2f} to {u['range'][1]:.2f})" for u in units.values())
        print(f"{case:16s} {'   '.join(f'{text:21s}' for text in shown)}")


if __name__ == "__main__":
    main()

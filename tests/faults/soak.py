"""A long local training watched: memory, open files, bytes on disk and updates per second, and whether they stay flat.

    python -m tests.faults.soak --updates 20000 --out docs/soak.json

trains a small BEAM (half of the updates with the adversary) without and with tracking, and writes the samples, their growth
over the last 40 percent of the updates, and a picture beside them.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "jobs")]

MAX_GROWTH = {"rss_bytes": 0.03, "open_files": 0.0, "folder_bytes": 0.01}
"""Growth allowed over the last 40 percent of the run, as a share of the mean there."""
MAX_SLOWDOWN = 0.1
"""Loss of updates per second of processor time allowed between the two halves of what is judged."""
KEYS = {"rss_bytes": "resident memory [MiB]", "open_files": "open files", "folder_bytes": "run folder [KiB]"}


def folder_bytes(folder: Path) -> int:
    """Bytes of all files but the history and the pictures' rows, which are meant to grow by the report."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "metrics.jsonl" and p.parent.name != "samples")
    return sum(p.stat().st_size for p in files)


def watch(place: Path, updates: int, tracking: bool) -> list[dict[str, float]]:
    """Train `updates` updates in `place`; a sample every 200th."""
    import dataclasses

    from latents import write_latents
    from small_runs import job_in, small

    from pipeline.comm import Comm
    from pipeline.config import CheckpointConfig, EvaluationConfig
    from pipeline.runs.job import describe_folder, run_worker
    from pipeline.training.loop import StopRequest

    manifest = write_latents(place / "data")
    config = dataclasses.replace(
        small(updates // 2, rate=1e-4),
        checkpoint=CheckpointConfig(every_updates=200, log_every_updates=200),
        evaluation=EvaluationConfig(every_updates=2000, num_rows=19, num_components=5),
    )
    job = job_in(place / "run", place / "data", manifest.hash, config)
    describe_folder(job, 1)
    tracker: Any = None
    if tracking:
        from pipeline.runs.tracked import StartingTracker

        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{place / 'mlflow.db'}"
        tracker = StartingTracker(place / "run", config, manifest.dataset, manifest.hash)
    process, samples, start = psutil.Process(), [], time.perf_counter()
    for row in run_worker(job, Comm(), StopRequest()):
        if tracker is not None:
            tracker.log(row.step, row.metrics)
        samples.append(
            {
                "step": row.step,
                "seconds": time.perf_counter() - start,
                "cpu_seconds": sum(process.cpu_times()[:2]),
                "rss_bytes": process.memory_info().rss,
                "open_files": process.num_fds(),
                "folder_bytes": folder_bytes(place / "run"),
            }
        )
    if tracker is not None:
        tracker.finish("FINISHED")
    return samples


def judge(samples: list[dict[str, float]]) -> dict[str, Any]:
    """Per quantity, its growth over the last 40 percent of the run by a straight line, as a share of its mean there."""
    last = [s for s in samples if s["step"] >= 0.6 * samples[-1]["step"]]  # the adversary's memory is there by then
    steps = np.array([s["step"] for s in last], float)
    found: dict[str, Any] = {}
    for key, allowed in MAX_GROWTH.items():
        values = np.array([s[key] for s in last], float)
        slope = float(np.polyfit(steps, values, 1)[0])
        growth = slope * (steps[-1] - steps[0]) / values.mean()
        found[key] = {
            "mean": values.mean(),
            "growth": growth,
            "allowed": allowed,
            "flat": bool(growth <= allowed + 1e-9),
        }
    # of this process's own time: what else runs on the machine hardly counts
    halves = (last[: len(last) // 2 + 1], last[len(last) // 2 :])
    before, after = ((h[-1]["step"] - h[0]["step"]) / (h[-1]["cpu_seconds"] - h[0]["cpu_seconds"]) for h in halves)
    found["updates_per_cpu_second"] = {
        "mean": (before + after) / 2,
        "growth": after / before - 1,
        "allowed": -MAX_SLOWDOWN,
        "flat": after / before >= 1 - MAX_SLOWDOWN,
    }
    return found


def draw(runs: dict[str, list[dict[str, float]]], out: Path) -> None:
    """The curves of all runs as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(4, 1, figsize=(8, 9), sharex=True, layout="constrained")
    for name, samples in runs.items():
        steps = np.array([s["step"] for s in samples], float)
        for axis, key, unit in zip(axes, KEYS, (2**20, 1, 2**10)):
            axis.plot(steps, [s[key] / unit for s in samples], label=name)
            axis.set_ylabel(KEYS[key])
        seconds = np.array([s["cpu_seconds"] for s in samples])
        axes[3].plot(steps[1:], np.diff(steps) / np.diff(seconds), label=name)
    axes[3].set_ylabel("updates per CPU second")
    axes[3].set_xlabel("update")
    for axis in axes:
        axis.set_ylim(bottom=0)  # after all curves: it fixes the top as well
    axes[0].legend()
    figure.savefig(out, dpi=100)


def main() -> int:
    """Command line; status 1 where a quantity grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path("docs/soak.json"))
    parser.add_argument("--only", choices=["without tracking", "with tracking"])
    args = parser.parse_args()
    runs = {}
    for name, tracking in (("without tracking", False), ("with tracking", True)):
        if args.only in (None, name):
            with tempfile.TemporaryDirectory() as place:
                runs[name] = watch(Path(place), args.updates, tracking)
    verdicts = {name: judge(samples) for name, samples in runs.items()}
    args.out.write_text(json.dumps({"updates": args.updates, "verdicts": verdicts, "samples": runs}) + "\n")
    draw(runs, args.out.with_suffix(".png"))
    print(json.dumps(verdicts, indent=1))
    return int(not all(v[key]["flat"] for v in verdicts.values() for key in v))


if __name__ == "__main__":
    sys.exit(main())

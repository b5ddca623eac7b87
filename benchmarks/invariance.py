"""What "the same bits on any number of workers" costs: block products and order-free sums, at the face recipe's size.

`python -m benchmarks.invariance [--updates N]` on one thread. Rounds are interleaved; medians with the range.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from jobs.recipes import recipe
from pipeline.build import build_beam
from pipeline.comm import Comm, ExactSum
from pipeline.training.beam import BeamObjective

ROUNDS = 5


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=20, help="updates per round and case")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/invariance_cpu.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = torch.randn(3000, 1024)
    cases: dict[str, BeamObjective] = {}
    for sweeps in (10, 100):
        for blocks in (1, 2, 4, 8):
            settings = {"sampler.gibbs_steps": str(sweeps), "sampler.num_blocks": str(blocks)}
            config = recipe("celeba_beam", {**settings, "evaluation.num_rows": "100"})
            objective = build_beam(config, rows, rows[:200], Comm())
            objective.schedule.switch_step = 0  # with the adversary
            cases[f"k = {sweeps}, {blocks} blocks"] = objective
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for objective in cases.values():
        objective.step(0, measure=False)
    for _ in range(ROUNDS):
        for name, objective in cases.items():
            count = args.updates if "= 10," in name else max(2, args.updates // 5)
            start = time.perf_counter()
            for step in range(1, count + 1):
                objective.step(step, measure=False)
            seconds[name].append((time.perf_counter() - start) / count)

    partial = {"weights": torch.randn(1024, 512) * 1e-3}
    exact, plain = ExactSum({"weights": (1024, 512)}), torch.zeros(1024, 512)
    sums: dict[str, list[float]] = {"order-free sum of one block's gradient": [], "plain float32 sum": []}
    for _ in range(ROUNDS):
        for name, add in zip(sums, (lambda: exact.add_(partial), lambda: plain.add_(partial["weights"]))):
            start = time.perf_counter()
            for _ in range(50):
                add()
            sums[name].append((time.perf_counter() - start) / 50)

    result = {
        "what": "milliseconds per update (1024-512, 128 chains, batch 128, adversary on), one thread",
        "machine": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "cases": {
            k: {"median_ms": 1e3 * statistics.median(v), "range_ms": [1e3 * min(v), 1e3 * max(v)]}
            for k, v in seconds.items()
        },
        "sums": {k: {"median_ms": 1e3 * statistics.median(v)} for k, v in sums.items()},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for sweeps in (10, 100):
        base = statistics.median(seconds[f"k = {sweeps}, 1 blocks"])
        for blocks in (1, 2, 4, 8):
            times = seconds[f"k = {sweeps}, {blocks} blocks"]
            median = statistics.median(times)
            print(
                f"k = {sweeps:3d}, {blocks} blocks: {1e3 * median:7.1f} ms ({1e3 * min(times):.1f} to {1e3 * max(times):.1f}), "
                f"{median / base:.2f} of one block"
            )
    for name, times in sums.items():
        print(f"{name}: {1e3 * statistics.median(times):.3f} ms")


if __name__ == "__main__":
    main()

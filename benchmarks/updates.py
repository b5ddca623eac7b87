"""Updates per second of this project beside other RBM trainers, two torch loops and the machine's own limit, on one thread.

`python -m benchmarks.updates [--cases NAME ...] [--seconds S]` (`make bench`). Every case is one problem on random rows; its
contenders take turns for --rounds rounds of about --seconds each, and the table gives the median and the range over rounds, per
second of this process's CPU time, which other work on the machine disturbs less than the wall clock's. This is throughput
alone: nothing is said of what the models learn. Sweeps with bfloat16 operands take part where the processor has them.

The floor of a case is the time that its arithmetic would take with nothing else: matrix products at the rate of `torch.addmm`
at the sweep's own shapes, random numbers at the rate of torch's generator, the bytes that Adam and the batch have to move at
the rate of a copy of as many, all measured in the same run. Products and generators move their own.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from threadpoolctl import threadpool_limits

from benchmarks.loops import Problem, Update, plain_loop, tuned_loop
from benchmarks.peers import rbms_loop, sklearn_loop
from pipeline.build import build_beam
from pipeline.comm import Comm
from pipeline.config import (
    CriticConfig,
    DataConfig,
    EvaluationConfig,
    Phase,
    RBMConfig,
    RunConfig,
    SamplerConfig,
    Schedules,
)
from pipeline.device.precision import rounds_natively

OURS, BLOCKS, ADVERSARY, ROUNDED = "ours", "ours, 4 blocks", "ours, with the adversary", "ours, bfloat16 sweeps"
Case = tuple[Problem, dict[str, Callable[[Problem], Update]]]


def ours(
    p: Problem, num_blocks: int = 1, gamma: float = 1.0, precision: Literal["float32", "bfloat16"] = "float32"
) -> Update:
    """The project's own step; with gamma < 1 the adversary, its nearest-neighbor critic and memory are in it."""
    config = RunConfig(
        "benchmark",
        data=DataConfig(p.batch),
        model=RBMConfig(p.visible, p.hidden, "gaussian" if p.gaussian else "bernoulli"),
        sampler=SamplerConfig(
            p.chains, p.sweeps, p.beta_std, statistics_sweeps=0, num_blocks=num_blocks, precision=precision
        ),
        critic=CriticConfig(search="torch"),
        schedules=Schedules(Phase(updates=0), Phase(updates=10**6, gamma=gamma)),
        evaluation=EvaluationConfig(num_rows=100),
    )
    objective = build_beam(config, p.rows[100:], p.rows[:100], Comm())
    at = {"step": 0}

    def update() -> None:
        objective.step(at["step"], measure=False)
        at["step"] += 1

    return update


def build_cases() -> dict[str, Case]:
    """All cases by name, smallest first."""
    binary = torch.rand(5000, 784, generator=torch.Generator().manual_seed(0)).lt(0.2).float()
    real = torch.randn(5000, 1024, generator=torch.Generator().manual_seed(0))
    bernoulli = Problem(784, 200, 100, 100, 5, False, 0.0, binary)
    gaussian = Problem(1024, 512, 128, 128, 100, True, 0.0, real)
    loops: dict[str, Callable[[Problem], Update]] = {"torch, plain": plain_loop, "torch, tuned": tuned_loop}
    mine: dict[str, Callable[[Problem], Update]] = {OURS: ours, BLOCKS: lambda p: ours(p, 4)}
    adversary: dict[str, Callable[[Problem], Update]] = {ADVERSARY: lambda p: ours(p, 1, 0.1)}
    rounded: dict[str, Callable[[Problem], Update]] = {}
    if rounds_natively():
        rounded = {ROUNDED: lambda p: ours(p, precision="bfloat16")}
    return {
        "bernoulli-k1": (
            bernoulli._replace(sweeps=1),
            {**mine, **loops, "rbms": rbms_loop, "scikit-learn": sklearn_loop},
        ),
        "bernoulli-k5": (bernoulli, {**mine, **rounded, **adversary, **loops, "rbms": rbms_loop}),
        "gaussian-k100": (gaussian, {**mine, **rounded, **adversary, **loops}),
        "gaussian-k100-driven": (gaussian._replace(beta_std=0.95), {**mine, **rounded, **adversary, **loops}),
        "gaussian-k10-driven": (gaussian._replace(beta_std=0.95, sweeps=10), {**mine, **adversary, **loops}),
        "gaussian-4096-chains-k10": (gaussian._replace(chains=4096, sweeps=10), {OURS: ours, **rounded, **loops}),
        "gaussian-65536-chains-k1": (gaussian._replace(chains=65536, sweeps=1), {OURS: ours, **loops}),
    }


def measure(case: Case, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of CPU time per update of each contender, by round; the contenders take turns."""
    problem, contenders = case
    updates = {name: build(problem) for name, build in contenders.items()}
    counts = {}
    for name, update in updates.items():
        update()
        update()  # the second one has the critic's memory
        start = time.process_time()
        update()
        counts[name] = max(1, round(seconds / (time.process_time() - start)))
    found: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(rounds):
        for name, update in updates.items():
            start = time.process_time()
            for _ in range(counts[name]):
                update()
            found[name].append((time.process_time() - start) / counts[name])
    return found


def floor(p: Problem) -> dict[str, float]:
    """Seconds that one update's products and random numbers take at the measured rates of this machine."""
    v, h = torch.rand(p.chains, p.visible), torch.rand(p.chains, p.hidden)
    weights, a, b = torch.randn(p.visible, p.hidden), torch.zeros(p.visible), torch.zeros(p.hidden)
    product = min(_seconds(lambda: torch.addmm(b, v, weights)), _seconds(lambda: torch.addmm(a, h, weights.T)))
    per_row = product / p.chains
    # two products a sweep and row; hidden means and gradient of data and particles; with a variance W h for its gradient
    products = per_row * (2 * p.sweeps * p.chains + (3 if p.gaussian else 2) * (p.batch + p.chains))
    for_visible = _seconds(v.normal_ if p.gaussian else v.uniform_)
    # a copy reads and writes; Adam reads the gradient, and reads and writes a parameter and its two moments
    tensors = [torch.zeros_like(weights) for _ in range(4)]
    others = [torch.zeros_like(weights) for _ in tensors]
    copies = _seconds(lambda: torch._foreach_copy_(tensors, others)) * 7 / 8
    batch = p.rows[: p.batch].clone()
    copies += _seconds(lambda: batch.copy_(p.rows[p.batch : 2 * p.batch]))
    random = p.sweeps * (for_visible + _seconds(h.uniform_))
    return {"products": products, "random numbers": random, "bytes": copies}


def _seconds(call: Callable[[], Any], least: float = 0.2) -> float:
    """The fastest of repeated calls over at least `least` seconds of CPU time."""
    best, start = float("inf"), time.process_time()
    while time.process_time() - start < least:
        before = time.process_time()
        call()
        best = min(best, time.process_time() - before)
    return best


def as_record(case: Case, found: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, ranges and ratios of one case, and its floor."""
    limits = floor(case[0])
    least = sum(limits.values())
    median = {name: statistics.median(times) for name, times in found.items()}
    return {
        "problem": {k: v for k, v in case[0]._asdict().items() if k != "rows"},
        "floor_ms": {name: 1e3 * value for name, value in limits.items()},
        "contenders": {
            name: {
                "updates_per_cpu_second": 1 / median[name],
                "range": [1 / max(times), 1 / min(times)],
                "ours_is_times_faster": median[name] / median[OURS],
                "share_of_floor": least / median[name],
            }
            for name, times in found.items()
        },
    }


def main() -> None:
    """Measure, print a table per case, write JSON."""
    cases = build_cases()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", nargs="*", choices=list(cases), default=list(cases), metavar="NAME", help=", ".join(cases)
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each contender in a round")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/updates_cpu.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    here = {
        "machine": platform.machine(),
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: version(name) for name in ("torch", "rbms", "scikit-learn")},
        "rounds": args.rounds,
    }
    record: dict[str, Any] = {
        "what": "updates per second of CPU time, one thread, float32 unless named",
        "command": "make bench",
        "cases": json.loads(args.out.read_text())["cases"] if args.out.exists() else {},
    }
    for name in args.cases:
        with threadpool_limits(1):  # numpy's BLAS too
            found = measure(cases[name], args.rounds, args.seconds)
        record["cases"][name] = one = {**here, **as_record(cases[name], found)}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\n{name}: floor {', '.join(f'{k} {v:.2f} ms' for k, v in one['floor_ms'].items())}")
        print(f"{'':26s} updates/CPU-s  (range)              ours is   of the floor")
        for contender, row in one["contenders"].items():
            low, high = row["range"]
            print(
                f"{contender:26s} {row['updates_per_cpu_second']:9.3g}      ({low:.3g} to {high:.3g})".ljust(62)
                + f"x {row['ours_is_times_faster']:.2f}   {100 * row['share_of_floor']:.0f} %"
            )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()

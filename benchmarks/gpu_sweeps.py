"""Sweeps and updates on a CUDA device: a plain torch loop, the project's torch path, and the fused kernels; 1024-512.

`python -m benchmarks.gpu_sweeps [--out FILE]`. Each row states its precision. Bare sweeps are k sweeps of the chains alone; an
update is the whole step of training, with the adversary and its critic (torch search) in the last phase. Medians of repeated
calls by CUDA events, after a warm-up, in interleaved rounds. Without a CUDA device it says so and measures nothing.
"""

import argparse
import functools
import importlib.metadata
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.loops import Problem, plain_loop
from benchmarks.machine import revision, write_result
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
from pipeline.fused.sweeps import FusedChains
from pipeline.training.beam import BeamObjective

ROUNDS = 7
Kernel = tuple[Literal["torch", "fused"], Literal["float32", "bfloat16"]]
KERNELS: dict[str, Kernel] = {
    "torch": ("torch", "float32"),
    "fused": ("fused", "float32"),
    "fused_bfloat16": ("fused", "bfloat16"),
}
"""sampler.kernel and sampler.precision of each."""
CASES = {"128 chains, k = 100": (128, 100), "65 536 chains, k = 10": (65_536, 10)}


def objective(rows: torch.Tensor, chains: int, sweeps: int, kernel: Kernel, gamma: float) -> BeamObjective:
    """A driven BEAM on the device of `rows`, past its likelihood phase."""
    config = RunConfig(
        "benchmark",
        data=DataConfig(128),
        model=RBMConfig(1024, 512),
        sampler=SamplerConfig(chains, sweeps, statistics_sweeps=0, num_blocks=1, kernel=kernel[0], precision=kernel[1]),
        critic=CriticConfig(search="torch"),
        schedules=Schedules(Phase(updates=0), Phase(updates=10**6, gamma=gamma)),
        evaluation=EvaluationConfig(num_rows=100),
    )
    return build_beam(config, rows[100:], rows[:100], Comm(device=rows.device))


def milliseconds(call: Callable[[], Any], calls: int) -> float:
    """Mean time of `calls` calls on the device."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / calls


def contenders(rows: torch.Tensor, chains: int, sweeps: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    problem = Problem(1024, 512, chains, 128, sweeps, True, 0.95, rows)
    calls: dict[str, Callable[[], Any]] = {"plain torch loop, float32: update": plain_loop(problem)}
    for name, kernel in KERNELS.items():
        alone, full = (objective(rows, chains, sweeps, kernel, gamma) for gamma in (1.0, 0.1))

        def sweep(o: BeamObjective = alone) -> None:
            with torch.no_grad():
                if isinstance(o.chains, FusedChains):
                    o.chains.gibbs.sweep(0)
                else:
                    o.chains.advance(0, o.rbm.couplings())

        def update(o: BeamObjective, at: Counter[str]) -> None:
            o.step(at["step"], measure=False)
            at["step"] += 1

        calls |= {
            f"{name}: bare sweeps": sweep,
            f"{name}: update, likelihood alone": functools.partial(update, alone, Counter()),
            f"{name}: update with the adversary": functools.partial(update, full, Counter()),
        }
    return calls


def limits() -> dict[str, float]:
    """What this device reaches in the large, and what 200 dependent launches in a graph cost when they do nothing."""
    big = torch.empty(2**28, device="cuda")
    other, one = torch.empty_like(big), torch.zeros(1, device="cuda")
    found = {"copy_terabytes_per_second": 2 * big.nbytes / milliseconds(lambda: other.copy_(big), 10) / 1e9}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        square = torch.randn(8192, 8192, device="cuda", dtype=dtype)
        square @ square
        found[f"{name}_teraflops"] = 2 * 8192**3 / milliseconds(lambda m=square: m @ m, 5) / 1e9  # type: ignore[misc]
    one.add_(1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(200):
            one.add_(1)
    return {**found, "milliseconds_of_200_empty_launches": milliseconds(graph.replay, 20)}


def main() -> int:
    """Measure, print, write JSON; 2 without a CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sweeps_gpu.json"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    rows = torch.randn(5000, 1024, generator=torch.Generator().manual_seed(0)).cuda()
    record: dict[str, Any] = {
        "command": "python -m benchmarks.gpu_sweeps",
        "revision": revision(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": importlib.metadata.version("triton"),
        "limits": limits(),
        "cases": {},
    }
    print(", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in record["limits"].items()))
    for name, (chains, sweeps) in CASES.items():
        calls = contenders(rows, chains, sweeps)
        for call in calls.values():
            call()
            call()
        count = {label: max(1, round(200 / max(milliseconds(call, 1), 0.01))) for label, call in calls.items()}
        found: dict[str, list[float]] = {label: [] for label in calls}
        for _ in range(ROUNDS):
            for label, call in calls.items():
                found[label].append(milliseconds(call, count[label]))
        print(f"\n{name}")
        record["cases"][name] = {}
        for label, times in found.items():
            median = statistics.median(times)
            rate = chains * sweeps / median * 1e3
            record["cases"][name][label] = {
                "median_ms": median,
                "range_ms": [min(times), max(times)],
                "particle_sweeps_per_second": rate,
            }
            print(
                f"{label:44s} {median:9.3f} ms ({min(times):.3f} to {max(times):.3f}), {rate / 1e6:8.1f} M particle-sweeps/s"
            )
    write_result(args.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())

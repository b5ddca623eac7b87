"""What each critic costs an update, at the size of continuous MNIST (784-200, batch 100, 100 chains, 5 sweeps).

`python -m benchmarks.critics --mnist FOLDER [--updates N]` on one thread, FOLDER with the four IDX files. All cases go on
from one state after likelihood training, as in Fig. 10. Rounds are interleaved; medians with the range.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from data_prep.mnist import read_part
from pipeline.build import build_beam
from pipeline.comm import Comm
from pipeline.config import (
    AnyCriticConfig,
    CriticConfig,
    DataConfig,
    EvaluationConfig,
    ForestCriticConfig,
    NetworkCriticConfig,
    Phase,
    RBMConfig,
    RunConfig,
    SamplerConfig,
    Schedules,
)
from pipeline.training.beam import BeamObjective

ROUNDS = 5
WARM_UP = 300
CRITICS: dict[str, AnyCriticConfig] = {
    "neighbors, hidden (torch)": CriticConfig(search="torch"),
    "neighbors, hidden (faiss)": CriticConfig(search="faiss"),
    "neighbors, visible (torch)": CriticConfig(search="torch", feature="visible"),
    "neighbors, visible (faiss)": CriticConfig(search="faiss", feature="visible"),
    "forest, hidden": ForestCriticConfig(),
    "forest, visible": ForestCriticConfig(feature="visible"),
    "network, hidden": NetworkCriticConfig(),
    "network, visible": NetworkCriticConfig(feature="visible"),
}
BASE = RunConfig(
    "critics",
    data=DataConfig(100),
    model=RBMConfig(784, 200),
    sampler=SamplerConfig(num_chains=100, gibbs_steps=5),
    critic=None,
    schedules=Schedules(Phase(updates=WARM_UP), Phase(updates=10**6, gamma=1.0)),
    evaluation=EvaluationConfig(num_rows=100),
)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, required=True, help="folder of the four IDX files")
    parser.add_argument("--updates", type=int, default=20, help="updates per round and case")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/critics_cpu.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = read_part(args.mnist, "train").images[:20_000]
    rows = torch.from_numpy(images).reshape(len(images), -1).float() / 255
    rows += 0.01 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))  # pixels that are always 0

    def objective(config: RunConfig) -> BeamObjective:
        return build_beam(config, rows[1000:], rows[:1000], Comm())

    likelihood = objective(BASE)
    for step in range(WARM_UP):
        likelihood.step(step, measure=False)
    state = likelihood.state()
    schedules = Schedules(Phase(updates=WARM_UP), Phase(updates=10**6, gamma=0.1))
    cases = {"likelihood alone (gamma = 1)": likelihood} | {
        name: objective(dataclasses.replace(BASE, critic=critic, schedules=schedules))
        for name, critic in CRITICS.items()
    }
    at = dict.fromkeys(cases, WARM_UP)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for name, case in cases.items():
        case.load_state(state)
        for _ in range(5):  # the first has no memory yet
            case.step(at[name], measure=False)
            at[name] += 1
    for _ in range(ROUNDS):
        for name, case in cases.items():
            start = time.process_time()
            for _ in range(args.updates):
                case.step(at[name], measure=False)
                at[name] += 1
            seconds[name].append((time.process_time() - start) / args.updates)

    base = statistics.median(seconds["likelihood alone (gamma = 1)"])
    result = {
        "what": "milliseconds of CPU time per update (784-200, batch 100, 100 chains, 5 sweeps, gamma 0.1), one thread",
        "machine": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "cases": {
            name: {
                "median_ms": 1e3 * statistics.median(times),
                "range_ms": [1e3 * min(times), 1e3 * max(times)],
                "of_likelihood": statistics.median(times) / base,
                "critic": cases[name].config.to_dict()["critic"],
            }
            for name, times in seconds.items()
        },
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(
            f"{name:30s} {1e3 * median:7.1f} ms ({1e3 * min(times):.1f} to {1e3 * max(times):.1f}), "
            f"{median / base:.2f} of likelihood alone"
        )


if __name__ == "__main__":
    main()

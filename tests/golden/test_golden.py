"""No number moved unnoticed: 20 float64 steps of each recipe family against a reviewed file.

When a change is meant to move numbers: `python tests/golden/test_golden.py` writes the file anew; review its diff.
"""

import dataclasses
import json
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
from test_beam_invariance import rows_for, tiny

from pipeline.build import build_beam
from pipeline.comm import Comm
from pipeline.config import RBMConfig, RunConfig
from pipeline.critics.neighbors import BACKENDS

FILE = Path(__file__).parent / "beam.json"
PLAIN = dataclasses.replace(tiny(search="torch"), model=RBMConfig(23, 11, initial_std=1.0))
FAMILIES: dict[str, RunConfig] = {
    "gaussian, centered, one beta = 1 sweep (celeba_beam)": tiny(search="torch"),
    "gaussian, literal (celeba_beam_paper)": dataclasses.replace(
        PLAIN, sampler=dataclasses.replace(PLAIN.sampler, statistics_sweeps=0)
    ),
    "bernoulli, sampled hidden features": tiny("bernoulli", search="torch", feature="hidden_sample"),
    "plain Gibbs, paysage's Adam": dataclasses.replace(
        PLAIN,
        sampler=dataclasses.replace(PLAIN.sampler, beta_std=0.0),
        optimizer=dataclasses.replace(PLAIN.optimizer, convention="paysage"),
    ),
}


def first_of_equals(queries: Tensor, rows: Tensor, num_neighbors: int) -> Tensor:
    """The search backends' work, exactly: sampled features tie in masses, and theirs falls by rounding, by processor."""
    distances = (queries[:, None] - rows).square().sum(2)
    return distances.sort(dim=1, stable=True).indices[:, :num_neighbors]


def numbers(config: RunConfig) -> dict[str, float]:
    """Norms of the state after 20 steps, and the numbers that the last step reported."""
    rows = rows_for(config).double()
    assert config.critic is not None
    sampled = config.critic.feature == "hidden_sample"
    with mock.patch.dict(BACKENDS, {"torch": first_of_equals} if sampled else {}):
        objective = build_beam(config, rows[20:], rows[:20], Comm())
        for step in range(20):
            report = objective.step(step, measure=step == 19)
        state = {k: v for k, v in objective.state().items() if v.is_floating_point()}
    return {**{f"norm {k}": float(v.double().norm()) for k, v in state.items()}, **report}


@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_steps(family: str) -> None:
    expected = json.loads(FILE.read_text())[family]
    found = numbers(FAMILIES[family])
    assert found.keys() == expected.keys()
    wrong = {
        k: (found[k], expected[k]) for k in expected if found[k] != pytest.approx(expected[k], rel=1e-8, abs=1e-10)
    }
    assert not wrong


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps({name: numbers(config) for name, config in FAMILIES.items()}, indent=1) + "\n")

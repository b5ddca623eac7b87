"""What natural gradient and replica exchange are for: separated modes with a learned sigma, right at equilibrium.

Twelve modes of width 0.1 on a 3 x 4 grid, through the whole objective in a few seconds; the full grid and the ring are in
docs/research.md.
"""

import dataclasses

import pytest
import torch

from jobs.recipes import recipe
from pipeline.build import build_beam
from pipeline.comm import Comm
from pipeline.config import OptimizerConfig, RunConfig
from pipeline.data.mixtures import grid
from pipeline.metrics.coverage import ExactDivergences, exact_kl

MIXTURE = grid(rows=3, columns=4)


def trained(config: RunConfig) -> tuple[ExactDivergences, torch.Tensor]:
    """Exact divergences at the end, and sigma in the data's units."""
    generator = torch.Generator().manual_seed(3)
    rows = MIXTURE.sample(6000, generator)
    scale = rows.var(0).mean().sqrt()  # as data.scaling = isotropic does
    mean = rows.mean(0)
    scaled = (rows - mean) / scale
    objective = build_beam(config, scaled[1000:], scaled[:1000], Comm())
    for step in range(objective.schedule.total_steps):
        objective.step(step, measure=False)
    variance = objective.rbm.visible.variance()
    assert variance is not None
    found = exact_kl(objective.rbm, MIXTURE, 4000, generator, (mean, scale.expand(2)))
    return found, variance.sqrt() * scale


def small() -> RunConfig:
    """The recipe at 10 hidden units, 250 chains and rows, five temperatures and five sweeps, half the updates."""
    return recipe(
        "mixture_grid_learned_sigma",
        {
            "model.num_hidden": "10",
            "data.batch_size": "250",
            "sampler.num_chains": "250",
            "sampler.gibbs_steps": "5",
            "sampler.num_temperatures": "5",
            "schedules.likelihood.updates": "250",
            "schedules.noise.hold_updates": "50",
            "schedules.noise.fall_updates": "200",
            "schedules.adversarial.updates": "150",
        },
    )


def test_sigma_is_learned_and_the_equilibrium_is_right() -> None:
    found, sigma = trained(small())
    assert found.equilibrium.num_covered == 12 and found.equilibrium.precision > 0.97
    assert found.reverse.nats < 0.1 and found.forward.nats < 0.1
    torch.testing.assert_close(sigma, torch.full((2,), 0.1), rtol=0.05, atol=0)


@pytest.mark.slow
def test_adam_from_the_same_chains_does_not_get_there() -> None:
    config = dataclasses.replace(small(), optimizer=OptimizerConfig(beta1=0.5, beta2=0.9))
    found, _ = trained(config)
    assert found.reverse.nats > 0.5


@pytest.mark.slow
def test_without_exchange_the_modes_have_wrong_weights() -> None:
    found, sigma = trained(small().override({"sampler.num_temperatures": "1"}))
    assert found.reverse.nats > 0.2
    assert found.equilibrium.total_variation > 0.2
    assert float(sigma.max()) < 0.5, "the basins are found all the same"

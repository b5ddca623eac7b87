"""Recipes of mixtures that learn sigma and whose equilibrium is right, what the recommended ones do not reach.

docs/research.md has the record of the tries. Data: `python -m jobs.prepare mixture --name grid --out DIR`.
"""

import dataclasses

from jobs.recipes.mixtures import mixture_grid, mixture_ring
from pipeline.config import (
    Cosine,
    DataNoise,
    NaturalGradientConfig,
    Phase,
    PowerLaw,
    RBMConfig,
    RunConfig,
    SamplerConfig,
    Schedules,
)


def _learned_sigma(base: RunConfig, name: str) -> RunConfig:
    """Natural gradient, statistics from replica exchange, falling noise, gamma .5 from the start."""
    assert isinstance(base.model, RBMConfig)
    return dataclasses.replace(
        base,
        name=name,
        data=dataclasses.replace(base.data, batch_size=500),
        model=dataclasses.replace(base.model, fixed_std=None, initial_std=0.5, initial_thresholds="data"),
        sampler=SamplerConfig(
            num_chains=500, gibbs_steps=10, beta_std=0.0, num_temperatures=8, statistics_sweeps=0, num_blocks=1
        ),
        optimizer=NaturalGradientConfig(),
        schedules=Schedules(
            likelihood=Phase(updates=500, gamma=0.5, learning_rate=PowerLaw(0.2, 0.0)),
            adversarial=Phase(updates=300, gamma=0.5, learning_rate=Cosine(0.2, warmup_updates=0)),
            noise=DataNoise(initial=0.5, final=0.007, hold_updates=80, fall_updates=420),
        ),
        evaluation=dataclasses.replace(base.evaluation, every_updates=400),
        checkpoint=dataclasses.replace(base.checkpoint, every_updates=400),
    )


def mixture_grid_learned_sigma() -> RunConfig:
    """Research: the grid with a learned sigma, exact reverse KL below 0.1 nats; a BEAM of gamma .5. A minute.

    Against Table I: Adam -> natural gradient (hidden biases must reach hundreds while weights stay put); drifting temperatures
    -> replica exchange at 8 fixed ones (chains follow the equilibrium, so modes get the right weights); noise on the data that
    falls from half their sd to a tenth of a mode's in 500 updates, then 300 on the data (without it some seeds keep one axis
    as a single blob); rows scaled, sigma from half the data's, thresholds of hidden units at rows of the data; batches and
    chains 500, k = 10. Both phases have gamma .5. Learned sigma: .098 to .101 (the truth: .1).
    """
    return _learned_sigma(mixture_grid(), "mixture_grid_learned_sigma")


def mixture_ring_learned_sigma() -> RunConfig:
    """Research: the ring by the same settings as mixture_grid_learned_sigma. Half a minute."""
    return _learned_sigma(mixture_ring(), "mixture_ring_learned_sigma")

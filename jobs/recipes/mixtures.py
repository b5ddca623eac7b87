"""Recipes of Gaussian mixtures (Table I)."""

import dataclasses

from pipeline.config import (
    CheckpointConfig,
    CriticConfig,
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    Phase,
    PowerLaw,
    RBMConfig,
    RunConfig,
    SamplerConfig,
    Schedules,
)


def mixture_bimodal() -> RunConfig:
    """Table I, bimodal: a 1-10 BEAM on two Gaussians at -2 and 2, batch 100, k = 100, 10 epochs, gamma .5 from the start.

    Where the paper is silent: sigma starts at half the data's standard deviation and one sweep at beta = 1 comes before
    the statistics (at 1 the likelihood is at a saddle, and the driven chains bias a learned sigma); the decay is 1 per
    epoch. Compared are v with its noise. Data: `python -m jobs.prepare mixture --name bimodal --out DIR`. Expected: the
    sum of both divergences within 0.3 nats of the truth's own (about 0) after 1 000 updates, half a minute in one process.
    """
    return RunConfig(
        name="mixture_bimodal",
        data=DataConfig(batch_size=100),
        model=RBMConfig(1, 10, initial_std=0.5),
        sampler=SamplerConfig(num_chains=100, gibbs_steps=100, beta_std=0.9, beta_momentum=0.9),
        critic=CriticConfig(num_neighbors=5, search="torch"),
        optimizer=OptimizerConfig(beta1=0.5, beta2=0.9),
        schedules=Schedules(
            likelihood=Phase(updates=0),
            adversarial=Phase(epochs=10, gamma=0.5, learning_rate=PowerLaw(0.1, 1.0)),
        ),
        evaluation=EvaluationConfig(
            every_updates=250, num_rows=2000, minibatch_rows=2000, samples="noisy", selection_metric="kl_sum"
        ),
        checkpoint=CheckpointConfig(every_updates=250),
    )


def mixture_toy() -> RunConfig:
    """`make sweep QUICK=1`: mixture_bimodal with k = 10, one epoch of likelihood and three of the adversary; seconds."""
    base = mixture_bimodal()
    schedules = Schedules(
        likelihood=Phase(epochs=1, learning_rate=PowerLaw(0.1, 1.0)),
        adversarial=Phase(epochs=3, gamma=0.5, learning_rate=PowerLaw(0.05, 1.0)),
    )
    return dataclasses.replace(
        base,
        name="mixture_toy",
        sampler=SamplerConfig(num_chains=100, gibbs_steps=10, beta_std=0.9, beta_momentum=0.9),
        schedules=schedules,
        evaluation=dataclasses.replace(base.evaluation, every_updates=100),
    )

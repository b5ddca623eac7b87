"""Recipes of the upper layers of deep stacks; each is trained on the encoded rows of the layer below (`jobs.stack`)."""

import dataclasses

from jobs.recipes.mixtures import mixture_toy
from pipeline.config import (
    CheckpointConfig,
    CriticConfig,
    DataConfig,
    EvaluationConfig,
    Phase,
    PowerLaw,
    RBMConfig,
    RunConfig,
    SamplerConfig,
    Schedules,
)


def celeba_stack_top() -> RunConfig:
    """Second layer of a deep stack on celeba_beam: a 512-256 Bernoulli BEAM, hidden units centered. About 4 minutes.

    Worse than its bottom alone in every try on 6 400 photographs (one training seed): with `--encoding mean` Frechet
    distance 117 and recall .03 against 49 and .46; a 512-512 top on samples, 1 800 + 600 updates, 110 and .03. It smooths.
    """
    return RunConfig(
        name="celeba_stack_top",
        data=DataConfig(batch_size=128),
        model=RBMConfig(512, 256, "bernoulli", "bernoulli", center_hidden=True),
        sampler=SamplerConfig(num_chains=128, gibbs_steps=10, statistics_sweeps=1),
        critic=CriticConfig(num_neighbors=5, search="faiss"),
        schedules=Schedules(
            likelihood=Phase(updates=3000, learning_rate=PowerLaw(1e-3, 0.2, decay_updates=94)),
            adversarial=Phase(updates=1000, gamma=0.1, learning_rate=PowerLaw(1.5e-4, 0.0)),
        ),
        evaluation=EvaluationConfig(every_updates=1000, num_rows=800, samples="noisy"),
        checkpoint=CheckpointConfig(every_updates=500),
    )


def celeba_stack_tied() -> RunConfig:
    """Second layer with the flipped shape of celeba_beam, for `--tied`: 512 Bernoulli visible, 1 024 Gaussian hidden units.

    It starts from the bottom's own parameters, so the stack starts as the single layer. Expected on 6 400 photographs (one
    training seed): Frechet distance as of the bottom alone (48.4 against 49.1, within the spread), precision .65 against
    .54, recall .42 against .46. Without the likelihood phase: Frechet distance 65.
    """
    base = celeba_stack_top()
    schedules = Schedules(
        likelihood=Phase(updates=500, learning_rate=PowerLaw(2e-4, 0.2, decay_updates=94)),
        adversarial=Phase(updates=300, gamma=0.1, learning_rate=PowerLaw(1e-4, 0.0)),
    )
    model = RBMConfig(512, 1024, "bernoulli", "gaussian", center_visible=True)
    return dataclasses.replace(base, name="celeba_stack_tied", model=model, schedules=schedules)


def stack_toy() -> RunConfig:
    """Second layer on mixture_toy at toy size, for CI: a 10-5 Bernoulli BEAM; seconds."""
    base = mixture_toy()
    schedules = Schedules(
        likelihood=Phase(updates=60, learning_rate=PowerLaw(0.01, 0.0)),
        adversarial=Phase(updates=40, gamma=0.5, learning_rate=PowerLaw(0.005, 0.0)),
    )
    return dataclasses.replace(
        base,
        name="stack_toy",
        data=DataConfig(batch_size=100),
        model=RBMConfig(10, 5, "bernoulli", "bernoulli", center_hidden=True),
        schedules=schedules,
        evaluation=EvaluationConfig(every_updates=100, num_rows=200, num_components=4, samples="noisy"),
        checkpoint=CheckpointConfig(every_updates=50, log_every_updates=10),
    )

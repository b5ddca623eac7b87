"""Recipes of handwritten digits (Table II): MNIST, continuous and binary. Data: `python -m jobs.prepare mnist`.

Times are for one thread of a 2-core CPU at half the table's number of updates (`epochs_scale=0.5`). One block: four blocks
of 25 rows take 1.8 times as long (43 against 78 updates/s), more than a second worker gains.
"""

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


def mnist_beam_paper() -> RunConfig:
    """Table II, literally, on continuous MNIST: 784-200, batch 100, k = 5, 25 + 30 epochs, gamma .1, 2 neighbors.

    Where the paper is silent: sigma starts at the data's and is learned without a floor, statistics come straight from the
    driven chains (both as in the authors' library), 100 chains, decay .1 per epoch. Under this reading sigma shrinks all the
    time, and the reverse KL of fresh chains rises in the likelihood phase, as in Fig. 5. The paper's 6e5 samples are 60 000,
    of which 54 000 are trained on. Expected: 4 minutes.
    """
    return RunConfig(
        name="mnist_beam_paper",
        data=DataConfig(batch_size=100),
        model=RBMConfig(784, 200, initial_std=1.0, initial_smoothing=0.01, min_std=1e-3),
        sampler=SamplerConfig(
            num_chains=100, gibbs_steps=5, beta_std=0.95, beta_momentum=0.9, statistics_sweeps=0, num_blocks=1
        ),
        critic=CriticConfig(num_neighbors=2, search="torch"),
        optimizer=OptimizerConfig(beta1=0.9, beta2=0.999),
        schedules=Schedules(
            likelihood=Phase(epochs=25, learning_rate=PowerLaw(1e-3, 0.1)),
            adversarial=Phase(epochs=30, gamma=0.1, learning_rate=PowerLaw(1e-4, 0.1)),
        ),
        evaluation=EvaluationConfig(
            every_updates=2700, num_rows=1000, minibatch_rows=1000, samples="noisy", selection_metric="kl_sum"
        ),
        checkpoint=CheckpointConfig(every_updates=1350),
    )


def mnist_beam() -> RunConfig:
    """Recommended for continuous MNIST: mnist_beam_paper with three deviations. 4 minutes.

    1. Sigma starts at half the data's standard deviation: at 1 the likelihood is flat to second order in the weights.
    2. One sweep at beta = 1 before the statistics: the driven chains' own variance, s / beta, biases a learned sigma.
    3. Sigma is at least .05: with shrinking sigma the chains freeze from a wide start.
    """
    base = mnist_beam_paper()
    model = RBMConfig(784, 200, initial_std=0.5, initial_smoothing=0.01, min_std=0.05)
    assert base.sampler is not None
    return dataclasses.replace(
        base, name="mnist_beam", model=model, sampler=dataclasses.replace(base.sampler, statistics_sweeps=1)
    )


def mnist_binary_beam_paper() -> RunConfig:
    """Table II on binary MNIST (Fig. 6, second row): Bernoulli visible units, otherwise mnist_beam_paper. 4 minutes."""
    model = RBMConfig(784, 200, visible_units="bernoulli")
    return dataclasses.replace(mnist_beam_paper(), name="mnist_binary_beam_paper", model=model)


def mnist_binary_beam() -> RunConfig:
    """Binary MNIST with one sweep at beta = 1 before the statistics: driven chains alone have the averages of hotter ones.

    The only deviation, since no setting that was tried (docs/results.md) gains anything from the adversary on binary digits.
    """
    base = mnist_binary_beam_paper()
    assert base.sampler is not None
    sampler = dataclasses.replace(base.sampler, statistics_sweeps=1)
    return dataclasses.replace(base, name="mnist_binary_beam", sampler=sampler)


def digits_beam() -> RunConfig:
    """8x8 digits, 64-64, likelihood and then the adversary at the same rate: seconds. Data: `python -m jobs.prepare digits`.

    Small and real: what the repository's tests of the whole path train on, and where the critic's sign shows.
    """
    base = mnist_beam()
    return dataclasses.replace(
        base,
        name="digits_beam",
        model=RBMConfig(64, 64, initial_std=0.5, initial_smoothing=0.01, min_std=0.05),
        schedules=Schedules(
            likelihood=Phase(epochs=60, learning_rate=PowerLaw(1e-2, 0.1)),
            adversarial=Phase(epochs=60, gamma=0.1, learning_rate=PowerLaw(1e-2, 0.1)),
        ),
        evaluation=dataclasses.replace(base.evaluation, every_updates=250, num_rows=200, minibatch_rows=200),
    )

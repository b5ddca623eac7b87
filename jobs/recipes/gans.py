"""Recipes of GANs: mixtures (Table I), digits (Table II, Fig. 12) and faces (Table III), logistic and Wasserstein.

What the paper leaves out is read in the same way everywhere: one update of the critic per update of the generator, no
decay of the learning rate, standard normal noise, as many generated rows as data in a batch, the logistic loss in its
non-saturating form. Of a Wasserstein critic all parameters are clamped. An epoch is one pass over the training rows.

The literal family: each docstring says what the tables leave out and how it is read here. The recommended family is of
mixtures alone, mixture_*_gan_recommended: what a GAN reaches there when its settings are looked for as those of the BEAMs were.
For Wasserstein critics, digits and faces no better settings than the paper's were looked for.

Dense recipes have one block, so more than one worker has nothing to do there: blocks would be a few rows, and cost speed.
"""

import dataclasses

from pipeline.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    GANConfig,
    OptimizerConfig,
    Phase,
    PowerLaw,
    RunConfig,
    Schedules,
)


def _gan(
    name: str, model: GANConfig, batch_size: int, epochs: int, rate: float, evaluation: EvaluationConfig
) -> RunConfig:
    """A run with Adam at (0.5, 0.9) and a constant rate, as all tables have it."""
    return RunConfig(
        name=name,
        data=DataConfig(batch_size=batch_size),
        model=model,
        sampler=None,
        critic=None,
        optimizer=OptimizerConfig(beta1=0.5, beta2=0.9),
        schedules=Schedules(likelihood=Phase(epochs=epochs, learning_rate=PowerLaw(rate, 0.0))),
        evaluation=evaluation,
        checkpoint=CheckpointConfig(every_updates=evaluation.every_updates),
    )


def _wasserstein(base: RunConfig, name: str) -> RunConfig:
    assert isinstance(base.model, GANConfig)
    return dataclasses.replace(base, name=name, model=dataclasses.replace(base.model, loss="wgan"))


def _of_points(every_updates: int) -> EvaluationConfig:
    return EvaluationConfig(every_updates, num_rows=2000, minibatch_rows=2000, selection_metric="kl_sum")


def mixture_bimodal_gan() -> RunConfig:
    """Table I, bimodal: GAN 1-32(-1) against 1-32-1, batch 100, 100 epochs at 0.002.

    The table's generator "1-32" lacks the output; it is one linear unit here, and the first number is the noise.
    """
    model = GANConfig("gan", "dense", 1, 1, (32,), (32,), clamp=0.1, num_blocks=1)
    return _gan("mixture_bimodal_gan", model, 100, 100, 0.002, _of_points(1000))


def mixture_bimodal_wgan() -> RunConfig:
    """Table I, bimodal: the WGAN, clamped at .1, otherwise mixture_bimodal_gan."""
    return _wasserstein(mixture_bimodal_gan(), "mixture_bimodal_wgan")


def mixture_ring_gan() -> RunConfig:
    """Table I, ring: GAN 2-64-64(-2) against 2-64-64-1, batch 100, 300 epochs at 0.001.

    The table's generator "2-64-64" lacks the output; it is two linear units here, and the first number is the noise.
    """
    model = GANConfig("gan", "dense", 2, 2, (64, 64), (64, 64), clamp=0.1, num_blocks=1)
    return _gan("mixture_ring_gan", model, 100, 300, 0.001, _of_points(3000))


def mixture_ring_wgan() -> RunConfig:
    """Table I, ring: the WGAN, clamped at .1, otherwise mixture_ring_gan."""
    return _wasserstein(mixture_ring_gan(), "mixture_ring_wgan")


def mixture_grid_gan() -> RunConfig:
    """Table I, grid: GAN 2-128-128-128(-2) against 2-128-128-128-1, batch 1 000, 300 epochs at 0.00001.

    The table's generator lacks the output; it is two linear units here, and the first number is the noise. The batch of
    1 000 is of 1e5 samples, 100 updates an epoch.
    """
    model = GANConfig("gan", "dense", 2, 2, (128,) * 3, (128,) * 3, clamp=0.1, num_blocks=1)
    return _gan("mixture_grid_gan", model, 1000, 300, 1e-5, _of_points(3000))


def mixture_grid_wgan() -> RunConfig:
    """Table I, grid: the WGAN, clamped at .1, otherwise mixture_grid_gan."""
    return _wasserstein(mixture_grid_gan(), "mixture_grid_wgan")


def _recommended(
    base: RunConfig, noise: int, hidden: tuple[int, ...], epochs: int, rate: PowerLaw, beta1: float = 0.5
) -> RunConfig:
    """Another size, length and rate of a literal run, in batches of 500 with Adam's second moments over 100 updates."""
    assert isinstance(base.model, GANConfig)
    return dataclasses.replace(
        base,
        name=f"{base.name}_recommended",
        data=DataConfig(batch_size=500),
        model=dataclasses.replace(base.model, noise_size=noise, generator_hidden=hidden, critic_hidden=hidden),
        optimizer=OptimizerConfig(beta1=beta1, beta2=0.99),
        schedules=Schedules(likelihood=Phase(epochs=epochs, learning_rate=rate)),
    )


def mixture_bimodal_gan_recommended() -> RunConfig:
    """Bimodal, GAN, recommended. Deviations from mixture_bimodal_gan, the literal one:

    - 8 values of noise: of one value the generator makes a curve, which must cross the gap;
    - batches of 500, 300 epochs, a rate that falls: at the constant rate the sides' weights swing to the end.
    """
    return _recommended(mixture_bimodal_gan(), 8, (32,), 300, PowerLaw(0.002, 0.02))


def mixture_ring_gan_recommended() -> RunConfig:
    """Ring, GAN, recommended. Deviations from mixture_ring_gan, the literal one:

    - 4 values of noise: with the data's own 2 modes shrink to lines (forward KL 1.8), with 8 precision is .03 lower;
    - 128-128-128 in both networks, as on the grid: with 64-64 neighbors differ in weight;
    - batches of 500, 1 000 epochs, a rate that falls, for the same reason as on two modes.
    """
    return _recommended(mixture_ring_gan(), 4, (128,) * 3, 1000, PowerLaw(0.001, 0.02))


def mixture_grid_gan_recommended() -> RunConfig:
    """Grid, GAN, recommended. Deviations from mixture_grid_gan, the literal one:

    - a rate of .001 that falls, from .00001: 30 000 updates at the literal rate leave precision at .43;
    - 3 values of noise: with 2 modes shrink to lines, with 4 one to four modes are lost, with 8 half of them;
    - Adam without momentum (beta1 = 0), batches of 500, 80 epochs.
    """
    return _recommended(mixture_grid_gan(), 3, (128,) * 3, 80, PowerLaw(0.001, 0.1), beta1=0.0)


def mnist_gan() -> RunConfig:
    """Table II: GAN 100-164-164(-784, sigmoid) against 784-164-164-1, batch 100, 55 epochs at .001.

    The table's generator lacks its 784 outputs. Its caption says weights start at standard deviation .1 (generator) and
    .02 (critic). The data are images in [0, 1], without noise.
    """
    model = GANConfig(
        "gan",
        "dense",
        num_visible=784,
        noise_size=100,
        generator_hidden=(164, 164),
        critic_hidden=(164, 164),
        output="sigmoid",
        generator_initial_std=0.1,
        critic_initial_std=0.02,
        clamp=0.01,
        num_blocks=1,
    )
    evaluation = EvaluationConfig(2700, num_rows=1000, minibatch_rows=1000, selection_metric="kl_sum")
    return _gan("mnist_gan", model, 100, 55, 0.001, evaluation)


def mnist_wgan() -> RunConfig:
    """Table II: the WGAN, clamped at .01, otherwise mnist_gan."""
    return _wasserstein(mnist_gan(), "mnist_wgan")


def mnist_dcgan() -> RunConfig:
    """Fig. 12: a convolutional GAN on MNIST, 28x28 in two steps of stride 2 with 32 and 64 channels.

    The paper says no more of it than that it is a DCGAN: architecture and initial weights (.02) are those of Table III cut
    to the size of a digit, rate and batch size those of Table III, 10 epochs.
    """
    model = GANConfig(
        "gan",
        "convolutional",
        num_visible=784,
        noise_size=100,
        generator_hidden=(),
        critic_hidden=(),
        output="sigmoid",
        batch_norm=True,
        generator_initial_std=0.02,
        critic_initial_std=0.02,
        clamp=0.01,
        precision="auto",
    )
    evaluation = EvaluationConfig(500, num_rows=1000, minibatch_rows=1000, selection_metric="kl_sum")
    return _gan("mnist_dcgan", model, 128, 10, 0.0002, evaluation)


def celeba_dcgan() -> RunConfig:
    """Table III: a convolutional GAN of the autoencoder's architecture, end to end on 64x64 pixels, batch 128, 10 epochs.

    Read so: 100 values of noise and one fully connected layer before the generator's stack, one after the critic's; batch
    normalization in all hidden layers but the critic's first, with scales that start at 1; a sigmoid output, and images
    centered to [-1, 1] inside the critic. The monitors compare principal components of pixels, not the latents of a BEAM.
    Ten epochs are 12 720 updates on the full set and 500 on 6 400 photographs: `epochs_scale` makes up for that. About 2
    updates a second on one core in bfloat16.
    """
    base = mnist_dcgan()
    assert isinstance(base.model, GANConfig)
    evaluation = EvaluationConfig(200, num_rows=800, minibatch_rows=800)
    return _gan("celeba_dcgan", dataclasses.replace(base.model, num_visible=12288), 128, 10, 0.0002, evaluation)


def celeba_dcwgan() -> RunConfig:
    """Table III: the Wasserstein form, clamped at .01 (scales of the normalization too), otherwise celeba_dcgan."""
    return _wasserstein(celeba_dcgan(), "celeba_dcwgan")


GANS = (
    mixture_bimodal_gan,
    mixture_bimodal_gan_recommended,
    mixture_bimodal_wgan,
    mixture_ring_gan,
    mixture_ring_gan_recommended,
    mixture_ring_wgan,
    mixture_grid_gan,
    mixture_grid_gan_recommended,
    mixture_grid_wgan,
    mnist_gan,
    mnist_wgan,
    mnist_dcgan,
    celeba_dcgan,
    celeba_dcwgan,
)
"""All of them."""

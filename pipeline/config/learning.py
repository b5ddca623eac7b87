"""Settings of learning: optimizers, learning rates, the phases of a run and the noise on its data."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.validation import require, settings
from pipeline.config.values import Count, CountOrZero, Positive, PositiveOrZero, Real, Share

MAX_NATURAL_PARAMETERS = 4096
"""Parameters of the largest model that natural gradient takes: it solves a dense system of that size at each update."""


@settings("optimizer.")
class OptimizerConfig:
    """Adam. `paysage` is the authors' library's variant: constant bias corrections, moments that start at the first
    gradient; in steady state its steps are sqrt(1 - beta2) / (1 - beta1) times those of standard Adam.
    """

    beta1: Share = 0.9
    beta2: Share = 0.999
    epsilon: Positive = 1e-8
    convention: Literal["standard", "paysage"] = "standard"


@settings("optimizer.")
class NaturalGradientConfig:
    """Natural gradient, of an RBM with few parameters (pipeline/learning/natural_gradient.py). It has no moments."""

    damping: Positive = 3e-3
    """Addend of the Fisher matrix's diagonal, in each parameter's own unit."""
    max_divergence: Positive = 2e-3
    """Largest KL divergence, in nats to second order, of the densities before and after a step."""


AnyOptimizerConfig = OptimizerConfig | NaturalGradientConfig


@settings("schedules.<phase>.learning_rate.")
class PowerLaw:
    """lr(t) = initial / (1 + decay * t), t in whole decay units since the phase began.

    `paysage` is the authors' library's rule, initial / (1 + decay * initial * t).
    """

    initial: Positive = 1e-3
    decay: PositiveOrZero = 0.1
    decay_updates: Count | None = None
    """Updates in one decay unit, times epochs_scale; None: one epoch."""
    convention: Literal["standard", "paysage"] = "standard"


@settings("schedules.<phase>.learning_rate.")
class Cosine:
    """lr from `initial` to zero along half a cosine over the phase, after a linear warm-up."""

    initial: Positive = 2e-3
    warmup_updates: CountOrZero = 50


@settings("schedules.<phase>.")
class Phase:
    """A stretch of training: its length, in epochs or in updates (one of the two), gamma, and the learning rate."""

    epochs: PositiveOrZero | None = None
    updates: CountOrZero | None = None
    gamma: Annotated[Real, Field(ge=0, le=1)] = 1.0
    """Weight of the likelihood; 1 - gamma is the adversary's (Eq. 9)."""
    learning_rate: PowerLaw | Cosine = field(default_factory=PowerLaw)

    def __post_init__(self) -> None:
        lengths = (self.epochs, self.updates)
        require(lengths.count(None) == 1, "epochs, updates", lengths, "exactly one of the two, the other null")

    def num_updates(self, steps_per_epoch: int, epochs_scale: float) -> int:
        """Updates of this phase, rounded; never scaled below 1 unless its length is 0."""
        length = self.updates if self.epochs is None else self.epochs * steps_per_epoch
        assert length is not None
        return max(1, round(length * epochs_scale)) if length else 0


@settings("schedules.noise.")
class DataNoise:
    """Gaussian noise added to the rows of each batch, which falls over a run: `initial` for
    hold_updates, then by equal ratios to `final` over fall_updates, then none.

    Modes that the noise has merged come apart one from another while sigma follows it, instead of
    being found all at once.
    """

    initial: Real = 0.5
    """Standard deviation, in the units of the rows that the model sees; at least `final`."""
    final: Positive = 0.01
    """Standard deviation at the end of the fall, in the same units."""
    hold_updates: CountOrZero = 100
    """Updates at `initial`, times epochs_scale, as the length of a phase."""
    fall_updates: Count = 400
    """Updates of the fall, times epochs_scale."""

    def __post_init__(self) -> None:
        require(self.final <= self.initial, "final", self.final, "positive, at most noise.initial")


@settings("schedules.")
class Schedules:
    """The phases: maximum likelihood, then the adversary. An autoencoder and a GAN have the first only."""

    likelihood: Phase = field(default_factory=lambda: Phase(epochs=10))
    adversarial: Phase = field(default_factory=lambda: Phase(updates=0, gamma=0.1))
    noise: DataNoise | None = None
    """Noise on the rows of an RBM with Gaussian visible units; null: none."""

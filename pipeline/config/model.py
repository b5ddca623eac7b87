"""Settings of the models: the restricted Boltzmann machine, the autoencoder and the generative adversarial network."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.validation import require, settings
from pipeline.config.values import Count, Inner, Positive, Precision, Real, Share, Whole, Widths

UnitKind = Literal["bernoulli", "gaussian", "onehot"]


@settings("model.")
class RBMConfig:
    """A restricted Boltzmann machine (Eq. 1)."""

    num_visible: Count = 1024
    num_hidden: Count = 512
    visible_units: UnitKind = "gaussian"
    hidden_units: UnitKind = "bernoulli"
    initial_std: Annotated[Real, Field(gt=0, le=2)] = 0.5
    """Standard deviation of a Gaussian visible unit at the start, as a share of that in the data.
    At 1 the likelihood is flat to second order in the weights (a saddle); at 0.5 it is not."""
    initial_smoothing: Share = 0.0
    """Share f in the variance at the start, initial_std^2 ((1 - f) Var + f), for units that hardly vary
    in the data; the authors' library takes 0.01."""
    fixed_std: Positive | None = None
    """Standard deviation of Gaussian visible units, in units of the rows, constant; None: learned."""
    initial_thresholds: Literal["origin", "data"] = "origin"
    """Start of the biases. origin: hidden biases are 0, visible biases are the data's mean. data, for
    Gaussian visible and Bernoulli hidden units alone: each hidden unit switches at a hyperplane through
    a random row, and the mean of v over all hidden states is the data's."""
    min_std: Inner = 0.01
    """Floor of a Gaussian unit's standard deviation: the log-variance is clamped at 2 log(min_std) after
    each update."""
    center_visible: bool = False
    """Subtract the data's mean, constant, from the visible units."""
    center_hidden: bool = False
    """Subtract from the hidden units a moving average of their mean activation on the data."""
    centering_rate: Annotated[Real, Field(gt=0, le=1)] = 0.01
    """Share of the new batch mean in that moving average, per update."""

    def __post_init__(self) -> None:
        plain = (self.visible_units, self.hidden_units) == ("gaussian", "bernoulli") and not self.center_hidden
        allowed = "origin, unless visible units are gaussian and hidden ones bernoulli and not centered"
        require(plain or self.initial_thresholds == "origin", "initial_thresholds", self.initial_thresholds, allowed)


@settings("model.")
class AutoencoderConfig:
    """The paper's convolutional autoencoder, 3x64x64 -> 32x32x32 -> 64x16x16 -> 64x8x8 -> 64x4x4 = 1024 and back."""

    precision: Precision = "auto"
    """Numbers that convolutions are computed in, in training and encoding. `auto`: bfloat16 where the
    device computes it natively, else float32; the choice is recorded, since it changes bits."""
    num_blocks: Annotated[Whole, Field(ge=1, le=1024)] = 4
    """Fixed blocks of rows into which every batch is dealt (at most this many workers have work)."""
    flip: bool = True
    """Mirror each training image with probability 1/2."""


@settings("model.")
class GANConfig:
    """A generative adversarial network: a generator of rows from noise, and a critic of rows, trained in turn."""

    loss: Literal["gan", "wgan"] = "gan"
    """gan: the logistic loss, non-saturating; wgan: the Wasserstein loss, the critic clamped."""
    architecture: Literal["dense", "convolutional"] = "dense"
    """dense: fully connected layers of the widths below. convolutional: kernels of 4 and strides of 2,
    for images of 28x28 (784 values) and of 64x64 in color (12 288 values; there it is the autoencoder's
    architecture)."""
    num_visible: Count = 2
    """Values in a row of the data, which is the size of what the generator puts out."""
    noise_size: Count = 2
    """Values of the noise, independent standard normal, that the generator starts from."""
    generator_hidden: Widths = (64, 64)
    """Widths of the dense generator's layers between noise and row; () for a convolutional one."""
    critic_hidden: Widths = (64, 64)
    """Widths of the dense critic's layers between row and value; () for a convolutional one."""
    output: Literal["linear", "sigmoid"] = "linear"
    """Last layer of the generator; sigmoid is for rows in [0, 1]."""
    batch_norm: bool = False
    """Normalize hidden layers over the global batch, in the critic all but the first."""
    generator_initial_std: Positive = 0.2
    """Standard deviation of the generator's weights at the start; biases are 0."""
    critic_initial_std: Positive = 0.2
    """Standard deviation of the critic's weights at the start; biases are 0."""
    clamp: Positive = 0.1
    """Bound of the wgan critic's parameters, which each of its updates clamps to +-clamp."""
    critic_steps: Count = 1
    """Updates of the critic, each on a batch of its own, per update of the generator. A run's length
    and its epochs count updates of the generator."""
    precision: Precision = "float32"
    """Numbers that a convolutional network's products are computed in; `auto`: bfloat16 where the
    device computes it natively."""
    num_blocks: Annotated[Whole, Field(ge=1, le=1024)] = 4
    """Fixed blocks of rows into which every batch is dealt (at most this many workers have work)."""

    def __post_init__(self) -> None:
        if self.architecture == "convolutional":
            for name in ("generator_hidden", "critic_hidden"):
                widths = getattr(self, name)
                require(not widths, name, widths, "empty: a convolutional network has its own widths")
            sizes = "784 (28x28) or 12288 (64x64x3) for a convolutional network"
            require(self.num_visible in (784, 12288), "num_visible", self.num_visible, sizes)

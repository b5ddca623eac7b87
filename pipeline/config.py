"""The settings of a run: frozen dataclasses, one key space of dotted paths, every value checked when it is made.

A run is defined by its RunConfig alone: sizes are global, so the number of workers, the kind of device and the places
of files are arguments of the job and never appear here. `critic.num_neighbors` is the same word in `--set`, in a sweep's
space, in MLflow's params and in error messages.
"""

import dataclasses
import difflib
import json
import re
import reprlib
import sys
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

CONFIG_VERSION = 1
"""Written into every saved config; a reader refuses a version it does not know."""


class ConfigError(ValueError):
    """A setting that cannot be: says which key, its value, what is allowed."""


def _require(ok: bool, key: str, value: object, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{key} = {reprlib.repr(value)}: must be {allowed}")


UnitKind = Literal["bernoulli", "gaussian", "onehot"]


@dataclass(frozen=True)
class RBMConfig:
    """A restricted Boltzmann machine (Eq. 1)."""

    num_visible: int = 1024
    num_hidden: int = 512
    visible_units: UnitKind = "gaussian"
    hidden_units: UnitKind = "bernoulli"
    initial_std: float = 0.5
    """Standard deviation of a Gaussian visible unit at the start, as a share of its standard deviation in the data. At 1
    the likelihood is flat to second order in the weights (a saddle); at 0.5 it is not."""
    initial_smoothing: float = 0.0
    """f in the variance at the start, initial_std^2 ((1 - f) Var + f), for units that hardly vary in the data; the authors'
    library takes 0.01."""
    fixed_std: float | None = None
    """Standard deviation of the Gaussian visible units, in the units of the rows, held constant; None: it is learned."""
    initial_thresholds: Literal["origin", "data"] = "origin"
    """Of Gaussian visible and Bernoulli hidden units. origin: hidden biases 0, visible biases the data's mean. data: each
    hidden unit switches at a hyperplane through a random row, and the mean of v over all hidden states is the data's."""
    min_std: float = 0.01
    """Floor of a Gaussian unit's standard deviation: the log-variance is clamped at 2 log(min_std) after each update."""
    center_visible: bool = False
    """Offsets of the visible units: the data mean, constant."""
    center_hidden: bool = False
    """Offsets of the hidden units: a moving average of their mean activation on the data (see centering_rate)."""
    centering_rate: float = 0.01
    """Share of the new batch mean in the moving average of hidden offsets, per update."""

    def __post_init__(self) -> None:
        _require(self.num_visible >= 1, "model.num_visible", self.num_visible, "at least 1")
        _require(self.num_hidden >= 1, "model.num_hidden", self.num_hidden, "at least 1")
        _require(0 < self.initial_std <= 2, "model.initial_std", self.initial_std, "in (0, 2]")
        _require(0 <= self.initial_smoothing < 1, "model.initial_smoothing", self.initial_smoothing, "in [0, 1)")
        _require(self.fixed_std is None or self.fixed_std > 0, "model.fixed_std", self.fixed_std, "positive, or null")
        _require(
            self.initial_thresholds == "origin"
            or ((self.visible_units, self.hidden_units) == ("gaussian", "bernoulli") and not self.center_hidden),
            "model.initial_thresholds",
            self.initial_thresholds,
            "origin, unless visible units are gaussian and hidden ones bernoulli and not centered",
        )
        _require(0 < self.min_std < 1, "model.min_std", self.min_std, "in (0, 1)")
        _require(0 < self.centering_rate <= 1, "model.centering_rate", self.centering_rate, "in (0, 1]")


@dataclass(frozen=True)
class AutoencoderConfig:
    """The paper's convolutional autoencoder, 3x64x64 -> 32x32x32 -> 64x16x16 -> 64x8x8 -> 64x4x4 = 1024 and back."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of convolutions in training and encoding. `auto`: bfloat16 where the device computes it natively, else float32;
    the choice is recorded, since it changes bits."""
    num_blocks: int = 4
    """Fixed blocks of rows into which every batch is dealt (at most this many workers have work)."""
    flip: bool = True
    """Mirror each training image with probability 1/2."""

    def __post_init__(self) -> None:
        _require(1 <= self.num_blocks <= 1024, "model.num_blocks", self.num_blocks, "1 to 1024")


@dataclass(frozen=True)
class GANConfig:
    """A generative adversarial network: a generator of rows from noise, and a critic of rows, trained in turn."""

    loss: Literal["gan", "wgan"] = "gan"
    """gan: the logistic loss, in its non-saturating form; wgan: the Wasserstein loss, the critic's weights clamped."""
    architecture: Literal["dense", "convolutional"] = "dense"
    """dense: fully connected layers of the widths below. convolutional: kernels of 4 and strides of 2, for images of
    28x28 (784 values) and of 64x64 in color (12 288 values; there it is the autoencoder's architecture)."""
    num_visible: int = 2
    """Values in a row of the data, what the generator puts out."""
    noise_size: int = 2
    """Values of the noise, independent standard normal, that the generator starts from."""
    generator_hidden: tuple[int, ...] = (64, 64)
    """Widths of the dense generator's layers between noise and row; () for a convolutional one."""
    critic_hidden: tuple[int, ...] = (64, 64)
    """Widths of the dense critic's layers between row and value; () for a convolutional one."""
    output: Literal["linear", "sigmoid"] = "linear"
    """Of the generator; sigmoid for rows in [0, 1]."""
    batch_norm: bool = False
    """Normalize hidden layers over the global batch, in the critic all but the first."""
    generator_initial_std: float = 0.2
    """Standard deviation of the generator's weights at the start; biases are 0."""
    critic_initial_std: float = 0.2
    """Standard deviation of the critic's weights at the start; biases are 0."""
    clamp: float = 0.1
    """wgan: after each of its updates the critic's parameters are clamped to [-clamp, clamp]."""
    critic_steps: int = 1
    """Updates of the critic, each on a batch of its own, per update of the generator. A run's length and its epochs count
    updates of the generator."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of products of a convolutional network; `auto`: bfloat16 where the device computes it natively."""
    num_blocks: int = 4
    """Fixed blocks of rows into which every batch is dealt (at most this many workers have work)."""

    def __post_init__(self) -> None:
        for name in ("num_visible", "noise_size", "critic_steps"):
            _require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        for name in ("generator_initial_std", "critic_initial_std", "clamp"):
            _require(getattr(self, name) > 0, f"model.{name}", getattr(self, name), "positive")
        _require(1 <= self.num_blocks <= 1024, "model.num_blocks", self.num_blocks, "1 to 1024")
        dense = self.architecture == "dense"
        for name in ("generator_hidden", "critic_hidden"):
            widths = getattr(self, name)
            _require(all(width >= 1 for width in widths), f"model.{name}", widths, "widths of at least 1")
            _require(dense or not widths, f"model.{name}", widths, "empty: a convolutional network has its own widths")
        sizes = "784 (28x28) or 12288 (64x64x3) for a convolutional network"
        _require(dense or self.num_visible in (784, 12288), "model.num_visible", self.num_visible, sizes)


@dataclass(frozen=True)
class SamplerConfig:
    """Persistent chains and how they move (Algorithms 1 and 2)."""

    num_chains: int = 128
    gibbs_steps: int = 100
    """Sweeps of block Gibbs per update (k)."""
    beta_std: float = 0.95
    """Standard deviation of the inverse temperature's stationary law; 0 is plain Gibbs, bit for bit."""
    beta_momentum: float = 0.9
    """Lag-1 autocorrelation (phi) of the inverse temperature."""
    min_beta: float = 1e-3
    """Guard: a sweep uses max(beta, min_beta), since a Gaussian unit has variance sigma^2 / beta. The process itself is
    not touched, so the law in use is the Gamma law clipped from below."""
    statistics_sweeps: int = 1
    """Sweeps at beta = 1 on a copy of the chains before the statistics are taken; 0 is the paper, 1 removes the bias of
    a learned sigma."""
    num_temperatures: int = 1
    """1: chains at drifting temperatures (above). More: replica exchange; each of the num_chains chains is at beta = 1 and has
    num_temperatures - 1 hotter replicas that trade places (pipeline/samplers/exchange.py); beta_std must be 0."""
    lowest_beta: float = 0.05
    """Inverse temperature of the hottest replicas; those between lie at equal ratios."""
    num_blocks: int = 4
    """Fixed blocks into which chains and batches are dealt; at most this many workers have work. More blocks are smaller
    and cost some speed of the matrix products; the number is part of what defines the run."""
    kernel: Literal["torch", "fused"] = "torch"
    """How the sweeps of training run: torch, the reference; on a CUDA device also as fused Triton kernels in one graph
    (pipeline/fused/sweeps.py). The kernels agree with torch in law, not in bits. With one worker, standard Adam, up to 8192
    chains and data rows and, if there is a critic, neighbors among hidden means or visible states (above 1024 rows by torch's
    search), all else of an update is fused, too (pipeline/fused/update.py)."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of those sweeps: float32, or products with operands of bfloat16 and sums of float32, faster on processors that have it
    and, with kernel = "fused", on GPUs; on a CPU also coarse normal numbers. `auto`: bfloat16 where it is native on all
    workers and no layer has fewer than 64 units. Asked for by name it is emulated on other CPUs, slowly, and products of such
    a layer are float32 all the same. Rounded weights are another model: where energies are large, as with a sigma that is
    small against the distance of modes, the modes' weights may move (docs/results.md). Gradients and evaluation are float32."""
    initial_chains: Literal["data", "wide"] = "data"
    """Where chains start: at random rows of the data, or wide: Gaussian with the data's mean and sd per unit (Bernoulli
    units: the data's mean)."""

    def __post_init__(self) -> None:
        _require(self.num_chains >= 2, "sampler.num_chains", self.num_chains, "at least 2")
        _require(self.gibbs_steps >= 1, "sampler.gibbs_steps", self.gibbs_steps, "at least 1")
        _require(0 <= self.beta_std < 1, "sampler.beta_std", self.beta_std, "in [0, 1)")
        _require(0 <= self.beta_momentum < 1, "sampler.beta_momentum", self.beta_momentum, "in [0, 1)")
        _require(0 < self.min_beta < 1, "sampler.min_beta", self.min_beta, "in (0, 1)")
        _require(self.num_temperatures >= 1, "sampler.num_temperatures", self.num_temperatures, "at least 1")
        _require(0 < self.lowest_beta < 1, "sampler.lowest_beta", self.lowest_beta, "in (0, 1)")
        if self.num_temperatures > 1:
            _require(
                self.precision != "bfloat16",
                "sampler.precision",
                self.precision,
                "auto or float32 with replica exchange (num_temperatures > 1), which compares exact energies",
            )
            _require(
                self.beta_std == 0, "sampler.beta_std", self.beta_std, "0 with replica exchange (num_temperatures > 1)"
            )
            # exchanges alternate between even and odd pairs of temperatures, beginning anew at each update
            enough = self.gibbs_steps >= 2
            _require(enough, "sampler.gibbs_steps", self.gibbs_steps, "at least 2 with replica exchange")
        _require(self.statistics_sweeps >= 0, "sampler.statistics_sweeps", self.statistics_sweeps, "at least 0")
        _require(
            1 <= self.num_blocks <= self.num_chains, "sampler.num_blocks", self.num_blocks, "1 to sampler.num_chains"
        )


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What every critic has: the features it sees, and how p = p(data | features) becomes the score T."""

    feature: Literal["hidden_mean", "hidden_sample", "visible"] = "hidden_mean"
    """What the critic sees. With hidden_sample the negative statistics use that same sample."""
    wire: Literal["float32", "bfloat16"] = "float32"
    """How features travel between workers, and so what the memory holds, for any number of them: bfloat16 halves the bytes
    and rounds. States drawn from Bernoulli units travel as single bits, exactly, whatever this says."""
    form: Literal["linear", "log"] = "linear"
    """linear: T = 2p - 1 (Eq. 12); log: T = log 2 + log p, with p at least min_probability."""
    min_probability: float = 0.05
    """Floor of p in the log form: a neighborhood without data has p = 0."""
    sign: int = 1
    """1; -1 turns the critic around, which drives particles away from the data: for contrast experiments only."""

    def __post_init__(self) -> None:
        _require(self.sign in (-1, 1), "critic.sign", self.sign, "1 or -1")
        _require(0 < self.min_probability <= 0.5, "critic.min_probability", self.min_probability, "in (0, 0.5]")


@dataclass(frozen=True)
class CriticConfig(ScoreConfig):
    """Nearest-neighbor critic on the memory of the previous step (Eq. 12, 15, 16)."""

    weighting: Literal["distance", "uniform"] = "distance"
    """distance: Eq. 16; uniform: Eq. 15."""
    num_neighbors: int = 5
    epsilon: float = 0.1
    """Added to a distance before it is inverted (Eq. 16). The paper gives no value; 1e-6 and 0.1 gave the same results
    on mixtures, and distances between 512 hidden activations are several units."""
    search: Literal["auto", "faiss", "torch"] = "auto"
    """Backend of the k-nearest search; auto takes the faster of the two on this machine, all workers alike."""
    exclude_own_chain: bool = False
    """Hide a chain's own previous state from it (the paper does not)."""
    memory: Literal["replicated", "sharded"] = "replicated"
    """replicated: every worker holds all rows; they travel while the next sweeps run. sharded: each worker holds its own
    and searches them for the particles of all; what a worker holds does not grow with their number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.memory == "replicated" or self.wire == "float32",
            "critic.wire",
            self.wire,
            '"float32" with critic.memory = "sharded": queries are compared as they are',
        )
        _require(self.num_neighbors >= 1, "critic.num_neighbors", self.num_neighbors, "at least 1")
        _require(self.epsilon > 0, "critic.epsilon", self.epsilon, "positive")


@dataclass(frozen=True)
class ForestCriticConfig(ScoreConfig):
    """Random forest critic, fitted anew at each step to the memory of the previous one (Fig. 10, 11)."""

    num_trees: int = 20
    max_depth: int | None = None
    """Levels of a tree; None: until leaves are pure or would have fewer than min_leaf rows."""
    min_leaf: int = 5
    """Rows of the memory in a leaf, at least. The paper gives none of these three; at 1 a tree repeats its rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.num_trees >= 1, "critic.num_trees", self.num_trees, "at least 1")
        _require(
            self.max_depth is None or self.max_depth >= 1, "critic.max_depth", self.max_depth, "at least 1 (or null)"
        )
        _require(self.min_leaf >= 1, "critic.min_leaf", self.min_leaf, "at least 1")


@dataclass(frozen=True)
class NetworkCriticConfig(ScoreConfig):
    """Dense ReLU network, trained on by logistic loss on each step's memory (the hidden DNN of Fig. 10)."""

    hidden: tuple[int, ...] = (128,)
    """Units of each hidden layer; none is logistic regression. The paper gives neither sizes nor rates."""
    learning_rate: float = 1e-3
    """Of Adam at (0.9, 0.999), constant."""
    updates: int = 5
    """Updates of the network on the whole memory at each step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(all(n >= 1 for n in self.hidden), "critic.hidden", self.hidden, "sizes of at least 1")
        _require(self.learning_rate > 0, "critic.learning_rate", self.learning_rate, "positive")
        _require(self.updates >= 1, "critic.updates", self.updates, "at least 1")


AnyCriticConfig = CriticConfig | ForestCriticConfig | NetworkCriticConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam. `paysage` is the authors' library's variant: constant bias corrections, moments that start at the first
    gradient; in steady state its steps are sqrt(1 - beta2) / (1 - beta1) times those of standard Adam.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    convention: Literal["standard", "paysage"] = "standard"

    def __post_init__(self) -> None:
        _require(0 <= self.beta1 < 1, "optimizer.beta1", self.beta1, "in [0, 1)")
        _require(0 <= self.beta2 < 1, "optimizer.beta2", self.beta2, "in [0, 1)")
        _require(self.epsilon > 0, "optimizer.epsilon", self.epsilon, "positive")


@dataclass(frozen=True)
class NaturalGradientConfig:
    """Natural gradient, of an RBM with few parameters (pipeline/learning/natural_gradient.py). It has no moments."""

    damping: float = 3e-3
    """Added to the Fisher matrix, in each parameter's own unit."""
    max_divergence: float = 2e-3
    """Longest step: the KL divergence in nats, to second order, between the densities before and after it, at most this."""

    def __post_init__(self) -> None:
        _require(self.damping > 0, "optimizer.damping", self.damping, "positive")
        _require(self.max_divergence > 0, "optimizer.max_divergence", self.max_divergence, "positive")


AnyOptimizerConfig = OptimizerConfig | NaturalGradientConfig
_UNNAMED_KINDS: tuple[type, ...] = (CriticConfig, OptimizerConfig)
"""Kinds that are written without `kind`, and taken where there is none: each was once the only one of its field, and
hashes of settings name the folders and stages of runs."""
MAX_NATURAL_PARAMETERS = 4096
"""Parameters of the largest model that natural gradient takes: it solves a dense system of that size at each update."""


@dataclass(frozen=True)
class PowerLaw:
    """lr(t) = initial / (1 + decay * t), t in whole decay units since the phase began.

    `paysage` is the authors' library's rule, initial / (1 + decay * initial * t).
    """

    initial: float = 1e-3
    decay: float = 0.1
    decay_updates: int | None = None
    """Updates in one decay unit, times epochs_scale; None: one epoch."""
    convention: Literal["standard", "paysage"] = "standard"

    def __post_init__(self) -> None:
        _require(self.initial > 0, "learning_rate.initial", self.initial, "positive")
        _require(self.decay >= 0, "learning_rate.decay", self.decay, "at least 0")
        _require(
            self.decay_updates is None or self.decay_updates >= 1, "decay_updates", self.decay_updates, "at least 1"
        )


@dataclass(frozen=True)
class Cosine:
    """lr from `initial` to zero along half a cosine over the phase, after a linear warm-up."""

    initial: float = 2e-3
    warmup_updates: int = 50

    def __post_init__(self) -> None:
        _require(self.initial > 0, "learning_rate.initial", self.initial, "positive")
        _require(self.warmup_updates >= 0, "learning_rate.warmup_updates", self.warmup_updates, "at least 0")


@dataclass(frozen=True)
class Phase:
    """A stretch of training: its length, in epochs or in updates (one of the two), gamma, and the learning rate."""

    epochs: float | None = None
    updates: int | None = None
    gamma: float = 1.0
    """Weight of the likelihood; 1 - gamma is the adversary's (Eq. 9)."""
    learning_rate: PowerLaw | Cosine = field(default_factory=PowerLaw)

    def __post_init__(self) -> None:
        _require(
            (self.epochs is None) != (self.updates is None),
            "schedules.<phase>.epochs, updates",
            (self.epochs, self.updates),
            "exactly one of the two, the other null",
        )
        _require((self.epochs or 0) >= 0 and (self.updates or 0) >= 0, "schedules.<phase>", self, "of length >= 0")
        _require(0 <= self.gamma <= 1, "schedules.<phase>.gamma", self.gamma, "in [0, 1]")

    def num_updates(self, steps_per_epoch: int, epochs_scale: float) -> int:
        """Updates of this phase, rounded; never scaled below 1 unless its length is 0."""
        length = self.updates if self.epochs is None else self.epochs * steps_per_epoch
        assert length is not None
        return max(1, round(length * epochs_scale)) if length else 0


@dataclass(frozen=True)
class DataNoise:
    """Gaussian noise added to the rows of each batch, which falls over a run: `initial` for hold_updates, then by equal ratios
    to `final` over fall_updates, then none.

    Modes that the noise has merged come apart one from another while sigma follows it, instead of being found all at once.
    """

    initial: float = 0.5
    """Standard deviation, in the units of the rows that the model sees."""
    final: float = 0.01
    hold_updates: int = 100
    """These two are multiplied by epochs_scale, as phases are."""
    fall_updates: int = 400

    def __post_init__(self) -> None:
        _require(0 < self.final <= self.initial, "schedules.noise.final", self.final, "positive, at most noise.initial")
        _require(self.hold_updates >= 0, "schedules.noise.hold_updates", self.hold_updates, "at least 0")
        _require(self.fall_updates >= 1, "schedules.noise.fall_updates", self.fall_updates, "at least 1")


@dataclass(frozen=True)
class Schedules:
    """The phases in their order: maximum likelihood, then the adversary. An autoencoder and a GAN have the first only."""

    likelihood: Phase = field(default_factory=lambda: Phase(epochs=10))
    adversarial: Phase = field(default_factory=lambda: Phase(updates=0, gamma=0.1))
    noise: DataNoise | None = None
    """On the rows of an RBM with Gaussian visible units; null: none."""


@dataclass(frozen=True)
class DataConfig:
    """How rows become batches."""

    batch_size: int = 128
    scaling: Literal["manifest", "isotropic"] = "manifest"
    """manifest: latents are whitened column by column, points are taken as they are. isotropic: rows less the columns' means,
    divided by one number, the root mean square of the columns' standard deviations (both of the train split), so that a
    recipe works alike on data that are shifted or in another unit. Of models of rows; a packaged model gives rows back in the
    data's own units."""
    max_skipped_share: float = 0.0
    """Largest share of a split's rows that may be left out because they are damaged: a shard that is missing or not what its
    manifest says, rows with values that are not finite. 0: the run stops at the first."""

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "data.batch_size", self.batch_size, "at least 1")
        share = self.max_skipped_share
        _require(0 <= share < 1, "data.max_skipped_share", share, "at least 0 and below 1")


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out monitors. The sampling protocols themselves are fixed (pipeline/samplers/protocols.py)."""

    every_updates: int = 500
    num_rows: int = 500
    """Rows of data and of model in each comparison (or the whole held-out split when it is smaller). Unequal or small
    numbers shift every estimate: compare only values with equal numbers."""
    num_neighbors: int = 5
    """Of the kNN estimate of the KL divergence (Eq. 17)."""
    minibatch_rows: int = 128
    """Rows of one minibatch of that estimate; the paper averages it over minibatches. Not data.batch_size, which a search
    may change: the estimate moves with the number of rows."""
    samples: Literal["mean", "noisy"] = "mean"
    """Which rows of the model are compared: E[v | h], what a picture shows, or v with its noise, which a density has."""
    num_components: int = 100
    """Principal components of the training rows in which Frechet distance, precision and recall are computed."""
    selection_metric: str = "frechet_latent"
    """What decides between models: smaller is better."""

    def __post_init__(self) -> None:
        _require(self.every_updates >= 1, "evaluation.every_updates", self.every_updates, "at least 1")
        _require(self.num_rows >= 8, "evaluation.num_rows", self.num_rows, "at least 8")
        _require(self.num_neighbors >= 1, "evaluation.num_neighbors", self.num_neighbors, "at least 1")
        _require(
            self.minibatch_rows > self.num_neighbors,
            "evaluation.minibatch_rows",
            self.minibatch_rows,
            "more than evaluation.num_neighbors",
        )
        _require(self.num_components >= 1, "evaluation.num_components", self.num_components, "at least 1")
        _require(
            self.selection_metric in ("frechet_latent", "kl_forward", "kl_sum", "reconstruction_mse"),
            "evaluation.selection_metric",
            self.selection_metric,
            "frechet_latent, kl_forward, kl_sum or (autoencoder) reconstruction_mse; noise lowers reverse KL alone",
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """When the whole state is written, and how many of the newest are kept."""

    every_updates: int = 500
    keep: int = 2
    log_every_updates: int = 25
    """Updates between two rows of metrics (and looks at a stop request)."""

    def __post_init__(self) -> None:
        _require(self.every_updates >= 1, "checkpoint.every_updates", self.every_updates, "at least 1")
        _require(self.keep >= 2, "checkpoint.keep", self.keep, "at least 2 (the newest may turn out damaged)")
        _require(self.log_every_updates >= 1, "checkpoint.log_every_updates", self.log_every_updates, "at least 1")


@dataclass(frozen=True)
class DivergenceConfig:
    """What happens when a gradient or a particle is not finite."""

    restarts: int = 0
    """Times that the run may go back to its last checkpoint and on with a smaller learning rate; 0: it stops."""
    rate_factor: float = 0.5
    """Of all learning rates at each restart: after n restarts they are rate_factor^n times what the schedules say."""

    def __post_init__(self) -> None:
        _require(self.restarts >= 0, "divergence.restarts", self.restarts, "at least 0")
        _require(0 < self.rate_factor < 1, "divergence.rate_factor", self.rate_factor, "between 0 and 1, both excluded")


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run. `sampler` and `critic` belong to a BEAM; an autoencoder and a GAN have none."""

    name: str
    seed: int = 0
    epochs_scale: float = 1.0
    """Multiplies the length of every phase and the decay unit of its learning rate."""
    data: DataConfig = field(default_factory=DataConfig)
    model: RBMConfig | AutoencoderConfig | GANConfig = field(default_factory=RBMConfig)
    sampler: SamplerConfig | None = field(default_factory=SamplerConfig)
    critic: AnyCriticConfig | None = field(default_factory=CriticConfig)
    optimizer: AnyOptimizerConfig = field(default_factory=OptimizerConfig)
    schedules: Schedules = field(default_factory=Schedules)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)

    def __post_init__(self) -> None:
        _require(self.epochs_scale > 0, "epochs_scale", self.epochs_scale, "positive")
        _require(0 <= self.seed < 2**31, "seed", self.seed, "in [0, 2^31)")
        if isinstance(self.model, RBMConfig):
            _require(self.sampler is not None, "sampler", None, "set: an RBM is trained with chains")
            metric = self.evaluation.selection_metric
            _require(metric != "reconstruction_mse", "evaluation.selection_metric", metric, "of samples, for a BEAM")
            needs_critic = self.schedules.likelihood.gamma < 1 or self.schedules.adversarial.gamma < 1
            _require(not needs_critic or self.critic is not None, "critic", None, "set when a phase has gamma < 1")
        if self.schedules.noise is not None:
            gaussian = isinstance(self.model, RBMConfig) and self.model.visible_units == "gaussian"
            _require(gaussian, "schedules.noise", self.schedules.noise, "null, unless visible units are gaussian")
        if isinstance(self.optimizer, NaturalGradientConfig):
            m = self.model
            small = isinstance(m, RBMConfig) and m.num_visible * m.num_hidden + 2 * m.num_visible + m.num_hidden <= (
                MAX_NATURAL_PARAMETERS
            )
            allowed = f"OptimizerConfig, unless the model is an RBM of at most {MAX_NATURAL_PARAMETERS} parameters"
            _require(small, "optimizer.kind", "NaturalGradientConfig", allowed)
            if isinstance(m, RBMConfig):
                _require(
                    m.hidden_units != "gaussian", "model.hidden_units", m.hidden_units, "discrete for natural gradient"
                )
                _require(not m.center_hidden, "model.center_hidden", True, "false for natural gradient")
        if isinstance(self.model, GANConfig):
            _require(self.sampler is None, "sampler", self.sampler, "null: a GAN has no chains")
            _require(self.critic is None, "critic", self.critic, "null: a GAN's critic is a network, part of its model")
            metric = self.evaluation.selection_metric
            _require(metric != "reconstruction_mse", "evaluation.selection_metric", metric, "of samples, for a GAN")
            second = self.schedules.adversarial
            none = not (second.epochs or second.updates)
            _require(none, "schedules.adversarial", second, "of length 0: a GAN's one phase is schedules.likelihood")

    def with_rates(self, factor: float) -> "RunConfig":
        """A copy with the learning rates of both phases multiplied by `factor`."""

        def scaled(phase: Phase) -> Phase:
            rule = phase.learning_rate
            return dataclasses.replace(phase, learning_rate=dataclasses.replace(rule, initial=factor * rule.initial))

        both = self.schedules
        schedules = dataclasses.replace(both, likelihood=scaled(both.likelihood), adversarial=scaled(both.adversarial))
        return dataclasses.replace(self, schedules=schedules)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able dict; where a field may hold several dataclasses, `kind` names the one (not the nearest-neighbor
        critic, which was there first).
        """
        return {"config_version": CONFIG_VERSION, **_to_dict(self)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "RunConfig":
        """The config that `to_dict` wrote. Raises ConfigError on an unknown version, key or kind, or a wrong type."""
        _require(isinstance(values, dict), "the settings", values, "an object of names and values")
        values = dict(values)
        version = values.pop("config_version", None)
        _require(version == CONFIG_VERSION, "config_version", version, f"{CONFIG_VERSION} (the only one known here)")
        return _from_dict(RunConfig, values, "")

    def override(self, settings: dict[str, Any]) -> "RunConfig":
        """A copy with values replaced by dotted key, as `{"critic.num_neighbors": 10}`; text is read as JSON first.

        A dict replaces a whole part, as `{"critic": {"kind": "ForestCriticConfig"}}`; what it leaves out has its default.
        """
        tree = self.to_dict()
        keys = flatten(tree)
        for key, value in settings.items():
            parts = key.split(".")
            node: Any = tree
            for part in parts[:-1]:
                node = node.get(part) if isinstance(node, dict) else None
            new = _parse(value) if isinstance(value, str) else value
            known = isinstance(node, dict) and parts[-1] in node
            if not known or (isinstance(node[parts[-1]], dict) and not isinstance(new, dict)):
                near = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
                raise ConfigError(f"unknown setting {key!r}; the nearest is {near[0]!r} (see `--show` for all of them)")
            node[parts[-1]] = new
        return RunConfig.from_dict(tree)


def chosen_settings(config: Any) -> dict[str, Any]:
    """What of a config differs from the defaults of its parts' classes, as nested plain values; `kind` names each class.

    A run is known by it: a setting that comes up later, at its default, does not make another run of an old one.
    """
    out: dict[str, Any] = {"kind": type(config).__name__}
    for field_ in dataclasses.fields(config):
        value = getattr(config, field_.name)
        if dataclasses.is_dataclass(value):
            out[field_.name] = chosen_settings(value)
            continue
        default = field_.default if field_.default_factory is dataclasses.MISSING else field_.default_factory()
        if value != default:
            out[field_.name] = value
    return out


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested dict by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves.update(flatten(value, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def parse_settings(items: list[str]) -> dict[str, str]:
    """`["a.b=1"]` -> `{"a.b": "1"}`. Raises ConfigError on an item without `=`."""
    settings = {}
    for item in items:
        key, sep, value = item.partition("=")
        _require(bool(sep), "--set", item, "KEY=VALUE, for instance critic.num_neighbors=10")
        settings[key.strip()] = value.strip()
    return settings


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, or nested beyond reason
        if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):  # .5 and 1. are numbers to people
            return float(text)
        return {"None": None, "True": True, "False": False}.get(text, text)


def _to_dict(config: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(type(config))
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            named = len(_dataclasses_in(hints[f.name])) > 1 and type(value) not in _UNNAMED_KINDS
            out[f.name] = {**({"kind": type(value).__name__} if named else {}), **_to_dict(value)}
        else:
            out[f.name] = list(value) if isinstance(value, tuple) else value  # as JSON has it
    return out


def _dataclasses_in(hint: Any) -> list[type]:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return [t for t in options if dataclasses.is_dataclass(t) and isinstance(t, type)]


def _from_dict(cls: type, values: dict[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
            raise ConfigError(f"unknown setting {prefix + key!r}; the nearest is {prefix + near[0]!r}")
    for f in dataclasses.fields(cls):
        missing = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in values
        _require(not missing, prefix + f.name, None, "set: it has no default")
    return cls(**{key: _value(hints[key], value, prefix + key) for key, value in values.items()})


def _value(hint: Any, value: Any, key: str) -> Any:
    classes = _dataclasses_in(hint)
    if isinstance(value, dict) and classes:
        value = dict(value)
        unnamed = classes if len(classes) == 1 else [c for c in classes if c in _UNNAMED_KINDS]
        kind = value.pop("kind", unnamed[0].__name__ if unnamed else None)
        chosen = next((c for c in classes if c.__name__ == kind), None)
        _require(chosen is not None, f"{key}.kind", kind, " or ".join(c.__name__ for c in classes))
        assert chosen is not None
        return _from_dict(chosen, value, f"{key}.")
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if typing.get_origin(option) is Literal:
            if value in typing.get_args(option):
                return value
        elif typing.get_origin(option) is tuple:
            if isinstance(value, list | tuple):
                return tuple(_value(typing.get_args(option)[0], item, f"{key}[{i}]") for i, item in enumerate(value))
        elif option is float and isinstance(value, int | float) and not isinstance(value, bool):
            _require(abs(value) <= sys.float_info.max, key, value, "a finite number")
            return float(value)
        elif option is int and type(value) is int:
            _require(abs(value) < 2**53, key, value, "below 2^53")  # beyond, no other reader of JSON has it exactly
            return value
        elif isinstance(option, type) and isinstance(value, option) and (option is bool or not isinstance(value, bool)):
            return value
    allowed = [
        " or ".join(map(repr, typing.get_args(o)))
        if typing.get_origin(o) is Literal
        else f"a list of {typing.get_args(o)[0].__name__}"
        if typing.get_origin(o) is tuple
        else getattr(o, "__name__", str(o))
        for o in options
    ]
    raise ConfigError(f"{key} = {reprlib.repr(value)}: must be {' or '.join(allowed)}")

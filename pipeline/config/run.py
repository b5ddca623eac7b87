"""Settings of a run: its data, monitors and checkpoints, and RunConfig, which is all of it."""

import dataclasses
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.critic import AnyCriticConfig, CriticConfig
from pipeline.config.keys import as_tree, from_tree, put
from pipeline.config.learning import (
    MAX_NATURAL_PARAMETERS,
    AnyOptimizerConfig,
    NaturalGradientConfig,
    OptimizerConfig,
    Phase,
    Schedules,
)
from pipeline.config.model import AutoencoderConfig, GANConfig, RBMConfig
from pipeline.config.sampler import SamplerConfig
from pipeline.config.validation import require, settings
from pipeline.config.values import Count, CountOrZero, Inner, Positive, Share, Whole

CONFIG_VERSION = 1
"""Written into every saved config; a reader refuses a version it does not know."""


@settings("data.")
class DataConfig:
    """The rows of a batch, and the scale that they are brought to."""

    batch_size: Count = 128
    """Rows of a batch, of all workers together."""
    scaling: Literal["manifest", "isotropic"] = "manifest"
    """Scaling of the rows of a model of rows. manifest: latents are whitened column by column, points
    are taken as they are. isotropic: rows less the columns' means, divided by one number, the root mean
    square of the columns' standard deviations (both of the train split), so that a recipe works alike on
    data that are shifted or in another unit. A packaged model gives rows in the data's own units."""
    max_skipped_share: Share = 0.0
    """Largest share of a split's rows that may be left out because they are damaged: a shard that is
    missing or not what its manifest says, rows not finite. 0: the run stops at the first."""


@settings("evaluation.")
class EvaluationConfig:
    """Held-out monitors. The sampling protocols themselves are fixed (pipeline/samplers/protocols.py)."""

    every_updates: Count = 500
    num_rows: Annotated[Whole, Field(ge=8)] = 500
    """Rows of data and of model in each comparison (or the whole held-out split when it is smaller).
    Unequal or small numbers shift every estimate: compare only values with equal numbers."""
    num_neighbors: Count = 5
    """Neighbors in the k-NN estimate of the KL divergence (Eq. 17)."""
    minibatch_rows: Whole = 128
    """Rows of one minibatch of that estimate, more than num_neighbors; the paper averages over them.
    Not data.batch_size, which a sweep may change: the estimate moves with the number of rows."""
    samples: Literal["mean", "noisy"] = "mean"
    """Rows of the model that are compared: E[v | h], which a picture shows, or v with its noise, which a
    density has."""
    num_components: Count = 100
    """Principal components of the training rows in which Frechet distance, precision and recall are
    computed."""
    selection_metric: Annotated[
        Literal["frechet_latent", "kl_forward", "kl_sum", "reconstruction_mse"],
        Field(description="noise alone lowers reverse KL, so it cannot decide"),
    ] = "frechet_latent"
    """Metric that decides between models: smaller is better. reconstruction_mse is an autoencoder's alone."""

    def __post_init__(self) -> None:
        rows = self.minibatch_rows
        require(rows > self.num_neighbors, "minibatch_rows", rows, "more than evaluation.num_neighbors")


@settings("checkpoint.")
class CheckpointConfig:
    """The times at which the whole state is written, and how many of the newest are kept."""

    every_updates: Count = 500
    keep: Annotated[Whole, Field(ge=2, description="the newest may turn out damaged")] = 2
    """Checkpoints that are kept, at least 2: the newest may turn out damaged."""
    log_every_updates: Count = 25
    """Updates between two rows of metrics (and looks at a stop request)."""


@settings("divergence.")
class DivergenceConfig:
    """Restarts after a gradient or a particle that is not finite."""

    restarts: CountOrZero = 0
    """Times that the run may resume from its last checkpoint with a smaller learning rate; 0: it stops."""
    rate_factor: Inner = 0.5
    """Factor of all learning rates at each restart: rate_factor^n of the schedules' after n."""


@settings("")
class RunConfig:
    """Everything that defines a run. `sampler` and `critic` belong to a BEAM; an autoencoder and a GAN have none."""

    name: str
    seed: Annotated[Whole, Field(ge=0, lt=2**31)] = 0
    epochs_scale: Positive = 1.0
    """Factor of the length of every phase and of the decay unit of its learning rate."""
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
        model, schedules, metric = self.model, self.schedules, self.evaluation.selection_metric
        if isinstance(model, RBMConfig):
            require(self.sampler is not None, "sampler", None, "set: an RBM is trained with chains")
            likelihood_alone = schedules.likelihood.gamma == schedules.adversarial.gamma == 1
            require(likelihood_alone or self.critic is not None, "critic", None, "set when a phase has gamma < 1")
        if isinstance(model, GANConfig):
            require(self.sampler is None, "sampler", self.sampler, "null: a GAN has no chains")
            require(self.critic is None, "critic", self.critic, "null: a GAN's critic is a network, part of its model")
            second = schedules.adversarial
            allowed = "of length 0: a GAN's one phase is schedules.likelihood"
            require(not (second.epochs or second.updates), "schedules.adversarial", second, allowed)
        if not isinstance(model, AutoencoderConfig):
            require(metric != "reconstruction_mse", "evaluation.selection_metric", metric, "of samples, for this model")
        if schedules.noise is not None:
            gaussian = isinstance(model, RBMConfig) and model.visible_units == "gaussian"
            require(gaussian, "schedules.noise", schedules.noise, "null, unless visible units are gaussian")
        if isinstance(self.optimizer, NaturalGradientConfig):
            allowed = f"OptimizerConfig, unless the model is an RBM of at most {MAX_NATURAL_PARAMETERS} parameters"
            small = isinstance(model, RBMConfig) and (
                model.num_visible * (model.num_hidden + 2) + model.num_hidden <= MAX_NATURAL_PARAMETERS
            )
            require(small, "optimizer.kind", "NaturalGradientConfig", allowed)
            assert isinstance(model, RBMConfig)
            hidden, centered = model.hidden_units, model.center_hidden
            require(hidden != "gaussian", "model.hidden_units", hidden, "discrete for natural gradient")
            require(not centered, "model.center_hidden", centered, "false for natural gradient")

    def with_rates(self, factor: float) -> "RunConfig":
        """A copy with the learning rates of both phases multiplied by `factor`."""

        def scaled(phase: Phase) -> Phase:
            rule = phase.learning_rate
            return dataclasses.replace(phase, learning_rate=dataclasses.replace(rule, initial=factor * rule.initial))

        both = self.schedules
        schedules = dataclasses.replace(both, likelihood=scaled(both.likelihood), adversarial=scaled(both.adversarial))
        return dataclasses.replace(self, schedules=schedules)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able dict; where a field may hold several dataclasses, `kind` names the one (not
        the nearest-neighbor critic, nor Adam, which were there first).
        """
        return {"config_version": CONFIG_VERSION, **as_tree(self)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "RunConfig":
        """The config that `to_dict` wrote. Raises ConfigError on an unknown version, key or kind, or a wrong type."""
        require(isinstance(values, dict), "the settings", values, "an object of names and values")
        version = values.get("config_version")
        require(version == CONFIG_VERSION, "config_version", version, f"{CONFIG_VERSION} (the only one known here)")
        return from_tree(RunConfig, {key: value for key, value in values.items() if key != "config_version"})

    def override(self, settings: dict[str, Any]) -> "RunConfig":
        """A copy with values replaced by dotted key, as `{"critic.num_neighbors": 10}`; text is read as
        JSON first.

        A dict replaces a whole part, as `{"critic": {"kind": "ForestCriticConfig"}}`; what it leaves
        out has its default.
        """
        tree = self.to_dict()
        for key, value in settings.items():
            put(tree, key, value)
        return RunConfig.from_dict(tree)

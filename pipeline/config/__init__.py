"""The settings of a run: frozen dataclasses, one key space of dotted paths, every value checked when it is made.

A run is defined by its RunConfig alone: sizes are global, so the number of workers, the kind of device and the places
of files are arguments of the job and never appear here. `critic.num_neighbors` is the same word in `--set`, in a sweep's
space, in MLflow's params and in error messages.
"""

# ruff: noqa: F401
from pipeline.config.critic import AnyCriticConfig, CriticConfig, ForestCriticConfig, NetworkCriticConfig, ScoreConfig
from pipeline.config.keys import chosen_settings, flatten, parse_settings
from pipeline.config.learning import (
    MAX_NATURAL_PARAMETERS,
    AnyOptimizerConfig,
    Cosine,
    DataNoise,
    NaturalGradientConfig,
    OptimizerConfig,
    Phase,
    PowerLaw,
    Schedules,
)
from pipeline.config.model import AutoencoderConfig, GANConfig, RBMConfig, UnitKind
from pipeline.config.run import (
    CONFIG_VERSION,
    CheckpointConfig,
    DataConfig,
    DivergenceConfig,
    EvaluationConfig,
    RunConfig,
)
from pipeline.config.sampler import SamplerConfig
from pipeline.config.validation import ConfigError

"""Settings of natural gradient and replica exchange: what is refused, and that old and new configs load."""

import dataclasses

import pytest
import torch

from jobs.recipes import recipe
from pipeline.config import (
    AutoencoderConfig,
    ConfigError,
    DataNoise,
    NaturalGradientConfig,
    OptimizerConfig,
    RBMConfig,
    RunConfig,
    SamplerConfig,
    Schedules,
)
from pipeline.learning.adam import build_optimizer
from pipeline.learning.schedule import noise_std


def small(**model: object) -> RunConfig:
    return RunConfig("x", model=RBMConfig(2, 5, **model), optimizer=NaturalGradientConfig())  # type: ignore[arg-type]


def test_round_trip_and_the_optimizer_of_old_configs() -> None:
    config = small()
    assert RunConfig.from_dict(config.to_dict()) == config
    old = RunConfig("x").to_dict()
    assert "kind" not in old["optimizer"], "as configs were written before there was a second kind"
    assert RunConfig.from_dict(old).optimizer == OptimizerConfig()
    for key in ("num_temperatures", "lowest_beta"):
        old["sampler"].pop(key)
    old["model"].pop("initial_thresholds")
    assert RunConfig.from_dict(old) == RunConfig("x")


def test_natural_gradient_needs_a_small_rbm_with_discrete_hidden_units() -> None:
    for model in (RBMConfig(1024, 512), AutoencoderConfig()):
        with pytest.raises(ConfigError, match=r"optimizer\.kind"):
            dataclasses.replace(RunConfig("x"), model=model, sampler=SamplerConfig(), optimizer=NaturalGradientConfig())
    with pytest.raises(ConfigError, match="hidden_units"):
        small(hidden_units="gaussian")
    with pytest.raises(ConfigError, match="center_hidden"):
        small(center_hidden=True)
    with pytest.raises(ConfigError, match="damping"):
        NaturalGradientConfig(damping=0.0)
    with pytest.raises(ConfigError, match="OptimizerConfig"):
        build_optimizer(torch.nn.Linear(2, 1), NaturalGradientConfig(), maximize=False)


def test_replica_exchange_has_no_drift_and_both_pairings() -> None:
    with pytest.raises(ConfigError, match="beta_std"):
        SamplerConfig(num_temperatures=4)
    with pytest.raises(ConfigError, match="gibbs_steps"):
        SamplerConfig(num_temperatures=4, beta_std=0.0, gibbs_steps=1)
    with pytest.raises(ConfigError, match="lowest_beta"):
        SamplerConfig(num_temperatures=4, beta_std=0.0, lowest_beta=1.0)


def test_thresholds_need_gaussian_and_plain_bernoulli_units() -> None:
    for settings in ({"visible_units": "bernoulli"}, {"hidden_units": "onehot"}, {"center_hidden": True}):
        with pytest.raises(ConfigError, match="initial_thresholds"):
            RBMConfig(2, 5, initial_thresholds="data", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mixture_grid_learned_sigma", "mixture_ring_learned_sigma"])
def test_the_recipes_learn_sigma_from_the_first_update_with_an_adversary(name: str) -> None:
    config = recipe(name)
    assert isinstance(config.model, RBMConfig) and config.model.fixed_std is None
    assert isinstance(config.optimizer, NaturalGradientConfig)
    phases = config.schedules
    assert phases.likelihood.gamma == phases.adversarial.gamma == 0.5
    assert phases.noise is not None and phases.likelihood.updates is not None
    assert phases.noise.hold_updates + phases.noise.fall_updates <= phases.likelihood.updates, (
        "the last phase is on data"
    )


def test_noise_is_for_gaussian_units_and_falls() -> None:
    schedules = Schedules(noise=DataNoise())
    config = RunConfig("x", schedules=schedules)
    assert RunConfig.from_dict(config.to_dict()) == config
    for model in (RBMConfig(5, 5, visible_units="bernoulli"), AutoencoderConfig()):
        with pytest.raises(ConfigError, match=r"schedules\.noise"):
            RunConfig("x", schedules=schedules, model=model)
    with pytest.raises(ConfigError, match="final"):
        DataNoise(initial=0.1, final=0.2)


def test_the_noise_holds_falls_by_equal_ratios_and_ends() -> None:
    rule = DataNoise(initial=0.8, final=0.1, hold_updates=4, fall_updates=3)
    values = [noise_std(rule, step, 1.0) for step in range(9)]
    assert values == pytest.approx([0.8] * 5 + [0.4, 0.2, 0.0, 0.0])
    assert [noise_std(rule, 2 * step, 2.0) for step in range(9)] == pytest.approx(values)
    assert noise_std(None, 0, 1.0) == 0

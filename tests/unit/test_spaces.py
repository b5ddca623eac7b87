"""Search spaces: text and values agree, the recipe is always inside, and what decides the measure cannot be searched."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from jobs.recipes import recipe
from jobs.spaces import as_text, changed_in_flight, clip, containing, parse_distribution, space_of
from pipeline.config import ConfigError, flatten

BEAMS = ("celeba_beam", "celeba_beam_paper", "faces_quick", "faces_toy", "mixture_bimodal", "mixture_toy")


@pytest.mark.parametrize("name", BEAMS)
def test_the_default_space_is_what_the_paper_leaves_open_and_holds_the_recipe(name: str) -> None:
    config = recipe(name)
    space = space_of(config, [])
    known = flatten(config.to_dict())
    expected = {
        "schedules.adversarial.gamma",
        "schedules.adversarial.learning_rate.initial",
        "sampler.beta_std",
        "sampler.beta_momentum",
        "sampler.gibbs_steps",
        "critic.num_neighbors",
    }
    if config.schedules.likelihood.num_updates(1, 1.0):
        expected.add("schedules.likelihood.learning_rate.initial")
    assert set(space) == expected
    for key, distribution in space.items():
        assert containing(distribution, known[key]) == distribution


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("uniform(0, 0.5)", FloatDistribution(0.0, 0.5)),
        ("loguniform(1e-5,1e-2)", FloatDistribution(1e-5, 1e-2, log=True)),
        ("int(2, 9)", IntDistribution(2, 9)),
        ("logint(1,64)", IntDistribution(1, 64, log=True)),
        ("choice(1, 5, 10)", CategoricalDistribution([1, 5, 10])),
        ("choice('linear', 'log')", CategoricalDistribution(["linear", "log"])),
    ],
)
def test_text_and_distribution(text: str, distribution: object) -> None:
    parsed = parse_distribution("key", text)
    assert parsed == distribution
    assert parse_distribution("key", as_text(parsed)) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "0.5",
        "normal(0,1)",
        "uniform(1)",
        "uniform(2,1)",
        "loguniform(0,1)",
        "choice()",
        "__import__('os')",
        "uniform(0,1",
    ],
)
def test_other_text_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ConfigError, match=r"loguniform\(low,high\)"):
        parse_distribution("a.b", text)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("critic.num_neighbours=int(1,2)", "critic.num_neighbors"),
        ("critic.num_neighbors", "write KEY="),
        ("seed=int(0,9)", "may not change it"),
        ("evaluation.num_rows=int(10,20)", "may not change it"),
        ("evaluation.samples=choice('mean','noisy')", "may not change it"),
        ("schedules.adversarial.updates=int(10,20)", "may not change it"),
        ("checkpoint.keep=int(2,3)", "may not change it"),
        ("data.batch_size=int(64,128)", "may not change it"),
        ("evaluation.selection_metric=choice('kl_sum')", "may not change it"),
        ("sampler.beta_std=uniform(0.5,1.5)", "sampler.beta_std"),
        ("optimizer.beta1=-", "not searched"),
    ],
)
def test_what_cannot_be_searched_is_said(item: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space_of(recipe("celeba_beam"), [item])


def test_a_key_is_added_replaced_widened_or_left_out() -> None:
    config = recipe("celeba_beam")
    space = space_of(
        config, ["critic.num_neighbors=choice(10,20)", "optimizer.beta1=uniform(0.1,0.5)", "sampler.beta_momentum=-"]
    )
    assert space["critic.num_neighbors"] == CategoricalDistribution([10, 20, 5])
    assert space["optimizer.beta1"] == FloatDistribution(0.1, 0.9)
    assert "sampler.beta_momentum" not in space


def test_nothing_left_to_search_is_refused() -> None:
    config = recipe("celeba_beam")
    with pytest.raises(ConfigError, match="nothing is left"):
        space_of(config, [f"{key}=-" for key in space_of(config, [])])


def test_an_autoencoder_is_not_searched() -> None:
    with pytest.raises(ConfigError, match="not a BEAM"):
        space_of(recipe("celeba_autoencoder"), [])


def test_a_population_changes_gamma_rates_and_temperature_inside_their_ranges() -> None:
    space = space_of(recipe("celeba_beam"), [])
    assert set(changed_in_flight(recipe("celeba_beam"), space)) == {
        "schedules.adversarial.gamma",
        "schedules.adversarial.learning_rate.initial",
        "schedules.likelihood.learning_rate.initial",
        "sampler.beta_std",
    }
    assert clip(1.2, space["sampler.beta_std"]) == 0.97
    assert clip(24.7, IntDistribution(1, 20)) == 20
    assert clip(7.2, IntDistribution(1, 20)) == 7
    assert clip("log", CategoricalDistribution(["log"])) == "log"
    with pytest.raises(ConfigError, match="none of them"):
        changed_in_flight(recipe("celeba_beam"), {"critic.num_neighbors": IntDistribution(1, 2)})

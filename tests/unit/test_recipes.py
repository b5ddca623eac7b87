"""Recipes say what the paper's tables say, and every one builds."""

import pytest

from jobs.recipes import AUTOENCODER_OF, RECIPES, recipe
from pipeline.config import AutoencoderConfig, ConfigError, RBMConfig, RunConfig
from pipeline.runs.job import total_updates


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_and_survives_a_round_trip(name):
    config = recipe(name)
    assert config.name == name and RECIPES[name].__doc__
    assert RunConfig.from_dict(config.to_dict()) == config


def test_table_iii_literally():
    config = recipe("celeba_beam_paper")
    assert isinstance(config.model, RBMConfig) and config.sampler and config.critic
    assert (config.model.num_visible, config.model.num_hidden, config.data.batch_size) == (1024, 512, 128)
    assert (config.sampler.gibbs_steps, config.sampler.beta_std, config.sampler.statistics_sweeps) == (100, 0.95, 0)
    assert (config.critic.num_neighbors, config.critic.weighting, config.critic.search) == (5, "distance", "faiss")
    assert (config.optimizer.beta1, config.optimizer.beta2) == (0.9, 0.999)
    phases = config.schedules
    assert (phases.likelihood.epochs, phases.likelihood.gamma, phases.likelihood.learning_rate.initial) == (10, 1, 1e-3)
    assert (phases.adversarial.epochs, phases.adversarial.gamma) == (40, 0.1)
    assert phases.adversarial.learning_rate.initial == 1e-4
    assert total_updates(config, 162_770) == (12_720, 63_600)  # CelebA's training partition


def test_the_texts_schedule_and_the_centered_recipe():
    text, centered = recipe("celeba_beam_text"), recipe("celeba_beam_centered")
    assert (text.schedules.likelihood.epochs, text.schedules.adversarial.epochs) == (15, 50)
    assert centered.model.center_visible and centered.model.center_hidden


@pytest.mark.parametrize(("beam", "autoencoder"), AUTOENCODER_OF.items())
def test_beams_have_their_autoencoder(beam, autoencoder):
    assert isinstance(recipe(beam).model, RBMConfig)
    assert isinstance(recipe(autoencoder).model, AutoencoderConfig)


def test_settings_override_and_unknown_names_are_refused():
    assert recipe("celeba_beam", {"epochs_scale": "0.5"}).epochs_scale == 0.5
    assert total_updates(recipe("celeba_beam", {"epochs_scale": "0.1"}), 6400) == (300, 400)
    with pytest.raises(ConfigError, match="celeba_beam"):
        recipe("celeba_bean")

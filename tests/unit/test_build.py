"""From settings to an objective: the piece that each setting chooses, and settings that this device cannot compute."""

import dataclasses

import pytest
from test_beam_invariance import rows_for, tiny

from pipeline.build import build_beam, build_objective
from pipeline.comm import Comm
from pipeline.config import AutoencoderConfig, NaturalGradientConfig, RBMConfig, RunConfig
from pipeline.samplers.driven import DrivenGibbs
from pipeline.samplers.exchange import ExchangeGibbs
from pipeline.training.beam import BeamObjective
from pipeline.training.block import hidden_samples
from pipeline.training.chains import TorchChains
from pipeline.training.learners import AdamLearner, NaturalLearner


def built(config: RunConfig) -> BeamObjective:
    rows = rows_for(config)
    return build_beam(config, rows[20:], rows[:20], Comm())


def with_sampler(config: RunConfig, **values: object) -> RunConfig:
    assert config.sampler is not None
    return dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, **values))  # type: ignore[arg-type]


def test_each_setting_chooses_its_piece() -> None:
    driven = built(tiny("bernoulli", search="torch", feature="hidden_sample"))
    assert isinstance(driven.chains, TorchChains) and isinstance(driven.chains.sampler, DrivenGibbs)
    assert isinstance(driven.learner, AdamLearner) and driven.features is hidden_samples
    small = dataclasses.replace(tiny(search="torch"), model=RBMConfig(5, 4), optimizer=NaturalGradientConfig())
    exchanged = built(with_sampler(small, num_temperatures=3, beta_std=0.0, gibbs_steps=2))
    assert isinstance(exchanged.chains.sampler, ExchangeGibbs) and isinstance(exchanged.learner, NaturalLearner)


def test_likelihood_alone_has_no_adversary() -> None:
    config = tiny(search="torch")
    phases = config.schedules
    alone = dataclasses.replace(phases, adversarial=dataclasses.replace(phases.adversarial, gamma=1.0))
    assert built(config).adversary is not None and built(dataclasses.replace(config, schedules=alone)).adversary is None


def test_a_worker_without_chains_refuses_what_the_others_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would go on to the next collective otherwise, and wait there for workers that have ended."""
    config = with_sampler(tiny(search="torch"), kernel="fused")
    for blocks in (range(4), range(0)):
        monkeypatch.setattr(Comm, "my_blocks", lambda _self, _num_blocks, blocks=blocks: blocks)
        with pytest.raises(ValueError, match=r'sampler\.kernel = "fused" needs a CUDA device'):
            built(config)


def test_rows_of_another_kind_of_run_are_refused() -> None:
    config = tiny(search="torch")
    with pytest.raises(ValueError, match="is not a BEAM"):
        other = dataclasses.replace(config, model=AutoencoderConfig(), critic=None, sampler=None)
        build_beam(other, rows_for(config), rows_for(config), Comm())
    with pytest.raises(ValueError, match="num_visible"):
        build_objective(
            dataclasses.replace(config, model=RBMConfig(24, 11)), rows_for(config), rows_for(config), Comm()
        )

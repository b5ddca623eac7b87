"""The chains that a trained BEAM gives away as samples: with replica exchange those at beta = 1 of every block, no others."""

import dataclasses
from pathlib import Path

import pytest
import torch

from pipeline.build import build_beam
from pipeline.comm import Comm
from pipeline.config import Phase, RBMConfig, RunConfig, SamplerConfig, Schedules
from pipeline.data.whitening import Whitening
from pipeline.packages.models import PackagedBeam, load_package
from pipeline.runs.trained import read_beam
from pipeline.samplers.gibbs import ChainState
from pipeline.samplers.protocols import WideStart
from pipeline.streams import stream
from pipeline.training.beam import BeamObjective
from pipeline.training.checkpoint import Checkpoint


def trained(**sampler: object) -> tuple[RunConfig, BeamObjective, Checkpoint]:
    """Five updates of 13 chains in blocks of 4, 3, 3, 3."""
    config = RunConfig(
        "tiny",
        model=RBMConfig(5, 4),
        sampler=SamplerConfig(num_chains=13, gibbs_steps=2, num_blocks=4, **sampler),  # type: ignore[arg-type]
        schedules=Schedules(likelihood=Phase(updates=5), adversarial=Phase(updates=0)),
    )
    rows = torch.randn(200, 5, generator=stream(1, "rows"))
    objective = build_beam(config, rows[:150], rows[150:], Comm())
    for step in range(5):
        objective.step(step, measure=False)
    return config, objective, Checkpoint(Path("checkpoint"), 5, objective.state(), {})


def joined(blocks: list[ChainState]) -> ChainState:
    return ChainState(*(torch.cat(columns) for columns in zip(*blocks)))


def test_replicas_at_other_temperatures_are_not_samples() -> None:
    config, objective, found = trained(beta_std=0.0, num_temperatures=3)
    assert len(found.tensors["chains.beta"]) == 39, "the checkpoint has all replicas"
    rbm, chains = read_beam(found, config)
    assert torch.equal(chains.beta, torch.ones(13, 1))
    expected = joined([objective.chains.sampler.at_one(block) for block in objective.chains.states])
    assert all(map(torch.equal, chains, expected))
    assert torch.equal(rbm.weights, objective.rbm.weights) and not rbm.weights.requires_grad


def test_every_driven_chain_is_a_sample() -> None:
    config, objective, found = trained(beta_std=0.5)
    chains = read_beam(found, config)[1]
    assert len(chains.beta) == 13 and all(map(torch.equal, chains, joined(objective.chains.states)))


def test_a_package_holds_no_hot_replicas_even_if_an_earlier_revision_wrote_them(tmp_path: Path) -> None:
    config, objective, found = trained(beta_std=0.0, num_temperatures=3)
    rbm, chains = read_beam(found, config)
    zeros, ones = torch.zeros(5), torch.ones(5)
    package = PackagedBeam(rbm, config, Whitening(zeros, ones), WideStart(zeros, ones), chains, None, "points")
    package.save(tmp_path / "now")
    dataclasses.replace(package, chains=joined(objective.chains.states)).save(tmp_path / "earlier")
    drawn = package.sample(13, 2, protocol="persistent")
    for name in ("now", "earlier"):
        loaded = load_package(tmp_path / name)
        assert isinstance(loaded, PackagedBeam) and all(map(torch.equal, loaded.chains, chains)), name
        assert torch.equal(loaded.sample(13, 2, protocol="persistent"), drawn)
        with pytest.raises(ValueError, match="n_samples = 14: protocol 'persistent' goes on with the 13 chains"):
            loaded.sample(14, protocol="persistent")

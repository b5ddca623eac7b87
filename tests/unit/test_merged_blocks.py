"""Blocks swept as one tensor: the bits of each are those of sweeping it alone, or the check says that they would not be."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from test_beam_invariance import rows_for, tiny

from pipeline.build import build_beam
from pipeline.comm import Comm
from pipeline.config import RBMConfig, RunConfig
from pipeline.models.rbm import RBM
from pipeline.samplers import gibbs
from pipeline.samplers.driven import DrivenGibbs, GammaProcess
from pipeline.samplers.gibbs import ChainState, blocks_stand_alone
from pipeline.streams import RowStreams, exponential_, normal_, poisson, standard_gamma, stream, uniform_

ROWS = (25, 25, 24, 0, 3)


def generators() -> list[torch.Generator]:
    return [stream(7, "merged", block) for block in range(len(ROWS))]


@pytest.mark.parametrize(
    "draw",
    [
        lambda x, random: uniform_(torch.empty_like(x), random),
        lambda x, random: normal_(torch.empty_like(x), random),
        lambda x, random: exponential_(torch.empty_like(x), random),
        poisson,
        standard_gamma,
    ],
    ids=["uniform", "normal", "exponential", "poisson", "gamma"],
)
@pytest.mark.parametrize(
    ("width", "coarse", "rows"), [(7, False, ROWS), (7, True, ROWS), (700, False, ROWS), (701, False, (25, 25, 24))]
)
def test_every_block_draws_from_its_own_generator(draw, width: int, coarse: bool, rows: Sequence[int]) -> None:
    x = torch.rand(sum(rows), width, generator=torch.Generator().manual_seed(0)) * 5
    every = generators()[: len(rows)]
    merged = draw(x, RowStreams(every, rows, coarse))
    streams = [RowStreams([g], [n], coarse) if coarse else g for g, n in zip(generators(), rows)]
    alone = torch.cat([draw(part, own) for part, own in zip(x.split(list(rows)), streams)])
    assert torch.equal(merged, alone)


def small(visible: str, dtype: torch.dtype) -> RBM:
    rbm = RBM(RBMConfig(96, 64, visible), dtype)  # type: ignore[arg-type]
    with torch.no_grad():
        rbm.weights.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return rbm


@pytest.mark.parametrize("visible", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("rows", [(32, 32, 32, 32), (25, 25, 25, 25), ROWS])
def test_where_the_check_agrees_a_sweep_keeps_every_bit(visible: str, rows: Sequence[int]) -> None:
    rbm = small(visible, torch.float32)
    if not blocks_stand_alone(rbm, rows):
        pytest.skip("this machine's products of these shapes depend on the number of rows")
    random = [stream(3, "rows", block) for block in range(len(rows))]
    again = [stream(3, "rows", block) for block in range(len(rows))]
    v = torch.rand(sum(rows), 96, generator=torch.Generator().manual_seed(2))
    chains = ChainState(v, torch.zeros(sum(rows), 64), torch.ones(sum(rows), 1))
    sampler = DrivenGibbs(GammaProcess(0.95, 0.9), 20)
    merged = sampler.run(rbm, chains, RowStreams(random, rows))
    parts = [ChainState(*p) for p in zip(*(c.split(list(rows)) for c in chains))]
    alone = [sampler.run(rbm, part, g) for part, g in zip(parts, again)]
    for name in ChainState._fields:
        assert torch.equal(getattr(merged, name), torch.cat([getattr(part, name) for part in alone])), name


def test_the_check_sees_a_product_that_depends_on_the_number_of_rows(monkeypatch) -> None:
    rbm = small("gaussian", torch.float32)
    real = torch.addmm

    def other_order(bias: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        if len(rows) <= 32:
            return real(bias, rows, weights)
        half = rows.shape[1] // 2  # as a library may: two partial sums
        return real(bias, rows[:, :half], weights[:half]) + rows[:, half:] @ weights[half:]

    monkeypatch.setattr(gibbs.torch, "addmm", other_order)
    assert not blocks_stand_alone(rbm, (32, 32))
    assert blocks_stand_alone(rbm, (16, 16))


def test_one_hot_layers_are_swept_block_by_block() -> None:
    assert not blocks_stand_alone(RBM(RBMConfig(6, 4, "gaussian", "onehot")), (4, 4))


def trained(config: RunConfig, alone: bool) -> dict[str, torch.Tensor]:
    rows = rows_for(config)
    objective = build_beam(config, rows[20:], rows[:20], Comm())
    if alone:
        objective.chains.groups = [[i] for i in range(len(objective.chains.states))]  # type: ignore[attr-defined]
    for step in range(20):
        objective.step(step, measure=False)
    return objective.state()


@pytest.mark.parametrize(
    ("sizes", "chains", "blocks"),
    [((32, 16), 16, 4), ((9, 31), 100, 4), ((11, 23), 12, 2), ((1, 32), 4, 2), ((7, 5), 66, 2)],
)
def test_a_run_has_the_bits_of_one_whose_blocks_are_swept_alone(
    sizes: tuple[int, int], chains: int, blocks: int
) -> None:
    """Whether or not its blocks may be merged: for the odd ones a check of one draw, or of views, was wrong."""
    config = dataclasses.replace(tiny(search="torch"), model=RBMConfig(*sizes, center_hidden=True))
    assert config.sampler is not None
    sampler = dataclasses.replace(config.sampler, num_chains=chains, num_blocks=blocks)
    config = dataclasses.replace(config, sampler=sampler)
    one, other = trained(config, False), trained(config, True)
    assert all(torch.equal(one[name], other[name]) for name in one)

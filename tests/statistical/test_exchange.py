"""Replica exchange: every temperature keeps its exact law, exchanges have their exact rate, and modes get their weights."""

import itertools
import math

import pytest
import torch
from laws import SIGMAS, Table, assert_follows, exact_visible_draws, seeded, single
from small import small_rbm

from pipeline.config import RBMConfig
from pipeline.models.rbm import RBM
from pipeline.models.units import Gaussian
from pipeline.samplers.driven import plain_gibbs
from pipeline.samplers.exchange import ExchangeGibbs, geometric_betas
from pipeline.samplers.gibbs import ChainState

ROWS = 30_000
BETAS = (1.0, 0.45, 0.2)


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian", "onehot"])
@pytest.mark.parametrize("sweeps", [1, 2, 5])
def test_every_temperature_keeps_its_law(visible: str, sweeps: int) -> None:
    """Chains that start in the law of their temperature are in it after sweeps and exchanges; a wrong rate shows at once."""
    rbm, g = small_rbm(visible, "bernoulli", seed=4), seeded(4)
    with torch.no_grad():
        rbm.weights.mul_(3)
    tables = [Table.of(rbm, beta) for beta in BETAS]
    v = torch.cat([exact_visible_draws(rbm, t, b, ROWS, g) for t, b in zip(tables, BETAS)]).float()
    sampler = ExchangeGibbs(BETAS, sweeps)
    chains = sampler.at_temperatures(ChainState(v, torch.full((len(v), 3), torch.nan), torch.ones(len(v), 1)))
    chains = sampler.run(single(rbm), chains, g)
    for i, table in enumerate(tables):
        rows = slice(i * ROWS, (i + 1) * ROWS)
        assert_follows(rbm, ChainState(*(column[rows] for column in chains)), table, table.p)
    torch.testing.assert_close(chains.beta.flatten(), torch.tensor(BETAS).repeat_interleave(ROWS))


def test_exchanges_happen_at_the_rate_of_detailed_balance() -> None:
    """Two fixed states whose energies differ by 2: accepted with exp(-0.8 * 2) one way, always the other way."""
    rbm, rows = RBM(RBMConfig(1, 1, "bernoulli", "bernoulli")), ROWS
    with torch.no_grad():
        rbm.visible.bias.fill_(2.0)  # E(v = 1) = -2, E(v = 0) = 0
    sampler = ExchangeGibbs((1.0, 0.2), 1)
    for cold, rate in ((1.0, math.exp(-1.6)), (0.0, 1.0)):
        v = torch.cat([torch.full((rows, 1), cold), torch.full((rows, 1), 1 - cold)])
        chains = sampler.at_temperatures(ChainState(v, torch.zeros(2 * rows, 1), torch.ones(2 * rows, 1)))
        after = sampler._exchange(rbm, chains, 0, seeded(1))
        moved = after.visible[:rows] != cold
        assert torch.equal(moved, after.visible[rows:] == cold), "both partners move, or none"
        error = SIGMAS * math.sqrt(rate * (1 - rate) / rows)
        assert abs(moved.double().mean().item() - rate) <= error


def test_odd_sweeps_pair_other_temperatures() -> None:
    rbm, sampler = RBM(RBMConfig(1, 1, "bernoulli", "bernoulli")), ExchangeGibbs((1.0, 0.5, 0.25, 0.1), 1)
    v = torch.arange(4.0)[:, None]  # at energy 0 every exchange is accepted
    chains = sampler.at_temperatures(ChainState(v, torch.zeros(4, 1), torch.ones(4, 1)))
    assert sampler._exchange(rbm, chains, 0, seeded(1)).visible.flatten().tolist() == [1, 0, 3, 2]
    assert sampler._exchange(rbm, chains, 1, seeded(1)).visible.flatten().tolist() == [0, 2, 1, 3]


def test_separated_modes_get_their_weights() -> None:
    """Two modes 20 standard deviations apart, of weights 0.3 and 0.7; all chains start in the first one."""
    rbm = RBM(RBMConfig(1, 1, "gaussian", "bernoulli"))
    with torch.no_grad():
        rbm.weights.fill_(2.0)
        assert isinstance(rbm.visible, Gaussian)
        rbm.visible.log_variance.fill_(2 * math.log(0.1))
        rbm.hidden.bias.fill_(math.log(0.7 / 0.3) - 2.0**2 / (2 * 0.1**2))
    rows = 4000
    stuck = ChainState(torch.zeros(rows, 1), torch.zeros(rows, 1), torch.ones(rows, 1))
    assert float(plain_gibbs(150).run(rbm, stuck, seeded(2)).hidden.mean()) == 0.0
    sampler = ExchangeGibbs(geometric_betas(8, 0.02), 150)
    hot = ChainState(*(column.repeat(8, 1) for column in stuck))
    chains = sampler.at_one(sampler.run(rbm, sampler.at_temperatures(hot), seeded(3)))
    assert len(chains.visible) == rows
    error = SIGMAS * math.sqrt(0.3 * 0.7 / rows)
    assert abs(float(chains.hidden.mean()) - 0.7) < error
    assert float((chains.visible - 2 * chains.hidden).std()) == pytest.approx(0.1, rel=0.06)


def test_geometric_temperatures() -> None:
    assert geometric_betas(1, 0.1) == (1.0,)
    betas = geometric_betas(5, 0.0016)
    assert betas[0] == 1 and betas[-1] == pytest.approx(0.0016)
    assert all(b / a == pytest.approx(0.2) for a, b in itertools.pairwise(betas))

"""Driven sweeps: exact at phi = 0, plain Gibbs at std = 0, reproducible, and what they are for: changing modes (Fig. 8)."""

import math

import pytest
import torch
from laws import Table, assert_follows, assert_histogram, cell_of, seeded, single, start_at
from scipy.special import roots_genlaguerre
from small import small_rbm
from torch import Tensor

from pipeline.config import RBMConfig
from pipeline.models.rbm import RBM
from pipeline.samplers.driven import DrivenGibbs, GammaProcess, plain_gibbs
from pipeline.samplers.gibbs import ChainState

ROWS = 30_000


@pytest.mark.parametrize("visible", ["bernoulli", "onehot", "gaussian"])
@pytest.mark.parametrize("sweeps", [1, 3])
def test_driven_sweeps_average_over_the_law_of_beta(visible: str, sweeps: int) -> None:
    """At phi = 0 each sweep has an independent beta of its own: the law is a product of averaged sweeps, and exact.

    beta is averaged by Gauss-Laguerre quadrature of its Gamma law; both halves of a sweep must use the same beta.
    """
    std, rbm, g = 0.9, small_rbm(visible, "bernoulli", seed=4), seeded(4)
    with torch.no_grad():
        rbm.weights.mul_(3)  # strong enough for one beta per sweep to differ visibly from two
    nodes, weights = roots_genlaguerre(24, 1 / std**2 - 1)
    tables = [Table.of(rbm, float(node) * std**2) for node in nodes]
    start = tables[0].fixed_start(rbm)
    law_of_v, joint = tables[0].only(start), torch.zeros_like(tables[0].p)
    for _ in range(sweeps):
        joint = torch.zeros_like(joint)
        for weight, table in zip((weights / weights.sum()).tolist(), tables):
            joint += weight * table.after(law_of_v, 1)
        law_of_v = joint.sum(1)
    chains = start_at(tables[0].v[start].expand(ROWS, -1), 3)
    chains = DrivenGibbs(GammaProcess(std, 0.0), sweeps, min_beta=1e-6).run(single(rbm), chains, g)
    if visible != "gaussian":
        assert_follows(rbm, chains, tables[0], joint)
    else:  # at std 0.9 the variance of v is s / (1 - Var) but its fourth moment is infinite: compare h alone
        assert_histogram(cell_of(rbm.hidden, chains.hidden), joint.sum(0))


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian", "onehot"])
def test_without_variance_it_is_plain_gibbs_bit_for_bit(visible: str) -> None:
    """Against a loop written here from the conditionals, with a generator of the same seed; Bernoulli hidden units."""
    rbm = small_rbm(visible, "bernoulli", seed=6)
    v = torch.rand(101, len(rbm.visible.bias), generator=seeded(6), dtype=torch.float64)
    start = ChainState(v, torch.zeros(101, 3, dtype=torch.float64), torch.ones(101, 1, dtype=torch.float64))

    g, h = seeded(7), v
    with torch.no_grad():
        s = rbm.visible.log_variance.exp() if visible == "gaussian" else torch.ones(1, dtype=torch.float64)
        for _ in range(7):
            p = torch.sigmoid(torch.addmm(rbm.hidden.bias, v, rbm.weights / s[:, None]))
            h = (torch.empty_like(p).uniform_(generator=g) < p).double()
            total = torch.addmm(rbm.visible.bias, h, rbm.weights.T)
            if visible == "bernoulli":
                v = (torch.empty_like(total).uniform_(generator=g) < torch.sigmoid(total)).double()
            elif visible == "gaussian":
                v = total + torch.empty_like(total).normal_(generator=g) * (0.5 * rbm.visible.log_variance).exp()
            else:
                gumbel = -torch.empty_like(total).exponential_(generator=g).log()
                v = torch.eye(5, dtype=torch.float64)[(total + gumbel).argmax(1)]

    for sampler in (DrivenGibbs(GammaProcess(0.0, 0.9), 7), plain_gibbs(7)):
        out = sampler.run(rbm, start, seeded(7))
        assert torch.equal(out.visible, v)
        assert torch.equal(out.hidden, h)
        assert torch.equal(out.beta, torch.ones(101, 1, dtype=torch.float64))


def test_one_seed_gives_one_chain_and_another_seed_another() -> None:
    rbm = single(small_rbm("gaussian", "bernoulli"))
    sampler, start = DrivenGibbs(GammaProcess(0.95, 0.9), 20), start_at(torch.zeros(53, 2), 3)
    first, again, other = (sampler.run(rbm, start, seeded(seed)) for seed in (8, 8, 9))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first.visible, other.visible)


def test_a_run_may_be_cut_anywhere() -> None:
    """Runs of 4 and 9 sweeps with one generator are one run of 13: nothing but the chains and it is carried along.

    Driven, the betas of a run's sweeps are drawn first, so that the same numbers fall to other draws.
    """
    rbm = single(small_rbm("bernoulli", "onehot"))
    start, g = start_at(torch.zeros(29, 5), 3), seeded(10)
    parts = plain_gibbs(9).run(rbm, plain_gibbs(4).run(rbm, start, g), g)
    whole = plain_gibbs(13).run(rbm, start, seeded(10))
    assert all(torch.equal(a, b) for a, b in zip(parts, whole))
    assert (start.beta == 1).all() and (start.visible == 0).all()  # the caller's chains are left as they were


DISTANCE, WIDTH = 4.0, 0.5
MODES = torch.tensor([-DISTANCE, 0.0, DISTANCE])


def three_modes() -> RBM:
    """Fig. 8: one Gaussian unit, and a one-hot hidden layer that names the modes of an equal mixture of 3 Gaussians."""
    rbm = RBM(RBMConfig(1, 3, "gaussian", "onehot"))
    with torch.no_grad():
        rbm.weights.copy_(MODES[None])
        rbm.visible.log_variance.fill_(2 * math.log(WIDTH))
        rbm.hidden.bias.copy_(-(MODES**2) / (2 * WIDTH**2))  # cancels each mode's W^2 / (2 s): equal weights
    return rbm


def trace(process: GammaProcess, start: Tensor, sweeps: int) -> tuple[Tensor, Tensor]:
    """Visible states [sweeps, chains] and modes named by the hidden layer [sweeps, chains] from `start` [chains]."""
    rbm, g = three_modes(), seeded(12)
    beta = process.stationary(torch.empty(len(start), 1), g)
    chains = ChainState(start[:, None], torch.zeros(len(start), 3), beta)
    visible, modes = [], []
    for _ in range(sweeps):
        chains = DrivenGibbs(process, 1).run(rbm, chains, g)
        visible.append(chains.visible[:, 0])
        modes.append(chains.hidden.argmax(1))
    return torch.stack(visible), torch.stack(modes)


PLAIN, DRIVEN = GammaProcess(0.0, 0.0), GammaProcess(0.9, 0.9)


def test_driven_chains_change_modes_where_plain_ones_stay() -> None:
    """Modes 8 widths apart, 200 chains, 500 sweeps: measured 7 switches of plain Gibbs and about 4000 driven ones."""
    start = MODES.repeat(67)[:200] + WIDTH * torch.randn(200, generator=seeded(13))
    switches = {}
    for name, process in (("plain", PLAIN), ("driven", DRIVEN)):
        modes = trace(process, start, 500)[1]
        switches[name] = int((modes[1:] != modes[:-1]).sum())
    assert switches["plain"] < 100
    assert switches["driven"] > 2000


def test_driven_chains_find_all_modes_from_one() -> None:
    """All chains start in the left mode: after 200 sweeps the plain ones are still there, the driven ones everywhere."""
    start = torch.full((300,), -DISTANCE)
    shares = {}
    for name, process in (("plain", PLAIN), ("driven", DRIVEN)):
        shares[name] = torch.bincount(trace(process, start, 200)[1][-1], minlength=3) / 300
    assert shares["plain"][0] > 0.95
    # not an equilibrium sampler, yet close; 0.18 is 6 binomial standard errors at 1/3 and 300 chains
    assert (shares["driven"] - 1 / 3).abs().max() < 0.18


def test_driven_samples_are_close_to_the_model_with_fatter_tails() -> None:
    """The law is that of a mixture over beta: the same centers and weights, and more mass far from every mode.

    Measured: 85 % within 2 widths of a mode (model: 95.4 %) and 1.5 % beyond 4 widths (model: 0.006 %).
    """
    start = MODES.repeat(200) + WIDTH * torch.randn(600, generator=seeded(14))
    visible, modes = trace(DRIVEN, start, 300)
    visible, modes = visible[50:].flatten(), modes[50:].flatten()
    distance = (visible[:, None] - MODES).abs().min(1).values / WIDTH
    assert 0.80 < (distance < 2).float().mean().item() < 0.93
    assert 0.005 < (distance > 4).float().mean().item() < 0.03
    assert (torch.bincount(modes, minlength=3) / len(modes) - 1 / 3).abs().max() < 0.05
    for mode, center in enumerate(MODES.tolist()):
        assert visible[modes == mode].median().item() == pytest.approx(center, abs=0.05)

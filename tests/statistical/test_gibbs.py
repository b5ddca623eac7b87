"""Gibbs sweeps against exact laws: every pairing of units, any fixed temperature, any number of sweeps.

Each comparison uses independent chains after few sweeps from a known start, so there is no autocorrelation to guess; the
law after k sweeps from that start is exact (tests/statistical/laws.py, where the bounds are). Chains are float32.
"""

import pytest
import torch
from laws import SIGMAS, Table, assert_follows, assert_histogram, exact_visible_draws, seeded, single, start_at
from small import PAIRINGS, small_rbm

from pipeline.models.units import Bernoulli, Gaussian, OneHot
from pipeline.samplers.driven import plain_gibbs
from pipeline.samplers.gibbs import ChainState, gibbs_sweep

ROWS = 30_000
EVERY_PAIRING = pytest.mark.parametrize(("visible", "hidden"), PAIRINGS)


@EVERY_PAIRING
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("beta", [0.5, 1.0, 1.6])
def test_sweeps_at_a_fixed_beta_leave_the_tempered_law_invariant(
    visible: str, hidden: str, centered: bool, beta: float
) -> None:
    rbm, g = small_rbm(visible, hidden, seed=1, centered=centered), seeded(1)
    table = Table.of(rbm, beta)
    chains = start_at(exact_visible_draws(rbm, table, beta, ROWS, g), len(rbm.hidden.bias))
    couplings = single(rbm).couplings()
    temperature = None if beta == 1 else torch.full((ROWS, 1), beta)
    for _ in range(3):
        chains = gibbs_sweep(single(rbm), couplings, chains, temperature, g)
    assert_follows(rbm, chains, table, table.p)


@EVERY_PAIRING
@pytest.mark.parametrize("sweeps", [1, 2, 60])
def test_the_law_after_some_sweeps_from_one_state_is_exact_and_ends_at_the_model(
    visible: str, hidden: str, sweeps: int
) -> None:
    rbm, g = small_rbm(visible, hidden, seed=2), seeded(2)
    table = Table.of(rbm)
    start = table.fixed_start(rbm)
    law = table.after(table.only(start), sweeps)
    if sweeps == 60:
        assert (law - table.p).abs().sum() < 1e-6  # so that what follows is a comparison with the model
    if sweeps == 1:
        assert (law - table.p).abs().sum() > 1e-2  # and here it is not
    chains = start_at(table.v[start].expand(ROWS, -1), len(rbm.hidden.bias))
    assert_follows(rbm, plain_gibbs(sweeps).run(single(rbm), chains, g), table, law)


@EVERY_PAIRING
def test_each_chain_follows_its_own_beta(visible: str, hidden: str) -> None:
    """Chains at beta 0.4 and 1.7 in turn, in one tensor: each half keeps its own law."""
    rbm, g = small_rbm(visible, hidden, seed=3), seeded(3)
    betas = (0.4, 1.7)
    tables = [Table.of(rbm, beta) for beta in betas]
    draws = [exact_visible_draws(rbm, table, beta, ROWS, g) for table, beta in zip(tables, betas)]
    chains = start_at(torch.stack(draws, 1).flatten(0, 1), len(rbm.hidden.bias))
    couplings = single(rbm).couplings()
    for _ in range(2):
        chains = gibbs_sweep(single(rbm), couplings, chains, torch.tensor(betas).repeat(ROWS)[:, None], g)
    for first, table in enumerate(tables):
        assert_follows(rbm, ChainState(*(x[first::2] for x in chains)), table, table.p)


@pytest.mark.parametrize("beta", [0.3, 1.0, 2.5])
def test_conditionals_of_one_layer_at_any_beta(beta: float) -> None:
    """Bernoulli: p = sigmoid(beta total). One-hot: softmax(beta total). Gaussian: mean unmoved, variance s / beta."""
    g, rows = seeded(5), 60_000
    total = torch.tensor([-1.3, 0.0, 0.8, 2.1])
    betas = torch.full((rows, 1), beta)

    drawn = Bernoulli(4).sample_(total.repeat(rows, 1), betas, g).double()
    p = torch.sigmoid(beta * total.double())
    assert ((drawn.mean(0) - p).abs() < SIGMAS * (p * (1 - p) / rows).sqrt()).all()
    pairs = (drawn - p)[:, :3] * (drawn - p)[:, 1:]  # units given the other layer are independent
    assert (pairs.mean(0).abs() < SIGMAS * pairs.std(0) / rows**0.5).all()

    drawn = OneHot(4).sample_(total.repeat(rows, 1), betas, g)
    assert_histogram(drawn.argmax(1), torch.softmax(beta * total.double(), 0))
    assert (drawn.sum(1) == 1).all()

    layer = Gaussian(4)
    with torch.no_grad():
        layer.log_variance.copy_(torch.tensor([-2.0, 0.0, 0.5, 1.0]))
        drawn = layer.sample_(total.repeat(rows, 1), betas, g).double()
    s = layer.log_variance.detach().double().exp() / beta
    assert ((drawn.mean(0) - total).abs() < SIGMAS * (s / rows).sqrt()).all()
    assert ((drawn.var(0) - s).abs() < SIGMAS * s * (2 / rows) ** 0.5).all()  # sd of a normal sample variance


@EVERY_PAIRING
def test_conditional_means_average_to_the_same_with_less_noise(visible: str, hidden: str) -> None:
    """Rao-Blackwell: E[h | v] over exact draws of v has the mean of h, and a smaller variance."""
    rbm, g = small_rbm(visible, hidden, seed=7), seeded(11)
    table = Table.of(rbm)
    v = exact_visible_draws(rbm, table, 1.0, ROWS, g)
    chains = plain_gibbs(1).run(single(rbm), start_at(v, len(rbm.hidden.bias)), g)
    means = single(rbm).hidden_mean(chains.visible).detach().double()
    exact = table.p.sum(0) @ table.h
    assert ((means.mean(0) - exact).abs() < SIGMAS * means.std(0) / ROWS**0.5 + 1e-6).all()
    assert (means.var(0) < chains.hidden.double().var(0)).all()

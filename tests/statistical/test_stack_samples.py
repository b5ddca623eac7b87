"""Rows drawn from stacks follow p_top(h_1) p_bottom(v | h_1), by enumeration; encodings follow p(h | v)."""

import torch
from laws import Table, assert_histogram, cell_of, single
from small import small_rbm
from torch import Tensor

from pipeline.config import RBMConfig
from pipeline.metrics.exact import layer_states
from pipeline.models.rbm import RBM
from pipeline.models.stack import RBMStack, encode, encode_rows
from pipeline.samplers.driven import plain_gibbs
from pipeline.samplers.protocols import Protocol, WideStart
from pipeline.samplers.stack import draw_stack_samples

ROWS = 12_000
LONG = Protocol("test", (plain_gibbs(30),))


def bernoulli_rbm(num_visible: int, num_hidden: int, seed: int, scale: float = 0.8) -> RBM:
    rbm = RBM(RBMConfig(num_visible, num_hidden, "bernoulli", "bernoulli"), torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in rbm.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        rbm.hidden.offset.fill_(0.3)
    return rbm


def visible_given_hidden(rbm: RBM) -> Tensor:
    """p(v | h) [states of v, states of h] of two Bernoulli layers, from the energy alone."""
    v, h = layer_states(rbm.visible), layer_states(rbm.hidden)
    minus_energy = -rbm.energy(v.repeat_interleave(len(h), 0), h.repeat(len(v), 1)).view(len(v), len(h))
    return torch.softmax(minus_energy, 0).detach()


def prior_of_top(rbm: RBM, start: Tensor) -> Tensor:
    """p_top of its visible states [n]; the protocol's law from a wide start equals it to 1e-5 in total variation."""
    table = Table.of(rbm)
    wide = torch.where(table.v == 1, start, 1 - start).prod(1)
    reached = table.after(wide, 30).sum(1)
    assert (reached - table.p.sum(1)).abs().sum() < 1e-5
    return table.p.sum(1)


def wide(num_visible: int) -> WideStart:
    return WideStart(torch.full((num_visible,), 0.6), torch.full((num_visible,), 0.49))


def test_two_layers_from_the_top_down():
    """V and, through E[v | h_1], the h_1 it came from; the bottom's own law is far away, so the test can fail."""
    bottom, top = bernoulli_rbm(5, 3, 1, 1.2), bernoulli_rbm(3, 2, 2)
    prior = prior_of_top(top, wide(3).mean.double())
    law = visible_given_hidden(bottom) @ prior
    assert (law - Table.of(bottom).p.sum(1)).abs().sum() / 2 > 0.1
    drawn = draw_stack_samples(RBMStack([single(bottom), single(top)]), wide(3), LONG, ROWS, 7)
    assert_histogram(cell_of(bottom.visible, drawn.visible), law)
    h = layer_states(bottom.hidden)
    which = torch.cdist(drawn.visible_mean.double(), bottom.visible_mean(h).detach()).min(1)
    assert which.values.max() < 1e-5
    assert_histogram(which.indices, prior)
    joint = visible_given_hidden(bottom) * prior
    cells = cell_of(bottom.visible, drawn.visible) * len(h) + which.indices
    assert_histogram(cells, joint.flatten())


def test_three_layers_draw_the_middle():
    """p_3(h_2) p_2(h_1 | h_2) p_1(v | h_1); means in the middle would have another law."""
    bottom, middle, top = bernoulli_rbm(4, 3, 3, 1.2), bernoulli_rbm(3, 3, 4, 1.2), bernoulli_rbm(3, 2, 5)
    law = visible_given_hidden(bottom) @ visible_given_hidden(middle) @ prior_of_top(top, wide(3).mean.double())
    stack = RBMStack([single(rbm) for rbm in (bottom, middle, top)])
    drawn = draw_stack_samples(stack, wide(3), LONG, ROWS, 8)
    assert_histogram(cell_of(bottom.visible, drawn.visible), law)


def test_a_gaussian_bottom_has_its_noise():
    """V - E[v | h_1] has the bottom's variances, and is independent from row to row."""
    bottom, top = small_rbm("gaussian", "bernoulli", seed=4), bernoulli_rbm(3, 2, 6)
    drawn = draw_stack_samples(RBMStack([single(bottom), single(top)]), wide(3), LONG, ROWS, 9)
    z = (drawn.visible - drawn.visible_mean).double() / bottom.visible.variance().sqrt()
    assert (z.mean(0).abs() < 6 / ROWS**0.5).all()
    assert ((z.square().mean(0) - 1).abs() < 6 * (2 / ROWS) ** 0.5).all()
    assert (z[1:] * z[:-1]).mean(0).abs().max() < 6 / ROWS**0.5


def test_encodings_follow_the_conditional_law():
    """One row repeated: h_1 has p(h_1 | v), and two layers up h_2 has sum over h_1 of p(h_2 | h_1) p(h_1 | v)."""
    bottom, top = bernoulli_rbm(5, 3, 10, 1.2), bernoulli_rbm(3, 2, 11)
    row = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    rows = row.expand(ROWS, -1)
    table = Table.of(bottom)
    given = table.p[int(cell_of(bottom.visible, row[None]))]
    given = given / given.sum()
    assert_histogram(cell_of(bottom.hidden, encode_rows(bottom, rows, "sample", 0, 1, "rows")), given)
    upper = Table.of(top).p
    law = given @ (upper / upper.sum(1, keepdim=True))
    assert_histogram(cell_of(top.hidden, encode(RBMStack([bottom, top]), rows, seed=3)), law)

"""Enumeration in blocks: the order of states, independence of the block size, gradients, and a layer of twenty units."""

import itertools
import math
import time

import pytest
import torch
from small import PAIRINGS, joint_table, small_rbm

from pipeline.config import RBMConfig
from pipeline.metrics import exact
from pipeline.models.rbm import RBM
from pipeline.models.units import Bernoulli, OneHot

DISCRETE = [pair for pair in PAIRINGS if pair != ("gaussian", "gaussian")]


def test_states_are_binary_numbers_in_order():
    expected = torch.tensor(list(itertools.product((0.0, 1.0), repeat=7)), dtype=torch.float64)
    assert torch.equal(exact.layer_states(Bernoulli(7, torch.float64)), expected)
    assert torch.equal(exact.layer_states(OneHot(5)), torch.eye(5))


@pytest.mark.parametrize(("visible", "hidden"), DISCRETE)
@pytest.mark.parametrize("beta", [1.0, 0.6])
def test_blocks_change_neither_values_nor_gradients(visible, hidden, beta, monkeypatch):
    def value_and_gradients() -> list[torch.Tensor]:
        rbm = small_rbm(visible, hidden, seed=5, centered=True)
        value = exact.log_partition(rbm, beta)
        return [value.detach(), *torch.autograd.grad(value, list(rbm.parameters()))]

    whole = value_and_gradients()
    monkeypatch.setattr(exact, "_BLOCK_ELEMENTS", 11)  # two states at a time, recomputed in the backward pass
    torch.testing.assert_close(value_and_gradients(), whole, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        blocked = exact.log_partition(small_rbm(visible, hidden, seed=5, centered=True), beta)
    assert blocked.item() == pytest.approx(whole[0].item(), rel=1e-12)


@pytest.mark.parametrize(("visible", "hidden"), DISCRETE)
def test_log_weights_are_the_marginal_of_either_layer(visible, hidden):
    rbm = small_rbm(visible, hidden, seed=6, centered=True)
    v, h, cell = joint_table(rbm)
    joint = torch.exp(-rbm.energy(v, h)) * cell
    num_hidden = len(torch.unique(h, dim=0))
    table = joint.view(-1, num_hidden)
    if visible != "gaussian":
        torch.testing.assert_close(exact.state_log_weights(rbm, "visible"), table.sum(1).log(), rtol=0, atol=1e-9)
    if hidden != "gaussian":
        torch.testing.assert_close(exact.state_log_weights(rbm, "hidden"), table.sum(0).log(), rtol=0, atol=1e-9)


def test_twenty_units_are_enumerated_in_seconds():
    # Without weights the units are independent: log Z is known in closed form.
    rbm = RBM(RBMConfig(2, 20, "gaussian", "bernoulli"), torch.float64)
    with torch.no_grad():
        rbm.hidden.bias.copy_(torch.linspace(-2, 1.5, 20))
        rbm.visible.log_variance.fill_(-0.7)
    expected = torch.nn.functional.softplus(rbm.hidden.bias).sum().item() + math.log(2 * math.pi) - 0.7
    start = time.perf_counter()
    value = exact.log_partition(rbm)
    value.backward()
    assert time.perf_counter() - start < 60  # 2 s on an idle machine; tuples of Python took minutes and gigabytes
    assert value.item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(rbm.hidden.bias.grad, torch.sigmoid(rbm.hidden.bias.detach()))


def test_the_layer_with_fewer_states_is_enumerated():
    rbm = RBM(RBMConfig(31, 30, "onehot", "bernoulli"), torch.float64)  # 31 states against 2^30
    assert exact.log_partition(rbm).item() == pytest.approx(math.log(31) + 30 * math.log(2))
    assert exact.is_enumerable(rbm.visible) and not exact.is_enumerable(rbm.hidden)


def test_models_without_a_small_layer_have_no_exact_samples():
    generator = torch.Generator()
    with pytest.raises(ValueError, match="at most 20"):
        exact.exact_samples(RBM(RBMConfig(23, 21, "bernoulli", "bernoulli")), 3, generator)
    with pytest.raises(ValueError, match="Gaussian layer cannot be enumerated"):
        exact.exact_samples(RBM(RBMConfig(2, 2, "gaussian", "gaussian")), 3, generator)
    with pytest.raises(ValueError, match="n is 0"):
        exact.exact_samples(RBM(RBMConfig(2, 3, "gaussian", "bernoulli")), 0, generator)

"""Energies, free energies, partition functions and conditionals against enumeration and quadrature."""

import math

import pytest
import torch
from small import PAIRINGS, axis_states, joint_table, log_likelihood, small_rbm

from pipeline.config import RBMConfig
from pipeline.metrics.exact import layer_states, log_partition
from pipeline.models.rbm import RBM
from pipeline.models.units import Gaussian

CENTERED = pytest.mark.parametrize("centered", [False, True])
EVERY_PAIRING = pytest.mark.parametrize(("visible", "hidden"), PAIRINGS)


@EVERY_PAIRING
@CENTERED
@pytest.mark.parametrize("beta", [1.0, 0.6])
def test_log_partition_is_the_sum_over_all_states(visible, hidden, centered, beta):
    rbm = small_rbm(visible, hidden, centered=centered)
    v, h, cell = joint_table(rbm)
    expected = torch.logsumexp(-beta * rbm.energy(v, h), 0) + math.log(cell)
    assert log_partition(rbm, beta).item() == pytest.approx(expected.item(), abs=1e-9)


@EVERY_PAIRING
@CENTERED
@pytest.mark.parametrize("beta", [1.0, 0.6])
def test_free_energy_and_conditionals_come_from_the_joint(visible, hidden, centered, beta):
    rbm = small_rbm(visible, hidden, seed=1, centered=centered)
    h, cell = axis_states(rbm.hidden)
    v = layer_states(rbm.visible)[:7] if visible != "gaussian" else torch.randn(7, 2, dtype=torch.float64)
    for row in v:
        log_joint = -beta * rbm.energy(row.expand(len(h), -1), h)
        free_energy = -(torch.logsumexp(log_joint, 0) + math.log(cell))
        assert rbm.free_energy(row[None], beta).item() == pytest.approx(free_energy.item(), abs=1e-9)
        mean = torch.softmax(log_joint, 0) @ h
        torch.testing.assert_close(rbm.hidden_mean(row[None], beta)[0], mean, rtol=0, atol=1e-9)


@EVERY_PAIRING
@CENTERED
def test_visible_conditional_comes_from_the_joint(visible, hidden, centered):
    rbm = small_rbm(visible, hidden, seed=2, centered=centered)
    v, _ = axis_states(rbm.visible)
    h = layer_states(rbm.hidden)[:3] if hidden != "gaussian" else torch.randn(3, 1, dtype=torch.float64)
    for row in h:
        p = torch.softmax(-0.7 * rbm.energy(v, row.expand(len(v), -1)), 0)
        torch.testing.assert_close(rbm.visible_mean(row[None], 0.7)[0], p @ v, rtol=0, atol=1e-9)
        if isinstance(rbm.visible, Gaussian):  # variance s / beta
            variance = p @ (v - p @ v) ** 2
            torch.testing.assert_close(variance, rbm.visible.variance() / 0.7, rtol=0, atol=1e-9)


@EVERY_PAIRING
@CENTERED
def test_couplings_fold_offsets_and_variances(visible, hidden, centered):
    rbm = small_rbm(visible, hidden, seed=3, centered=centered)
    v, h, _ = joint_table(rbm)
    v, h = v[::97], h[::97]
    folded = rbm.couplings()
    torch.testing.assert_close(
        torch.addmm(folded.hidden_bias, v, folded.to_hidden), rbm.hidden.bias + rbm.hidden_field(v)
    )
    torch.testing.assert_close(
        torch.addmm(folded.visible_bias, h, folded.to_visible), rbm.visible.bias + rbm.visible_field(h)
    )


@EVERY_PAIRING
def test_moving_the_hidden_offset_keeps_the_distribution(visible, hidden):
    rbm = small_rbm(visible, hidden, seed=4, centered=True)
    v, h, _ = joint_table(rbm)
    before = torch.log_softmax(-rbm.energy(v, h), 0)
    rbm.move_hidden_offset_(torch.linspace(-0.5, 0.8, len(rbm.hidden.bias), dtype=torch.float64))
    torch.testing.assert_close(torch.log_softmax(-rbm.energy(v, h), 0), before, rtol=0, atol=1e-9)


def test_log_likelihood_is_normalized():
    rbm = small_rbm("bernoulli", "bernoulli", seed=5)
    v = layer_states(rbm.visible)
    total = sum(math.exp(log_likelihood(rbm, row[None]).item()) for row in v)
    assert total == pytest.approx(1.0, abs=1e-12)


def test_two_gaussian_layers_need_a_positive_definite_precision():
    rbm = RBM(RBMConfig(3, 2, "gaussian", "gaussian"), torch.float64)
    with torch.no_grad():
        rbm.weights.fill_(0.4)  # singular value 0.4 * sqrt(6) = 0.98
        log_partition(rbm)
        rbm.weights.fill_(0.42)  # 1.03
    with pytest.raises(ValueError, match="singular value"):
        log_partition(rbm)


def test_too_large_a_layer_is_refused():
    rbm = RBM(RBMConfig(23, 21, "bernoulli", "bernoulli"))
    with pytest.raises(ValueError, match="at most 20"):
        log_partition(rbm)


def test_offsets_count_from_when_they_change():
    """Zero offsets are not subtracted; that they are zero is remembered."""
    rbm = small_rbm("gaussian", "bernoulli")
    v = torch.randn(5, len(rbm.visible.bias), dtype=torch.float64)

    def agrees(of: RBM) -> bool:
        variance = of.visible.variance()
        assert variance is not None
        expected = torch.sigmoid(of.hidden.bias + ((v - of.visible.offset) / variance) @ of.weights)
        return torch.allclose(of.hidden_mean(v), expected) and torch.allclose(
            of.hidden_statistics(v, of.couplings())[0], expected
        )

    assert agrees(rbm) and not rbm.visible.shifts()
    rbm.visible.offset.fill_(0.5)
    assert agrees(rbm) and rbm.visible.shifts()
    rbm.visible.offset.zero_()
    assert agrees(rbm) and not rbm.visible.shifts()
    rbm.visible.offset = torch.full_like(rbm.visible.offset, -0.3)
    assert agrees(rbm)
    state = {name: value + 0.1 for name, value in rbm.state_dict().items()}
    for assign in (False, True):
        rbm.visible.offset.zero_()
        assert agrees(rbm)
        rbm.load_state_dict(state, assign=assign)
        assert agrees(rbm)
    with torch.inference_mode():
        assert agrees(small_rbm("gaussian", "bernoulli"))

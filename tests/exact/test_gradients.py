"""Likelihood and adversarial gradients against autograd of the exact objective, for every pairing of units."""

import pytest
import torch
from small import PAIRINGS, axis_states, joint_table, log_likelihood, small_rbm

from pipeline.learning.weights import data_weights, particle_weights
from pipeline.metrics.exact import layer_states
from pipeline.models.rbm import RBM, Hidden
from pipeline.models.units import Gaussian
from pipeline.training import block as blocks
from pipeline.training.block import Block, Counts, Particles, ascent_direction

TOLERANCE = 1e-10
EVERY_PAIRING = pytest.mark.parametrize(("visible", "hidden"), PAIRINGS)
CENTERED = pytest.mark.parametrize("centered", [False, True])


def autograd(rbm: RBM, value: torch.Tensor) -> dict[str, torch.Tensor]:
    names, params = zip(*rbm.named_parameters())
    return dict(zip(names, torch.autograd.grad(value, params)))


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(actual) == set(expected)
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], rtol=0, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )


def some_data(rbm: RBM, rows: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    if isinstance(rbm.visible, Gaussian):
        return torch.randn(rows, len(rbm.visible.bias), generator=generator, dtype=torch.float64)
    states = layer_states(rbm.visible)
    return states[torch.randint(len(states), (rows,), generator=generator)]


def model_table(rbm: RBM) -> tuple[torch.Tensor, torch.Tensor]:
    """Visible states [n, V] and their exact probabilities [n] (differentiable)."""
    v, _ = axis_states(rbm.visible)
    return v, torch.softmax(-rbm.free_energy(v), 0)


def critic_of(x: torch.Tensor) -> torch.Tensor:
    """Some smooth bounded T in (-1, 1) of states [n, size]; fixed, as the critic is for one step."""
    direction = torch.linspace(-1.3, 0.9, x.shape[1], dtype=x.dtype)
    return torch.tanh(x @ direction + 0.4 * torch.cos(2.1 * x.sum(1)) - 0.2)


@EVERY_PAIRING
@CENTERED
def test_likelihood_gradient(visible, hidden, centered):
    rbm = small_rbm(visible, hidden, centered=centered)
    data = some_data(rbm)
    v, p = model_table(rbm)
    positive = rbm.negative_energy_gradient(data, rbm.hidden_statistics(data), data_weights(1.0, 7, 7, data))
    negative = rbm.negative_energy_gradient(v, rbm.hidden_statistics(v), p)
    assert_same({k: positive[k] - negative[k] for k in positive}, autograd(rbm, log_likelihood(rbm, data)))


@EVERY_PAIRING
@CENTERED
def test_adversarial_gradient_with_t_of_v(visible, hidden, centered):
    """A = sum p(v) T(v); the formula uses conditional means of h in place of samples (Rao-Blackwell)."""
    rbm = small_rbm(visible, hidden, seed=1, centered=centered)
    v, p = model_table(rbm)
    t = critic_of(rbm.hidden_mean(v).detach())
    covariance = rbm.negative_energy_gradient(v, rbm.hidden_statistics(v), p * (t - p @ t))
    assert_same(covariance, autograd(rbm, p @ t))


@EVERY_PAIRING
@CENTERED
def test_adversarial_gradient_with_t_of_a_sampled_h(visible, hidden, centered):
    """A = sum p(v, h) T(h): the statistics must then use that same h."""
    rbm = small_rbm(visible, hidden, seed=2, centered=centered)
    v, h, _ = joint_table(rbm)
    p = torch.softmax(-rbm.energy(v, h), 0)
    t = critic_of(h)
    covariance = rbm.negative_energy_gradient(v, Hidden(h, None), p * (t - p @ t))
    assert_same(covariance, autograd(rbm, p @ t))


def test_conditional_means_in_place_of_the_sampled_h_are_wrong():
    """The contrast to the two tests above: T of a sampled h with means in the statistics misses the gradient."""
    rbm = small_rbm("bernoulli", "bernoulli", seed=2)
    v, h, _ = joint_table(rbm)
    p = torch.softmax(-rbm.energy(v, h), 0)
    t = critic_of(h)
    mixed = rbm.negative_energy_gradient(v, rbm.hidden_statistics(v), p * (t - p @ t))
    exact = autograd(rbm, p @ t)
    assert (mixed["weights"] - exact["weights"]).abs().max() > 1e-3


@pytest.mark.parametrize("gamma", [1.0, 0.3, 0.0])
def test_combined_weights_are_the_combined_objective(gamma):
    """The weights of learning/weights.py give gamma L + (1 - gamma) A on a table in which every row counts the same.

    Bernoulli 5-3 with p(v) rounded to multiples of 1/M and each v repeated accordingly, so that the particles' averages
    *are* the expectation under a distribution q; the exact derivative is then the weighted sum itself by definition, and
    it must agree with its two parts taken separately.
    """
    rbm = small_rbm("bernoulli", "bernoulli", seed=3)
    data = some_data(rbm, 11)
    particles = some_data(rbm, 13)
    t = critic_of(rbm.hidden_mean(particles).detach())
    f = rbm.negative_energy_gradient
    h_data, h_particles = rbm.hidden_statistics(data), rbm.hidden_statistics(particles)
    w_data = data_weights(gamma, 11, 11, data)
    w_particles = particle_weights(gamma, t, t.mean().item(), 13, particles)
    mean = torch.full((13,), 1 / 13, dtype=torch.float64)
    for name in f(data, h_data, w_data):
        likelihood = f(data, h_data, data_weights(1.0, 11, 11, data))[name] - f(particles, h_particles, mean)[name]
        covariance = f(particles, h_particles, mean * t)[name] - t.mean() * f(particles, h_particles, mean)[name]
        combined = f(data, h_data, w_data)[name] + f(particles, h_particles, w_particles)[name]
        torch.testing.assert_close(combined, gamma * likelihood + (1 - gamma) * covariance, rtol=0, atol=1e-12)


def test_the_direction_ascends_the_exact_objective():
    """One small step along gamma dL + (1 - gamma) dA raises gamma L + (1 - gamma) A; Eq. 18's sign does not."""
    gamma = 0.2
    rbm = small_rbm("bernoulli", "bernoulli", seed=4)
    data = some_data(rbm)

    def objective() -> torch.Tensor:
        v, p = model_table(rbm)
        return gamma * log_likelihood(rbm, data) + (1 - gamma) * (p @ critic_of(v))

    v, p = model_table(rbm)
    p, t = p.detach(), critic_of(v)
    f = rbm.negative_energy_gradient
    positive = f(data, rbm.hidden_statistics(data), data_weights(gamma, 7, 7, data))
    for sign, rises in ((1, True), (-1, False)):
        # the particles' weights of learning/weights.py with each row's own probability in place of 1/M
        per_row = particle_weights(gamma, sign * t, sign * (p @ t).item(), 1, v) * p
        negative = f(v, rbm.hidden_statistics(v), per_row)
        direction = {k: positive[k] + negative[k] for k in positive}
        exact = autograd(rbm, objective())
        slope = sum((direction[k] * exact[k]).sum() for k in exact)
        if rises:
            assert_same(direction, exact)
            before = objective().item()
            with torch.no_grad():
                for name, parameter in rbm.named_parameters():
                    parameter.add_(1e-4 * direction[name])
            assert objective().item() > before
            with torch.no_grad():
                for name, parameter in rbm.named_parameters():
                    parameter.sub_(1e-4 * direction[name])
        else:
            assert abs(slope - sum((exact[k] ** 2).sum() for k in exact)) > 1e-3


@EVERY_PAIRING
def test_a_finite_difference_agrees(visible, hidden):
    """Autograd shares energy() with the formula; a difference quotient of enumerated log-likelihoods shares less."""
    rbm = small_rbm(visible, hidden, seed=6)
    data = some_data(rbm)
    v, p = model_table(rbm)
    f = rbm.negative_energy_gradient
    positive = f(data, rbm.hidden_statistics(data), data_weights(1.0, 7, 7, data))["weights"]
    gradient = positive - f(v, rbm.hidden_statistics(v), p)["weights"]
    epsilon = 1e-5
    with torch.no_grad():
        rbm.weights[1, 0] += epsilon
        up = log_likelihood(rbm, data)
        rbm.weights[1, 0] -= 2 * epsilon
        down = log_likelihood(rbm, data)
    assert gradient[1, 0].item() == pytest.approx(((up - down) / (2 * epsilon)).item(), abs=1e-7)


@EVERY_PAIRING
@pytest.mark.parametrize("sampled", [False, True])
def test_many_rows_in_parts_give_the_same_sum(visible, hidden, sampled, monkeypatch):
    rbm = small_rbm(visible, hidden, seed=8, centered=True)
    data, particles = some_data(rbm, 11), some_data(rbm, 13)
    means = rbm.hidden_statistics(particles)
    of_particles = Hidden(means.states.detach().round(), None) if sampled else means
    block = Block(
        data,
        rbm.hidden_statistics(data),
        data,
        Particles(particles, of_particles, particles, torch.ones(len(particles), 1)),
        critic_of(particles),
    )
    whole = ascent_direction(rbm, block, 0.3, 0.1, Counts(11, 13))
    monkeypatch.setattr(blocks, "_MOST_ROWS", 5)
    assert_same(ascent_direction(rbm, block, 0.3, 0.1, Counts(11, 13)), whole)
    f, w = rbm.negative_energy_gradient, particle_weights(0.3, critic_of(particles), 0.1, 13, particles)
    apart = [f(data, block.data_hidden, data_weights(0.3, 11, 11, data)), f(particles, of_particles, w)]
    assert_same({name: apart[0][name] + apart[1][name] for name in whole}, whole)

"""The natural gradient against autograd and enumeration: its features, its Fisher matrix, its length, its units."""

import copy

import pytest
import torch
from small import axis_states, small_rbm
from torch import Tensor

from pipeline.config import NaturalGradientConfig
from pipeline.learning.natural_gradient import damping_units, energy_features, natural_step
from pipeline.metrics.exact import log_partition
from pipeline.models.rbm import RBM
from pipeline.models.units import Gaussian

PAIRS = pytest.mark.parametrize(
    ("visible", "hidden"), [(v, h) for v in ("bernoulli", "gaussian", "onehot") for h in ("bernoulli", "onehot")]
)


def flat(parts: dict[str, Tensor], rbm: RBM) -> Tensor:
    return torch.cat([parts[name].flatten() for name, _ in rbm.named_parameters()])


def model_rows(rbm: RBM, rows: int) -> tuple[Tensor, Tensor]:
    """All (Gaussian: a grid of) visible states with p(v), and about `rows` rows in which each occurs rows * p(v) times."""
    v, _ = axis_states(rbm.visible, points=97, half_width=12.0)
    with torch.no_grad():
        p = torch.softmax(-rbm.free_energy(v), 0)
    return p, v.repeat_interleave((p * rows).round().long(), 0)


def some_gradient(rbm: RBM) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(5)
    return {name: torch.randn(p.shape, generator=g, dtype=torch.float64) for name, p in rbm.named_parameters()}


def exact_fisher(rbm: RBM) -> Tensor:
    """sum_v p(v) grad log p(v) grad log p(v)^T, by autograd of the free energy of every state."""
    v, _ = axis_states(rbm.visible, points=97, half_width=12.0)
    names, params = zip(*rbm.named_parameters())

    def log_p(*values: Tensor) -> Tensor:
        energy = torch.func.functional_call(_FreeEnergy(rbm), {f"rbm.{n}": x for n, x in zip(names, values)}, (v,))
        return torch.log_softmax(-energy, 0)

    jacobian = torch.func.jacfwd(log_p, tuple(range(len(params))))(*(p.detach() for p in params))
    columns = torch.cat([j.flatten(1) for j in jacobian], 1)
    p = torch.softmax(-rbm.free_energy(v), 0).detach()
    return (columns * p[:, None]).T @ columns


class _FreeEnergy(torch.nn.Module):
    def __init__(self, rbm: RBM):
        super().__init__()
        self.rbm = rbm

    def forward(self, v: Tensor) -> Tensor:
        return self.rbm.free_energy(v)


@PAIRS
@pytest.mark.parametrize("centered", [False, True])
def test_features_are_the_gradient_of_minus_the_free_energy(visible: str, hidden: str, centered: bool) -> None:
    rbm = small_rbm(visible, hidden, seed=3, centered=centered)
    v, _ = axis_states(rbm.visible, points=5, half_width=2.0)
    features = energy_features(rbm, v)
    for row, feature in zip(v, features):
        grads = torch.autograd.grad(-rbm.free_energy(row[None]).sum(), list(rbm.parameters()))
        torch.testing.assert_close(feature, torch.cat([g.flatten() for g in grads]), rtol=0, atol=1e-10)
    weights = torch.linspace(0.1, 1.0, len(v), dtype=torch.float64)
    summed = rbm.negative_energy_gradient(v, rbm.hidden_statistics(v), weights)
    torch.testing.assert_close(weights @ features, flat(summed, rbm), rtol=0, atol=1e-10)


@PAIRS
def test_the_step_solves_the_damped_system_of_the_exact_fisher_matrix(visible: str, hidden: str) -> None:
    rbm = small_rbm(visible, hidden, seed=4)
    gradient, config = some_gradient(rbm), NaturalGradientConfig(damping=0.05, max_divergence=1e9)
    _, rows = model_rows(rbm, 300_000)
    step = flat(natural_step(rbm, gradient, rows, rows, config, 0.3), rbm)
    with torch.no_grad():
        system = exact_fisher(rbm) + 0.05 * torch.diag(damping_units(rbm, rows))
        expected = 0.3 * torch.linalg.solve(system, flat(gradient, rbm))
    assert float((step - expected).norm() / expected.norm()) < 2e-3, "counts are rounded to 1 in 300 000"
    plain = flat(gradient, rbm)
    assert float(torch.cosine_similarity(step, plain, dim=0)) < 0.99, "the plain gradient would be another direction"


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_a_long_step_is_shortened_to_its_divergence(visible: str) -> None:
    """In the metric F + damping U; F's part of it is the KL divergence between the densities before and after, enumerated."""
    rbm = small_rbm(visible, "bernoulli", seed=6)
    _, rows = model_rows(rbm, 300_000)
    config = NaturalGradientConfig(damping=0.05, max_divergence=1e-6)
    step = natural_step(rbm, some_gradient(rbm), rows, rows, config, 1.0)
    moved, flat_step, fisher = copy.deepcopy(rbm), flat(step, rbm), exact_fisher(rbm)
    with torch.no_grad():
        metric = fisher + 0.05 * torch.diag(damping_units(rbm, rows))
        assert float(flat_step @ metric @ flat_step) / 2 == pytest.approx(1e-6, rel=5e-3)
        for name, p in moved.named_parameters():
            p.add_(step[name])
        v, _ = axis_states(rbm.visible, points=121, half_width=12.0)
        before, after = (-m.free_energy(v) - log_partition(m) for m in (rbm, moved))
        density = torch.softmax(before, 0)
        divergence = float((density * (before - after)).sum())
    assert divergence == pytest.approx(float(flat_step @ fisher @ flat_step) / 2, rel=0.05)
    assert 2e-8 < divergence < 1e-6


def test_the_unit_of_the_data_does_not_matter() -> None:
    """With v -> 7 v, W -> 7 W, a -> 7 a, s -> 49 s it is the same model; lengths in the step are 7 times as large."""
    rbm, k = small_rbm("gaussian", "bernoulli", seed=8), 7.0
    scaled = copy.deepcopy(rbm)
    with torch.no_grad():
        scaled.weights.mul_(k)
        scaled.visible.bias.mul_(k)
        assert isinstance(scaled.visible, Gaussian)
        scaled.visible.log_variance.add_(2 * torch.log(torch.tensor(k)))
    data = torch.randn(211, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    particles = torch.randn(197, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradient = some_gradient(rbm)
    lengths = ("weights", "visible.bias")
    gradient_scaled = {name: g / k if name in lengths else g for name, g in gradient.items()}
    config = NaturalGradientConfig()
    step = natural_step(rbm, gradient, data, particles, config, 0.2)
    step_scaled = natural_step(scaled, gradient_scaled, k * data, k * particles, config, 0.2)
    for name, change in step.items():
        expected = k * change if name in lengths else change
        torch.testing.assert_close(step_scaled[name], expected, rtol=1e-6, atol=1e-9)


def test_a_frozen_parameter_stays_and_the_others_take_their_own_natural_step() -> None:
    rbm = small_rbm("gaussian", "bernoulli", seed=9)
    data = torch.randn(101, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    config, gradient = NaturalGradientConfig(max_divergence=1e9), some_gradient(rbm)
    step = natural_step(rbm, gradient, data, data, config, 1.0, frozenset({"visible.log_variance"}))
    assert not step["visible.log_variance"].any()
    features = energy_features(rbm, data)
    kept = torch.cat([torch.full((p.numel(),), n != "visible.log_variance") for n, p in rbm.named_parameters()])
    centered = (features - features.mean(0))[:, kept]
    with torch.no_grad():
        system = centered.T @ centered / 101 + config.damping * torch.diag(damping_units(rbm, data)[kept])
    torch.testing.assert_close(flat(step, rbm)[kept], torch.linalg.solve(system, flat(gradient, rbm)[kept]))

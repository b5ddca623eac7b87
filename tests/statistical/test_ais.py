"""Annealed importance sampling against enumeration: every pairing of units, the error bars, unbiasedness, likelihoods."""

import math

import pytest
import torch
from laws import seeded
from small import PAIRINGS, log_likelihood, small_rbm

from pipeline.config import RBMConfig
from pipeline.metrics.exact import exact_samples, log_partition
from pipeline.metrics.likelihood import estimate_log_likelihood, estimate_log_partition
from pipeline.models.rbm import RBM
from pipeline.samplers import ais
from pipeline.samplers.ais import annealed_log_weights, annealed_partition


def rows_for(rbm: RBM) -> torch.Tensor:
    if "gaussian" == rbm.config.visible_units == rbm.config.hidden_units:
        return torch.randn(101, len(rbm.visible.bias), generator=seeded(1), dtype=torch.float64)
    return exact_samples(rbm, 101, seeded(1))


def strong_rbm(visible: str, hidden: str, scale: float, seed: int = 3) -> RBM:
    """A model symmetric under turning all units over, so it has modes far apart, which a base without weights misses."""
    rbm = RBM(RBMConfig(11, 7, visible, hidden), torch.float64)
    generator = seeded(seed)
    with torch.no_grad():
        rbm.weights.copy_(scale * torch.randn(11, 7, generator=generator, dtype=torch.float64))
        rbm.visible.bias.copy_(-0.5 * rbm.weights.sum(1))
        if visible == "bernoulli":
            rbm.hidden.bias.copy_(-0.5 * rbm.weights.sum(0))
    return rbm


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize(("visible", "hidden"), PAIRINGS)
def test_agrees_with_the_exact_value_for_every_pairing(visible, hidden, centered):
    rbm = small_rbm(visible, hidden, seed=1, centered=centered)
    found = annealed_partition(rbm, rows_for(rbm), num_chains=300, num_temperatures=20, seed=2)
    assert abs(found.log_partition - log_partition(rbm).item()) < 3 * found.standard_error
    assert 0 < found.standard_error < 0.02 and 250 < found.effective_sample_size <= 300


@pytest.mark.parametrize("seed", [3, 4, 5])
@pytest.mark.parametrize(
    ("visible", "hidden", "scale"), [("bernoulli", "bernoulli", 1.5), ("gaussian", "bernoulli", 0.7)]
)
def test_agrees_with_the_exact_value_for_strong_weights(visible, hidden, scale, seed):
    rbm = strong_rbm(visible, hidden, scale, seed)
    found = annealed_partition(rbm, rows_for(rbm), num_chains=256, num_temperatures=300)
    assert abs(found.log_partition - log_partition(rbm).item()) < 3 * found.standard_error < 0.5


def test_temperatures_matter():
    rbm = strong_rbm("bernoulli", "bernoulli", 1.5)
    few, many = (annealed_partition(rbm, rows_for(rbm), 256, number) for number in (1, 200))
    assert few.effective_sample_size < 0.4 * many.effective_sample_size
    assert many.standard_error < 0.5 * few.standard_error


@pytest.mark.parametrize(("visible", "temperatures"), [("bernoulli", 2), ("gaussian", 2), ("onehot", 3)])
def test_the_mean_weight_is_unbiased(visible, temperatures):
    # Z itself, not its logarithm, has no bias however few the temperatures: any error in a sweep or weight shows.
    rbm, n = small_rbm(visible, "bernoulli", seed=9, centered=True), 40_009
    with torch.no_grad():
        rbm.weights.mul_(2)
    weights = (annealed_log_weights(rbm, rows_for(rbm), n, temperatures, 4) - log_partition(rbm)).exp()
    error = weights.std().item() / math.sqrt(n)
    assert error < 0.02 and abs(weights.mean().item() - 1) < 4 * error


def test_the_error_bars_are_the_spread_over_repetitions():
    rbm = strong_rbm("bernoulli", "bernoulli", 0.8)
    data = rows_for(rbm)
    found = [annealed_partition(rbm, data, 100, 20, seed) for seed in range(60)]
    spread = torch.tensor([estimate.log_partition for estimate in found]).std().item()
    for name in ("delta_error", "bootstrap_error"):
        typical = torch.tensor([getattr(estimate, name) for estimate in found]).mean().item()
        assert 0.7 < spread / typical < 1.45


def test_without_weights_one_temperature_is_exact_when_the_base_is_the_model():
    rbm = RBM(RBMConfig(5, 3, "gaussian", "bernoulli"))
    rows = torch.randn(200_003, 5, generator=seeded(5))
    rows = (rows - rows.mean(0)) / rows.std(0)
    found = annealed_partition(rbm, rows, 7, 1)
    assert found.log_partition == pytest.approx(log_partition(rbm.double()).item(), abs=1e-4)
    assert found.effective_sample_size == pytest.approx(7, rel=1e-4)


def test_seeds_decide_and_constant_columns_do_no_harm():
    rbm = strong_rbm("bernoulli", "bernoulli", 0.5).float()
    data = torch.zeros(50, 11)
    data[::2, 3] = 1
    weights = annealed_log_weights(rbm, data, 200, 30, 1)
    assert torch.isfinite(weights).all() and torch.equal(weights, annealed_log_weights(rbm, data, 200, 30, 1))
    assert not torch.equal(weights, annealed_log_weights(rbm, data, 200, 30, 2))
    assert torch.equal(weights[: ais.CHAINS_PER_BLOCK], annealed_log_weights(rbm, data, 128, 30, 1))


def test_impossible_settings_are_refused():
    rbm = small_rbm("bernoulli", "bernoulli")
    data = torch.zeros(7, 5)
    for arguments, text in (
        ((data, 1, 10), "num_chains is 1"),
        ((data, 10, 0), "num_temperatures is 0"),
        ((data[:, :3], 10, 10), r"expected \[N >= 2, 5\]"),
        ((data / 0, 10, 10), "not finite"),
    ):
        with pytest.raises(ValueError, match=text):
            annealed_partition(rbm, *arguments)
    unbounded = RBM(RBMConfig(3, 2, "gaussian", "gaussian"), torch.float64)
    with torch.no_grad():
        unbounded.weights.fill_(0.5)
    with pytest.raises(ValueError, match="singular value"):
        annealed_partition(unbounded, torch.randn(7, 3))


# --- likelihood ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "hidden", "size", "method"),
    [
        ("bernoulli", "bernoulli", (23, 7), "enumeration"),
        ("gaussian", "onehot", (23, 31), "enumeration"),
        ("gaussian", "gaussian", (23, 21), "closed form"),
        ("bernoulli", "bernoulli", (23, 21), "annealing"),
        ("gaussian", "bernoulli", (3, 21), "annealing"),
        ("bernoulli", "gaussian", (21, 2), "annealing"),
    ],
)
def test_the_method_is_chosen_and_named(visible, hidden, size, method):
    rbm = RBM(RBMConfig(*size, visible, hidden))
    found = estimate_log_partition(rbm, torch.randn(11, size[0], generator=seeded(6)).clamp(0, 1), 5, 3)
    assert found.method == method
    assert (found.standard_error == 0) == (method != "annealing") == (found.effective_sample_size is None)
    if method != "annealing":
        assert found.log_partition == pytest.approx(log_partition(rbm.double()).item(), rel=1e-12)


def test_exact_likelihood_of_rows():
    rbm = small_rbm("bernoulli", "bernoulli", seed=2, centered=True)
    rows = exact_samples(rbm, 307, seeded(7))
    found = estimate_log_likelihood(rbm, rows, estimate_log_partition(rbm, rows))
    assert found.nats == pytest.approx(log_likelihood(rbm, rows).item(), rel=1e-12)
    values = -rbm.free_energy(rows)
    assert found.data_error == pytest.approx((values.std() / math.sqrt(307)).item(), rel=1e-12)
    assert found.partition_error == 0 and found.standard_error == found.data_error and found.num_rows == 307


def test_annealed_likelihood_carries_both_errors(monkeypatch):
    rbm = strong_rbm("bernoulli", "bernoulli", 0.8)
    rows = exact_samples(rbm, 307, seeded(8))
    exact = estimate_log_likelihood(rbm, rows, estimate_log_partition(rbm, rows))
    monkeypatch.setattr("pipeline.metrics.exact.MAX_UNITS", 5)
    partition = estimate_log_partition(rbm, rows, 200, 100)
    found = estimate_log_likelihood(rbm.float(), rows, partition)
    assert partition.method == "annealing" and partition.num_chains == 200 and partition.num_temperatures == 100
    assert 0 < found.partition_error == partition.standard_error < 0.1
    assert abs(found.nats - exact.nats) < 3 * found.partition_error + 1e-4
    assert found.standard_error == pytest.approx(math.hypot(found.data_error, found.partition_error))


def test_bad_rows_are_refused():
    rbm = small_rbm("gaussian", "bernoulli")
    partition = estimate_log_partition(rbm, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"expected \[n >= 2, 2\]"):
        estimate_log_likelihood(rbm, torch.zeros(3, 5), partition)
    with pytest.raises(ValueError, match="not finite"):
        estimate_log_likelihood(rbm, torch.tensor([[0.0, torch.inf], [0.0, 0.0]]), partition)

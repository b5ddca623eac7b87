"""Independent rows of small RBMs against their exact law; mode coverage by hand; exact divergences against quadrature."""

import math
import time

import pytest
import torch
from laws import SIGMAS, Table, assert_histogram, cell_of, seeded
from small import PAIRINGS, small_rbm

from pipeline.config import RBMConfig
from pipeline.data.mixtures import GaussianMixture, ring
from pipeline.metrics.coverage import exact_kl, exact_log_prob, mode_coverage
from pipeline.metrics.exact import exact_samples
from pipeline.models.rbm import RBM
from pipeline.models.units import Gaussian

DISCRETE = [pair for pair in PAIRINGS if pair != ("gaussian", "gaussian")]


@pytest.mark.parametrize(("visible", "hidden"), DISCRETE)
def test_exact_samples_follow_the_marginal_law(visible, hidden):
    rbm, n = small_rbm(visible, hidden, seed=7, centered=True), 20_011
    v, table = exact_samples(rbm, n, seeded(8)), Table.of(rbm)
    assert v.shape == (n, len(rbm.visible.bias)) and v.dtype == torch.float64
    p = table.p.sum(1)
    if not isinstance(rbm.visible, Gaussian):
        return assert_histogram(cell_of(rbm.visible, v), p)
    for value, states in ((v, table.v), (v**2, table.v**2), (v[:, :1] * v[:, 1:], table.v[:, :1] * table.v[:, 1:])):
        mean = p @ states
        error = SIGMAS * ((p @ states**2 - mean**2) / n).sqrt()
        assert ((value.mean(0) - mean).abs() < error).all()


def test_exact_samples_are_the_models_type_and_the_generators():
    rbm = small_rbm("gaussian", "bernoulli", seed=9).float()
    rows = exact_samples(rbm, 7, seeded(1))
    assert rows.dtype == torch.float32
    assert torch.equal(rows, exact_samples(rbm, 7, seeded(1))) and not torch.equal(
        rows, exact_samples(rbm, 7, seeded(2))
    )


# --- mode coverage ---------------------------------------------------------------------------------------------------

FOUR = GaussianMixture(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]], dtype=torch.float64), 0.5)


def rows_of(counts: list[int], outside: int) -> torch.Tensor:
    parts = [center.expand(n, 2) for center, n in zip(FOUR.centers, counts)]
    return torch.cat([*parts, torch.full((outside, 2), 5.0, dtype=torch.float64)])


def test_coverage_of_counted_rows():
    found = mode_coverage(rows_of([50, 5, 4, 21], 20), FOUR)  # a mode needs 20 % of 100 / 4: five rows
    assert (found.num_covered, found.num_modes, found.num_rows) == (3, 4, 100)
    assert found.shares == (0.5, 0.05, 0.04, 0.21)
    assert found.precision == pytest.approx(0.8)
    assert found.total_variation == pytest.approx(0.5 * (0.25 + 0.2 + 0.21 + 0.04 + 0.2))


def test_extremes_of_the_total_variation():
    assert mode_coverage(rows_of([7, 7, 7, 7], 0), FOUR).total_variation == pytest.approx(0)
    assert mode_coverage(rows_of([28, 0, 0, 0], 0), FOUR).total_variation == pytest.approx(0.75)
    nothing = mode_coverage(rows_of([0, 0, 0, 0], 11), FOUR)
    assert (nothing.num_covered, nothing.precision, nothing.total_variation) == (0, 0, 1)


def test_the_radius_is_three_standard_deviations():
    rows = FOUR.centers[:1] + torch.tensor([[1.499, 0.0], [1.501, 0.0], [1.1, 1.1]], dtype=torch.float64)
    assert mode_coverage(rows, FOUR).shares[0] == pytest.approx(1 / 3)


def test_the_mixture_itself_and_one_gaussian():
    # Within 3 sd in two dimensions: 1 - exp(-9/2) = .98889. The Gaussian "covers" all modes: precision tells.
    n = 20_000
    inside = 1 - math.exp(-4.5)
    found = mode_coverage(ring().sample(n, seeded(3)), ring())
    assert found.num_covered == 8
    assert abs(found.precision - inside) < SIGMAS * math.sqrt(inside * (1 - inside) / n)
    noise = math.sqrt(2.1) * torch.randn(n, 2, generator=seeded(4))
    trivial = mode_coverage(noise, ring())
    assert trivial.num_covered == 8 and trivial.precision < 0.35 and trivial.total_variation > 0.6


def test_bad_rows_are_refused():
    with pytest.raises(ValueError, match=r"shape \(5, 3\).*\[n >= 1, 2\]"):
        mode_coverage(torch.zeros(5, 3), FOUR)
    with pytest.raises(ValueError, match="n >= 1"):
        mode_coverage(torch.zeros(0, 2), FOUR)
    with pytest.raises(ValueError, match="1 of 4 rows"):
        mode_coverage(torch.tensor([[0.0, 0.0], [1.0, torch.nan], [0.0, 1.0], [2.0, 2.0]]), FOUR)


# --- exact divergences -----------------------------------------------------------------------------------------------

TWO = {
    1: GaussianMixture(torch.tensor([[-1.2], [1.0]], dtype=torch.float64), 0.6),
    2: GaussianMixture(torch.tensor([[-1.2, 0.4], [1.0, -0.3], [0.2, 1.3]], dtype=torch.float64), 0.7),
}


def gaussian_bernoulli(dimension: int) -> RBM:
    rbm = RBM(RBMConfig(dimension, 5, "gaussian", "bernoulli"), torch.float64)
    with torch.no_grad():
        for p in rbm.parameters():
            p.copy_(0.6 * torch.randn(p.shape, generator=seeded(13), dtype=p.dtype))
    return rbm


def grid(dimension: int, half_width: float = 14.0) -> tuple[torch.Tensor, float]:
    line = torch.linspace(-half_width, half_width, 4001 if dimension == 1 else 561, dtype=torch.float64)
    return torch.cartesian_prod(*[line] * dimension).reshape(-1, dimension), float(line[1] - line[0]) ** dimension


@pytest.mark.parametrize("dimension", [1, 2])
def test_divergences_agree_with_quadrature(dimension):
    rbm, mixture = gaussian_bernoulli(dimension), TWO[dimension]
    points, cell = grid(dimension)
    log_model, log_data = exact_log_prob(rbm, points), mixture.log_prob(points)
    assert (log_model.exp().sum() * cell).item() == pytest.approx(1, abs=1e-8)
    forward = ((log_data - log_model) * log_data.exp()).sum().item() * cell
    reverse = ((log_model - log_data) * log_model.exp()).sum().item() * cell
    assert forward > 0.05 and reverse > 0.05
    found = exact_kl(rbm, mixture, 20_011, seeded(14))
    for estimate, exact in ((found.forward, forward), (found.reverse, reverse)):
        assert abs(estimate.nats - exact) < 4 * estimate.standard_error
        assert estimate.standard_error < 0.1 * exact + 0.02 and estimate.num_rows == 20_011


def test_the_error_bar_is_the_spread_over_repetitions():
    rbm = gaussian_bernoulli(1)
    found = [exact_kl(rbm, TWO[1], 500, seeded(100 + i)).forward for i in range(60)]
    spread = torch.tensor([estimate.nats for estimate in found]).std().item()
    typical = torch.tensor([estimate.standard_error for estimate in found]).mean().item()
    assert 0.7 < spread / typical < 1.4  # a standard deviation of 60 values is known to 9 %


def test_a_model_that_is_the_mixture_has_no_divergence():
    # One hidden unit: v ~ (N(b, s) + N(b + W, s)) / 2 when its bias cancels the quadratic term of the coupling.
    rbm = RBM(RBMConfig(1, 1, "gaussian", "bernoulli"), torch.float64)
    with torch.no_grad():
        rbm.visible.bias.fill_(-2.0)
        rbm.visible.log_variance.fill_(math.log(0.25))
        rbm.weights.fill_(4.0)
        rbm.hidden.bias.fill_(-(-2.0 * 4.0 + 8.0) / 0.25)
    mixture = GaussianMixture(torch.tensor([[-2.0], [2.0]], dtype=torch.float64), 0.5)
    found = exact_kl(rbm, mixture, 2000, seeded(15))
    assert found.forward.nats == pytest.approx(0, abs=1e-9) and found.reverse.nats == pytest.approx(0, abs=1e-9)
    assert found.equilibrium.num_covered == 2 and found.equilibrium.precision > 0.99
    # The same law in scaled units: the model sees (rows - 3) / 10, the density is that of the rows.
    scaled = GaussianMixture(10 * mixture.centers + 3, 5.0)
    scaling = (torch.tensor([3.0]), torch.tensor([10.0]))
    found = exact_kl(rbm, scaled, 500, seeded(16), scaling)
    assert found.forward.nats == pytest.approx(0, abs=1e-6) and found.reverse.nats == pytest.approx(0, abs=1e-6)
    assert found.equilibrium.num_covered == 2


def test_twenty_hidden_units_take_seconds():
    rbm = RBM(RBMConfig(2, 20, "gaussian", "bernoulli"))
    with torch.no_grad():
        rbm.weights.copy_(0.3 * torch.randn(2, 20, generator=seeded(17)))
        rbm.visible.log_variance.fill_(-1.0)
    start = time.perf_counter()
    found = exact_kl(rbm, ring(), 4000, seeded(18))
    assert time.perf_counter() - start < 30  # 1 s on an idle machine
    assert math.isfinite(found.forward.nats) and math.isfinite(found.reverse.nats)


def test_impossible_divergences_are_refused():
    with pytest.raises(ValueError, match="1 visible units, the mixture 2"):
        exact_kl(gaussian_bernoulli(1), TWO[2], 10, seeded(1))
    with pytest.raises(ValueError, match="num_rows is 1"):
        exact_kl(gaussian_bernoulli(1), TWO[1], 1, seeded(1))

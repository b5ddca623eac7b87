"""The optimal critic of known densities: RBMs whose p(v) is a table, and Eq. 5 to 8 as sums and integrals."""

import math

import pytest
import torch
from optimal_critic import discriminator_divergence, optimal_log_probability, optimal_score, rbm_log_density
from small import axis_states, small_rbm

from pipeline.config import RBMConfig, ScoreConfig
from pipeline.data.mixtures import GaussianMixture
from pipeline.models.rbm import RBM

PAIRINGS = [("bernoulli", "bernoulli"), ("onehot", "bernoulli"), ("gaussian", "bernoulli"), ("gaussian", "onehot")]
EVERY = pytest.mark.parametrize(("visible", "hidden"), PAIRINGS)
DATA = GaussianMixture(torch.tensor([[-2.0], [2.0]], dtype=torch.float64), 0.5)
MODEL = GaussianMixture(torch.tensor([[-1.5], [1.0]], dtype=torch.float64), 1.0)
LINE = torch.linspace(-12, 12, 100_001, dtype=torch.float64)[:, None]
CELL = float(LINE[1, 0] - LINE[0, 0])


def table(visible: str, hidden: str, seed: int) -> tuple[RBM, torch.Tensor, float]:
    """An RBM, its visible states [n, V] (a fine grid where Gaussian), and the volume of each."""
    rbm = small_rbm(visible, hidden, seed=seed, centered=True)
    return rbm, *axis_states(rbm.visible, points=241)


@EVERY
def test_the_density_of_an_rbm_sums_to_one_and_is_a_constant(visible: str, hidden: str) -> None:
    rbm, v, cell = table(visible, hidden, 0)
    log_p = rbm_log_density(rbm)(v.float())  # points of another type are converted
    assert log_p.dtype == torch.float64 and not log_p.requires_grad
    assert float(log_p.exp().sum() * cell) == pytest.approx(1, abs=1e-6)


@EVERY
def test_the_optimal_critic_is_the_posterior_of_two_enumerated_models(visible: str, hidden: str) -> None:
    (data, v, cell), (model, _, _) = table(visible, hidden, 1), table(visible, hidden, 2)
    weights = [-rbm.free_energy(v).detach() for rbm in (data, model)]
    p_data, p_model = (torch.softmax(w, 0) / cell for w in weights)
    expected = p_data / (p_data + p_model)
    densities = rbm_log_density(data), rbm_log_density(model)
    kept = p_data + p_model > 1e-12  # 0 / 0 far out on the grid
    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(optimal_log_probability(v, *densities).exp()[kept], expected[kept], **close)
    torch.testing.assert_close(optimal_score(v, *densities)[kept], (2 * expected - 1)[kept], **close)
    turned = ScoreConfig(form="log", min_probability=0.3, sign=-1)
    floored = -(math.log(2) + expected.clamp(min=0.3).log())
    torch.testing.assert_close(optimal_score(v, *densities, turned)[kept], floored[kept], **close)


def test_no_overflow_where_one_density_vanishes() -> None:
    far = torch.tensor([[-300.0], [300.0]], dtype=torch.float64)
    narrow_first = optimal_log_probability(far, DATA.log_prob, MODEL.log_prob)
    assert bool((narrow_first < -1e4).all()) and bool(narrow_first.isfinite().all())
    assert optimal_score(far, DATA.log_prob, MODEL.log_prob).tolist() == [-1.0, -1.0]
    assert optimal_score(far, MODEL.log_prob, DATA.log_prob).tolist() == [1.0, 1.0]


def integral_of_eq_5() -> float:
    """Integral over v of p_model log( (p_data + p_model) / (2 p_data) ): the f-divergence of f(t) = log((t + 1) / 2t)."""
    log_p, log_q = DATA.log_prob(LINE), MODEL.log_prob(LINE)
    return float((log_q.exp() * (torch.logaddexp(log_p, log_q) - math.log(2) - log_p)).sum() * CELL)


def test_the_divergence_is_minus_the_mean_of_the_optimal_log_score() -> None:
    t = math.log(2) + optimal_log_probability(LINE, DATA.log_prob, MODEL.log_prob)
    from_scores = -float((MODEL.log_prob(LINE).exp() * t).sum() * CELL)
    assert from_scores == pytest.approx(integral_of_eq_5(), abs=1e-10)
    log_p, log_q = DATA.log_prob(LINE), MODEL.log_prob(LINE)
    reverse = float((log_q.exp() * (log_q - log_p)).sum() * CELL)
    assert 0.5 < reverse < math.log(2) + from_scores


@pytest.mark.parametrize("seed", range(3))
def test_its_estimate_from_rows_meets_the_integral(seed: int) -> None:
    rows = MODEL.sample(20_000, torch.Generator().manual_seed(seed))
    found = discriminator_divergence(rows, DATA.log_prob, MODEL.log_prob)
    assert 0 < found.standard_error < 0.05
    assert abs(found.nats - integral_of_eq_5()) < 5 * found.standard_error  # 6e-7 each
    same = discriminator_divergence(rows, MODEL.log_prob, MODEL.log_prob)
    assert same.nats == pytest.approx(0, abs=1e-12) and same.standard_error == pytest.approx(0, abs=1e-12)


def test_one_row_has_no_error_bar() -> None:
    with pytest.raises(ValueError, match="1 rows of the model: at least 2"):
        discriminator_divergence(torch.zeros(1, 1), DATA.log_prob, MODEL.log_prob)


def test_a_model_too_large_to_enumerate_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 20"):
        rbm_log_density(RBM(RBMConfig(30, 25, "bernoulli", "bernoulli"), torch.float64))

"""The inverse temperature's process: stationary law, conditional moments, autocorrelation, and the guard at min_beta.

Bounds: a Kolmogorov-Smirnov test on independent draws fails a correct sampler with probability 1e-6; a mean is held to
5.5 of its own standard errors, which a normal law leaves with probability 4e-8 (the rest, up to 1e-5, is for the
skewness of Gamma averages). Everything is seeded, so a failure is a change of the code.
"""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from pipeline.config import RBMConfig
from pipeline.models.rbm import RBM
from pipeline.samplers import driven
from pipeline.samplers.driven import DrivenGibbs, GammaProcess
from pipeline.samplers.gibbs import ChainState

ROWS = 100_000
SETTINGS = pytest.mark.parametrize(
    ("std", "momentum"), [(0.95, 0.9), (0.9, 0.9), (0.9, 0.0), (0.5, 0.5), (0.2, 0.99), (0.05, 0.9)]
)


def gamma_law(std: float) -> stats.rv_continuous:
    return stats.gamma(a=1 / std**2, scale=std**2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_mean(values: Tensor, expected: float | Tensor) -> None:
    """The mean of independent `values` is `expected`, within 5.5 standard errors."""
    excess = (values - expected).double()
    error = 5.5 * excess.std().item() / math.sqrt(excess.numel())
    assert abs(excess.mean().item()) < error


def assert_law(values: Tensor, std: float) -> None:
    """Independent `values` [n, 1] follow Gamma(1 / Var, scale Var), with its mean and variance."""
    assert stats.kstest(values.double().flatten().numpy(), gamma_law(std).cdf).pvalue > 1e-6
    assert_mean(values, 1.0)
    assert_mean((values - 1) ** 2, std**2)


@SETTINGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stationary_draws_follow_the_gamma_law(std: float, momentum: float, dtype: torch.dtype) -> None:
    beta = GammaProcess(std, momentum).stationary(torch.empty(ROWS, 1, dtype=dtype), generator())
    assert beta.shape == (ROWS, 1)
    assert beta.dtype == dtype
    assert_law(beta, std)


@SETTINGS
def test_many_steps_keep_the_stationary_law(std: float, momentum: float) -> None:
    """Starting from the law itself, so that any number of steps must leave it; float32 as in production."""
    process, g = GammaProcess(std, momentum), generator(1)
    beta = process.stationary(torch.empty(ROWS, 1), g)
    for _ in range(30):
        beta = process.step(beta, g)
    assert beta.dtype == torch.float32
    assert_law(beta, std)


@SETTINGS
def test_the_process_forgets_its_start_at_the_rate_phi(std: float, momentum: float) -> None:
    """From beta = 2 the mean is 1 + phi^t; it would reach the law's mean at another rate with a wrong momentum."""
    process, g = GammaProcess(std, momentum), generator(2)
    beta = torch.full((ROWS, 1), 2.0)
    for t in range(1, 6):
        beta = process.step(beta, g)
        assert_mean(beta, 1 + momentum**t)


@SETTINGS
def test_autocorrelation_at_lag_t_is_phi_to_the_t(std: float, momentum: float) -> None:
    process, g = GammaProcess(std, momentum), generator(3)
    start = process.stationary(torch.empty(ROWS, 1), g)
    beta = start
    for t in range(1, 4):
        beta = process.step(beta, g)
        assert_mean((start - 1) * (beta - 1) / std**2, momentum**t)  # E = correlation: mean and variance are known


@SETTINGS
@pytest.mark.parametrize("now", [0.0, 0.01, 0.7, 3.0])
def test_conditional_mean_and_variance(std: float, momentum: float, now: float) -> None:
    """E[b' | b] = 1 - phi + phi b and Var[b' | b] = c^2 nu + 2 c phi b: b' is Gamma with a Poisson shape."""
    process, g = GammaProcess(std, momentum), generator(4)
    after = process.step(torch.full((ROWS, 1), now, dtype=torch.float64), g)
    mean = 1 - momentum + momentum * now
    scale = (1 - momentum) * std**2
    assert_mean(after, mean)
    assert_mean((after - mean) ** 2, scale**2 / std**2 + 2 * scale * momentum * now)


def test_without_momentum_the_next_value_does_not_know_the_last() -> None:
    process = GammaProcess(0.9, 0.0)
    low = process.step(torch.full((1000, 1), 0.001), generator(5))
    high = process.step(torch.full((1000, 1), 50.0), generator(5))
    assert torch.equal(low, high)


def test_chains_move_independently() -> None:
    """The correlation of neighboring chains' next values, given equal starts, is zero."""
    after = GammaProcess(0.9, 0.9).step(torch.ones(ROWS, 1), generator(6)).double().flatten()
    excess = after - after.mean()
    assert_mean(excess[0::2] * excess[1::2], 0.0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_without_variance_beta_is_untouched_and_nothing_is_drawn(momentum: float) -> None:
    process, g = GammaProcess(0.0, momentum), generator(7)
    before = g.get_state()
    beta = torch.rand(5, 1, generator=generator(8))
    assert process.step(beta, g) is beta
    assert torch.equal(process.stationary(beta, g), torch.ones(5, 1))
    assert torch.equal(g.get_state(), before)


def run_and_record(
    monkeypatch: pytest.MonkeyPatch, min_beta: float, rows: int, sweeps: int
) -> tuple[list[Tensor], Tensor]:
    """The beta that each sweep used, and the process's own beta after the last."""
    used: list[Tensor] = []
    sweep = driven.gibbs_sweep

    def record(rbm, couplings, chains, beta, g):  # type: ignore[no-untyped-def]
        used.append(beta.clone())
        return sweep(rbm, couplings, chains, beta, g)

    monkeypatch.setattr(driven, "gibbs_sweep", record)
    rbm, process, g = RBM(RBMConfig(1, 1)), GammaProcess(0.95, 0.9), generator(9)
    chains = ChainState(torch.zeros(rows, 1), torch.zeros(rows, 1), torch.empty(rows, 1))
    chains = chains._replace(beta=process.stationary(chains.beta, g))
    chains = DrivenGibbs(process, sweeps, min_beta).run(rbm, chains, g)
    monkeypatch.undo()
    return used, chains.beta


def test_the_beta_in_use_has_the_gamma_law_clipped_from_below(monkeypatch: pytest.MonkeyPatch) -> None:
    min_beta = 0.05  # large enough for 4 % of the mass to be moved
    used, own = run_and_record(monkeypatch, min_beta, ROWS, 3)
    law = gamma_law(0.95)
    share = law.cdf(min_beta)
    assert share > 0.03
    last = used[-1].double().flatten()
    at_bound = last == torch.tensor(min_beta, dtype=torch.float32).double()
    assert abs(at_bound.double().mean().item() - share) < 5 * math.sqrt(share * (1 - share) / ROWS)  # binomial
    assert last.min().item() == pytest.approx(min_beta)
    above = stats.kstest(last[~at_bound].numpy(), lambda x: (law.cdf(x) - share) / (1 - share))
    assert above.pvalue > 1e-6
    # the process itself keeps the whole law, below the guard too
    assert_law(own, 0.95)
    assert torch.equal(own.clamp(min=min_beta), used[-1])


def test_the_guard_does_not_touch_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    guarded, own_guarded = run_and_record(monkeypatch, 0.3, 1009, 20)
    free, own_free = run_and_record(monkeypatch, 1e-30, 1009, 20)
    assert torch.equal(own_guarded, own_free)
    assert all(torch.equal(a, b.clamp(min=0.3)) for a, b in zip(guarded, free))


def test_the_documented_mass_below_the_default_guard() -> None:
    """5e-4 of the mass at std 0.95 and 1e-3, and the mean moves by less than 1e-6, as the docstring says."""
    law, guard = gamma_law(0.95), DrivenGibbs(GammaProcess(0.95, 0.9), 1).min_beta
    assert law.cdf(guard) == pytest.approx(5e-4, rel=0.05)
    below = torch.linspace(0, guard, 10_001, dtype=torch.float64)
    moved = torch.trapezoid(torch.from_numpy(law.cdf(below.numpy())), below).item()  # E[(guard - beta)+]
    assert moved < 1e-6

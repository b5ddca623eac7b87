"""Fig. 2's divergences against closed forms, series, simulation and what the paper says of them."""

import math

import pytest
import torch

from jobs.paper.separation import two_gaussians_against_one

SEPARATIONS = [0.25 * i for i in range(41)] + [15.0, 20.0, 40.0, 100.0]
FOUND = two_gaussians_against_one(SEPARATIONS)


def test_all_vanish_without_separation_and_the_error_is_small():
    assert FOUND.error.max() < 1e-10
    for values in (FOUND.forward, FOUND.reverse, FOUND.discriminator):
        assert values.shape == (len(SEPARATIONS),) and abs(float(values[0])) < 1e-14
        assert bool((values[1:] > 0).all())


@pytest.mark.parametrize("separation", [0.2, 0.3, 0.4])
def test_small_separations_follow_the_leading_order(separation):
    """With excess kurtosis k4 = -2 u^4 / (1 + u^2)^2, u = separation / 2: both KL are k4^2 / 48, D_D 3/4 of it.

    D_f = f''(1) / 2 chi^2 to second order, f'' = 1 for both KL and 3/4 for f(t) = log((t + 1) / 2t).
    """
    found = two_gaussians_against_one([separation])
    u = separation / 2
    leading = (2 * u**4 / (1 + u**2) ** 2) ** 2 / 48
    assert float(found.forward) == pytest.approx(leading, rel=0.06, abs=1e-15)
    assert float(found.reverse) == pytest.approx(leading, rel=0.06, abs=1e-15)
    assert float(found.discriminator) == pytest.approx(0.75 * leading, rel=0.06, abs=1e-15)


@pytest.mark.parametrize("separation", [15.0, 20.0, 40.0, 100.0])
def test_large_separations_have_closed_forms(separation):
    """Modes apart: KL(p || q) = log(1 + u^2) / 2 - log 2. The reverse one for any u is

    -log(1 + u^2) / 2 + u^2 - E_q[log cosh(u x)], and E_q[log cosh(u x)] = u sqrt(2 (1 + u^2) / pi) - log 2 + r with
    r = E_q[log(1 + exp(-2 u |x|))] = pi^2 / (12 u) q(0) (1 + O(1 / u^4)).
    """
    found, u = two_gaussians_against_one([separation]), separation / 2
    std = math.sqrt(1 + u**2)
    assert float(found.forward) == pytest.approx(math.log(std) - math.log(2), abs=1e-12)
    rest = math.pi**2 / 12 / u / (std * math.sqrt(2 * math.pi))
    reverse = -math.log(std) + u**2 - (u * std * math.sqrt(2 / math.pi) - math.log(2) + rest)
    assert float(found.reverse) == pytest.approx(reverse, abs=0.3 * rest / u**2)


@pytest.mark.parametrize("separation", [1.0, 3.0, 6.0])
def test_they_are_the_averages_that_define_them(separation):
    """Against 4 million draws, with torch's own densities; within 5 standard errors."""
    found, half = two_gaussians_against_one([separation]), separation / 2
    generator, n = torch.Generator().manual_seed(0), 4_000_000
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    signs = torch.randint(0, 2, (n,), generator=generator) * 2 - 1
    std = math.sqrt(1 + half**2)
    from_p, from_q = noise + signs * half, noise * std

    def log_p(x):
        parts = [torch.distributions.Normal(side * half, 1.0).log_prob(x) for side in (-1, 1)]
        return torch.logaddexp(*parts) - math.log(2)

    def log_q(x):
        return torch.distributions.Normal(0.0, std).log_prob(x)

    r = log_q(from_q) - log_p(from_q)
    for value, terms in (
        (found.forward, log_p(from_p) - log_q(from_p)),
        (found.reverse, r),
        (found.discriminator, torch.logaddexp(torch.zeros_like(r), r) - math.log(2)),
    ):
        error = float(terms.std()) / math.sqrt(n)
        assert abs(float(value) - float(terms.mean())) < 5 * error and error < 0.01


def test_the_bound_holds_everywhere():
    slack = math.log(2) + FOUND.discriminator - FOUND.reverse
    assert bool((slack > 0).all())
    assert float(slack[0]) == pytest.approx(math.log(2), abs=1e-12)  # loosest where the two densities agree


def test_all_grow_with_the_separation_and_the_reverse_ones_soon_faster():
    for values in (FOUND.forward, FOUND.reverse, FOUND.discriminator):
        assert bool((values.diff() > 0).all())
    late = FOUND.separation >= 6
    assert bool((FOUND.reverse[late] > 2 * FOUND.forward[late]).all())


def test_bad_separations_are_refused():
    for bad in ([], [-1.0], [math.nan], [1e9]):
        with pytest.raises(ValueError, match="separations"):
            two_gaussians_against_one(bad)

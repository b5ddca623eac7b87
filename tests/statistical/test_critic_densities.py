"""Critics against known densities: T estimates 2 p - 1 with p = p_data / (p_data + p_model) (Eq. 12).

Given where the rows lie, each is a data row independently with its own p, so the critic's sum over neighbors has mean
sum w_i (2 p_i - 1) and standard deviation at most sqrt(sum w_i^2) (w sums to 1); p_i differs from p at the query by at
most the distance times the steepest slope of 2 p - 1, which is 1 for N(0, 1) against N(2, 1). Bounds: 6 such deviations,
2e-9 per query. (The numbers of data and particle rows are fixed, which only lowers the variance.)
"""

import pytest
import torch
from torch import Tensor

from pipeline.config import CriticConfig
from pipeline.critics.memory import Memory
from pipeline.critics.neighbors import BACKENDS, NeighborCritic
from pipeline.critics.search import search_torch

SHIFT = 2.0


def memory_of(num_data: int, num_particles: int, size: int, seed: int) -> Memory:
    """Data ~ N(0, 1), particles ~ N(2, 1) along the first axis; N(0, 1) along all others."""
    features = torch.randn(num_data + num_particles, size, generator=torch.Generator().manual_seed(seed))
    features[num_data:, 0] += SHIFT
    return Memory(features, num_data)


def exact_t(x: Tensor) -> Tensor:
    """2 p - 1 = tanh of half the log ratio of the densities, which is SHIFT^2 / 2 - SHIFT x."""
    return torch.tanh(0.5 * (SHIFT**2 / 2 - SHIFT * x[..., 0].double()))


def queries_of(size: int) -> Tensor:
    """21 points from deep in the data to deep in the model, on the axis between them."""
    points = torch.zeros(21, size)
    points[:, 0] = torch.linspace(-1.0, 3.0, 21)
    return points


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("weighting", ["uniform", "distance"])
def test_scores_estimate_the_density_ratio(size: int, weighting: str) -> None:
    k, memory, queries = 1000, memory_of(100_000, 100_000, size, seed=size), queries_of(size)
    config = CriticConfig(weighting=weighting, num_neighbors=k, epsilon=0.1)  # type: ignore[arg-type]
    t = NeighborCritic(config, search_torch).score(queries, memory).double()

    rows = search_torch(queries, memory.features, k)
    distances = (memory.features[rows] - queries[:, None]).norm(dim=2).double()
    weights = torch.ones_like(distances) if weighting == "uniform" else 1 / (distances + config.epsilon)
    weights /= weights.sum(1, keepdim=True)
    noise = 6 * weights.square().sum(1).sqrt()
    assert noise.max() < 0.25  # so that the test says something
    assert ((t - (weights * exact_t(memory.features[rows])).sum(1)).abs() < noise).all()
    assert ((t - exact_t(queries)).abs() < noise + (weights * distances).sum(1)).all()
    # the slope's effect cancels between the two sides of the middle; neighborhoods overlap, so the noise may not
    assert abs((t - exact_t(queries)).mean().item()) < noise.mean()


@pytest.mark.parametrize(("num_data", "num_particles"), [(30_000, 90_000), (90_000, 30_000)])
def test_unequal_numbers_of_rows_do_not_shift_the_score(num_data: int, num_particles: int) -> None:
    """With n_data != n_model a plain count would estimate another ratio, off by up to 0.5 in the middle.

    p is then a ratio of weighted counts; with q the chance that a neighbor is data and r the ratio of class weights,
    dp/dq = r / (q + r (1 - q))^2 <= max(r, 1 / r), which stretches the binomial noise of q (at most 1 / (2 sqrt k)).
    """
    k, memory, queries = 1500, memory_of(num_data, num_particles, 1, seed=4), queries_of(1)
    critic = NeighborCritic(CriticConfig(weighting="uniform", num_neighbors=k), search_torch)
    t = critic.score(queries, memory).double()
    p = (exact_t(queries) + 1) / 2
    r = num_data / num_particles
    q = p * num_data / (p * num_data + (1 - p) * num_particles)
    noise = 6 * 2 * r / (q + r * (1 - q)) ** 2 * (q * (1 - q) / k).sqrt()
    radius = (memory.features[search_torch(queries, memory.features, k)] - queries[:, None]).abs().amax((1, 2)).double()
    assert ((t - exact_t(queries)).abs() < noise + radius + 0.02).all()  # 0.02: the curvature of p(q) at 6 deviations
    counted = 2 * q - 1
    assert (counted - exact_t(queries)).abs().max() > 0.4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [5, 10, 20])
def test_ties_prefer_neither_class(backend: str, size: int) -> None:
    """Sampled hidden units tie in masses; data and particles from one law must score 0 on average.

    Taking the first rows among equals, which are data in the memory's order, gave 0.2 to 1. Allowed: 6 standard errors
    over 60 independent memories, about 0.09, and 0.05 for the fixed order in which ties are broken. (Equal counts: with
    unequal ones p, a ratio, has a bias of its own of order 1 / k.)
    """
    critic, means = NeighborCritic(CriticConfig(), BACKENDS[backend]), []
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        features = (torch.rand(2 * 127, size, generator=g) < 0.5).float()
        queries = (torch.rand(32, size, generator=g) < 0.5).float()
        means.append(critic.score(queries, Memory(features, 127)).mean())
    t = torch.stack(means)
    assert abs(t.mean().item()) < 6 * t.std().item() / 60**0.5 + 0.05
    assert 6 * t.std().item() / 60**0.5 < 0.15


def test_the_sign_is_positive_where_data_are_denser() -> None:
    """The paper's setting, minibatches and k = 5; T at (-0.3, 0) and (2.3, 0) is tanh(1.3) = 0.86 and its negative.

    The score of a query is in [-1, 1], so 40 independent memories average to within 6 / sqrt(40) * sd, with
    sd <= sqrt(1 - 0.86^2) = 0.51 (as if every memory had one neighbor): 0.48. The slope takes less than 0.1 away.
    """
    for form in ("linear", "log"):
        critic = NeighborCritic(CriticConfig(form=form, min_probability=0.5), search_torch)  # type: ignore[arg-type]
        t = torch.stack(
            [
                critic.score(torch.tensor([[-0.3, 0.0], [SHIFT + 0.3, 0.0]]), memory_of(257, 257, 2, seed=10 + i))
                for i in range(40)
            ]
        )
        if form == "linear":
            assert t[:, 0].mean() > 0.86 - 0.48 - 0.1
            assert t[:, 1].mean() < -(0.86 - 0.48 - 0.1)
        assert t[:, 0].mean() > t[:, 1].mean()

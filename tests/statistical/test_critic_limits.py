"""All critics approach the optimal one (Eq. 6) as the memory grows: on a line, between two mixtures of known densities.

Whatever rows a critic looks at, their labels are independent of one another, each data with its own p(x). So a mean of
labels over rows that were chosen without the labels is off by noise of a known size, and a mean over rows that were chosen
*by* the labels (a tree's leaf) by at most what the worst of all intervals is off, which a union bound limits.
"""

import math

import pytest
import torch
from optimal_critic import optimal_score
from torch import Tensor

from pipeline.comm import Comm
from pipeline.config import CriticConfig, ForestCriticConfig, NetworkCriticConfig
from pipeline.critics.critic import Critic
from pipeline.critics.forest import ForestCritic
from pipeline.critics.memory import Memory
from pipeline.critics.neighbors import NeighborCritic
from pipeline.critics.network import NetworkCritic
from pipeline.critics.search import search_torch
from pipeline.data.mixtures import GaussianMixture

DATA = GaussianMixture(torch.tensor([[-2.0], [2.0]], dtype=torch.float64), 0.7)
MODEL = GaussianMixture(torch.tensor([[-1.2], [1.5]], dtype=torch.float64), 1.0)
QUERIES = MODEL.sample(400, torch.Generator().manual_seed(99))
"""Fresh particles: the rows that a critic scores in training."""


def exact_t(x: Tensor) -> Tensor:
    return optimal_score(x, DATA.log_prob, MODEL.log_prob)


def memory_of(num_data: int, num_particles: int, seed: int = 0) -> Memory:
    g = torch.Generator().manual_seed(seed)
    return Memory(torch.cat([DATA.sample(num_data, g), MODEL.sample(num_particles, g)]), num_data)


def rms_error(critic: Critic, memory: Memory) -> float:
    """Of T under the model's density, which is how it enters the gradient."""
    critic.observe(memory, 0)
    return float((critic.score(QUERIES, memory) - exact_t(QUERIES)).square().mean().sqrt())


def network(num_updates: int, hidden: tuple[int, ...] = (32,), rate: float = 0.03) -> NetworkCritic:
    config = NetworkCriticConfig(hidden=hidden, updates=num_updates, learning_rate=rate)
    return NetworkCritic(config, 1, 0, Comm(), torch.float32)


def test_every_critic_errs_less_with_more_rows() -> None:
    """At 50 rows of each class, 800 and 12 800: neighborhoods hold the root of that many, a network trains for longer."""
    for build in (
        lambda n: NeighborCritic(CriticConfig(weighting="uniform", num_neighbors=n), search_torch),
        lambda n: NeighborCritic(CriticConfig(num_neighbors=n, epsilon=0.1), search_torch),
        lambda n: ForestCritic(ForestCriticConfig(min_leaf=n), 0),
        lambda n: network(6 * n),
    ):
        errors = [rms_error(build(math.isqrt(n)), memory_of(n, n)) for n in (50, 800, 12_800)]
        assert errors[0] > 1.5 * errors[1] > 1.5**2 * errors[2], errors
        assert errors[2] < 0.15 < exact_t(QUERIES).square().mean().sqrt(), errors


def test_neighbors_within_their_noise_of_the_optimum() -> None:
    """Per query 6 standard deviations of a mean of k labels in {-1, 1}, and the change of T within the neighborhood."""
    k, memory = 500, memory_of(40_000, 40_000)
    t = NeighborCritic(CriticConfig(weighting="uniform", num_neighbors=k), search_torch).score(QUERIES, memory).double()
    neighbors = memory.features[search_torch(QUERIES, memory.features, k)]
    change = (exact_t(neighbors.view(-1, 1)).view(-1, k) - exact_t(QUERIES)[:, None]).abs().amax(1)
    assert change.mean() < 0.1
    assert ((t - exact_t(QUERIES)).abs() < 6 / k**0.5 + change).all()


def test_forests_within_the_worst_leaf_of_the_optimum() -> None:
    """A leaf is an interval of at least m different rows of its bootstrap sample, all trees' means are bounded alike.

    Hoeffding with weights c (how often the bootstrap took a row; given that it did, sum c^2 / (sum c)^2 is near 1.26 / m)
    and a union over the N^2 / 2 intervals of N rows: p of every leaf of at least m rows is within sqrt(1.3 log(N^2 / delta)
    / 2m) of the mean of p over its rows, except with probability delta = 1e-6 for each of 5 trees. A leaf is split until
    fewer than 2m rows of the sample are left or all have one label (and then each part of it obeys the bound alone). The
    sample holds 63 % of the rows, so these lie within 2m / .6 rows of the query, to either side.
    """
    m, n = 2000, 100_000
    memory = memory_of(n, n)
    critic = ForestCritic(ForestCriticConfig(num_trees=5, min_leaf=m), 0)
    critic.observe(memory, 0)
    t = critic.score(QUERIES, memory).double()
    noise = 2 * math.sqrt(1.3 * math.log((2 * n) ** 2 / 1e-6) / (2 * m))
    ranked = memory.features[:, 0].sort().values
    place, reach = torch.searchsorted(ranked, QUERIES[:, 0].contiguous()), math.ceil(2 * m / 0.6)
    window = (place[:, None] + torch.arange(-reach, reach, 50)).clamp(0, 2 * n - 1)
    change = (exact_t(ranked[window].view(-1, 1)).view(window.shape) - exact_t(QUERIES)[:, None]).abs().amax(1)
    assert noise < 0.25 and change.mean() < 0.25
    assert ((t - exact_t(QUERIES)).abs() < noise + change).all()


def test_a_logistic_network_within_the_error_of_maximum_likelihood() -> None:
    """Equal widths: the log ratio is linear, so logistic regression holds the optimum, logit = (9 / 8 - 3 x / 2).

    Its estimate has covariance I^-1 S I^-1, with I = E[p (1 - p) (1, x)^T (1, x)] under the mean of the two laws and S the
    covariance of the loss's gradient; allowed are 6 standard deviations of the logit, of which T moves by at most half.
    """
    first, second = (GaussianMixture(torch.tensor([[c]], dtype=torch.float64), 1.0) for c in (0.0, 1.5))
    for num_data, num_particles in ((20_000, 20_000), (10_000, 40_000)):
        g = torch.Generator().manual_seed(num_data)
        memory = Memory(torch.cat([first.sample(num_data, g), second.sample(num_particles, g)]), num_data)
        x = torch.linspace(-3, 4.5, 41)[:, None]
        critic = network(1500, (), 0.02)
        critic.observe(memory, 0)
        line = torch.linspace(-10, 12, 4001, dtype=torch.float64)[:, None]
        densities = torch.stack([first.log_prob(line), second.log_prob(line)]).exp() * float(line[1] - line[0])
        p = densities[0] / densities.sum(0)
        design = torch.cat([torch.ones_like(line), line], 1)
        # S is at most the gradient's second moment: class c has n_c terms of weight 1 / (2 n_c)
        information = torch.einsum("n,ni,nj->ij", densities.mean(0) * p * (1 - p), design, design)
        squares = densities[0] * (1 - p) ** 2 / (4 * num_data) + densities[1] * p**2 / (4 * num_particles)
        scatter = torch.einsum("n,ni,nj->ij", squares, design, design)
        covariance = torch.linalg.solve(information, torch.linalg.solve(information, scatter).T)
        at = torch.cat([torch.ones_like(x), x], 1).double()
        allowed = 6 * torch.einsum("ni,ij,nj->n", at, covariance, at).sqrt() / 2
        exact = optimal_score(x, first.log_prob, second.log_prob)
        assert allowed.max() < 0.35 and allowed.median() < 0.12
        assert ((critic.score(x, memory) - exact).abs() < allowed + 1e-3).all()


def test_a_network_within_the_excess_loss_of_its_parameters() -> None:
    """Wilks: 2 N times the excess of the logistic loss is about chi-squared with as many degrees as parameters, here 97.

    Allowed are 6 deviations more. Stopped early, Adam stays below (0.0020); before the training it is at 0.1.
    """
    n, degrees = 10_000, 97
    critic = network(400)
    critic.observe(memory_of(n, n), 0)
    line = torch.linspace(-6, 6, 8001)[:, None]
    mixed = (DATA.log_prob(line).exp() + MODEL.log_prob(line).exp()) / 2 * float(line[1] - line[0])
    p, found = ((t.double() + 1) / 2 for t in (exact_t(line), critic.score(line, memory_of(2, 2))))
    excess = torch.special.xlogy(p, p / found) + torch.special.xlogy(1 - p, (1 - p) / (1 - found))
    assert 0 < float(mixed @ excess) < (degrees + 6 * math.sqrt(2 * degrees)) / (2 * 2 * n)


@pytest.mark.parametrize("kind", ["forest", "network"])
def test_unequal_numbers_of_rows_do_not_shift_the_score(kind: str) -> None:
    """Plain counting would add log(n_data / n_model) to the logit of p, here -log 4: T off by -0.6 where p = 1/2."""
    memory = memory_of(4_000, 16_000)
    critic = ForestCritic(ForestCriticConfig(min_leaf=200), 0) if kind == "forest" else network(300)
    critic.observe(memory, 0)
    middle = QUERIES[exact_t(QUERIES).abs() < 0.5]
    assert len(middle) > 50
    assert abs(float((critic.score(middle, memory) - exact_t(middle)).mean())) < 0.1

"""The stationary law of the driven sampler on a mixture of Gaussians on a line, computed without drawing anything.

beta moves by itself (Algorithm 1), h is drawn given the last v at the new beta, v given h at that beta. So (beta, h) is a
Markov chain with kernel

    P(beta', k' | beta, k) = f(beta' | beta) integral of N(v; m_k, s / beta) r(k' | v, beta') dv,
    r(k | v, beta) proportional to (pi_k N(v; m_k, s))^beta.

Its stationary law gives that of v as a mixture of N(m_k, s / beta). beta is binned, finely where it is small:
at std 0.9 a quarter of the variance of v comes from beta below 1e-3, that is, it hangs on the sampler's guard.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.samplers.driven import GammaProcess

NUM_BINS = 80
"""Three times as many move the variance of v by 2e-3 of it, the tail mass by 1 % and mode weights by 1e-4."""
TOP_BETA = 20.0
"""Mass beyond it: 1e-11 at std 0.9."""
_NODES, _REACH = 241, 8.0
_CHUNK = 20_000


class DrivenLaw(NamedTuple):
    """Stationary probabilities of h and of the binned beta in use; of v given both N(m_k, s / beta)."""

    means: Tensor
    """[modes], float64."""
    std: float
    betas: Tensor
    """[bins], float64: in each bin the harmonic mean of beta, so that the variance of v is exact."""
    weights: Tensor
    """P(k, bin) [modes, bins]."""

    def log_density(self, v: Tensor, k: Tensor) -> Tensor:
        """Log p(v, k) of states and hidden indices of one shape."""
        shape, found = v.shape, []
        constant = self.weights.log() + 0.5 * self.betas.log() - math.log(self.std * math.sqrt(2 * math.pi))
        for part_v, part_k in zip(v.reshape(-1).split(_CHUNK), k.reshape(-1).split(_CHUNK)):
            square = ((part_v - self.means[part_k]) / self.std) ** 2
            found.append(torch.logsumexp(constant[part_k] - 0.5 * square[:, None] * self.betas, 1))
        return torch.cat(found).reshape(shape)


def driven_law(
    means: Sequence[float], std: float, weights: Sequence[float], process: GammaProcess, min_beta: float = 1e-3
) -> DrivenLaw:
    """The stationary law of the driven sampler (process.std > 0) on the mixture; a sweep uses max(beta, min_beta)."""
    m, log_pi = torch.tensor(means, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64).log()
    variance = process.std**2
    inner = torch.logspace(math.log10(min_beta), math.log10(TOP_BETA), NUM_BINS, dtype=torch.float64)
    zero, infinite = torch.zeros(1, dtype=torch.float64), torch.tensor([math.inf], dtype=torch.float64)
    edges = torch.cat([zero, inner, infinite])
    shape = 1 / variance
    mass = _gamma_cdf(torch.tensor(shape), edges / variance).diff()
    # E[1 / beta; bin] of Gamma(a, V) is the mass of Gamma(a - 1, V) over (a - 1) V
    reciprocal = _gamma_cdf(torch.tensor(shape - 1), edges / variance).diff() / ((shape - 1) * variance)
    betas = mass / reciprocal
    betas[0] = min_beta
    moves = _temperature_moves(edges, betas, process)
    kernel = torch.empty(len(m), len(betas), len(m), len(betas), dtype=torch.float64)
    x = torch.linspace(-_REACH, _REACH, _NODES, dtype=torch.float64)
    normal = torch.softmax(-0.5 * x**2, 0)
    v = m[:, None, None] + std / betas.sqrt()[:, None] * x
    log_parts = log_pi - 0.5 * ((v[..., None] - m) / std) ** 2
    for j, beta in enumerate(betas):
        posterior = torch.softmax(beta * log_parts, -1)  # [modes, bins, nodes, modes]
        kernel[..., j] = torch.einsum("kbnj,n->kbj", posterior, normal) * moves[:, j, None]
    size = len(m) * len(betas)
    return DrivenLaw(m, std, betas, _stationary(kernel.reshape(size, size)).view(len(m), len(betas)))


def _temperature_moves(edges: Tensor, betas: Tensor, process: GammaProcess) -> Tensor:
    """P(bin' | bin) [bins, bins] of Algorithm 1: Gamma(1 / Var + z, c) with z ~ Poisson(beta phi / c)."""
    variance = process.std**2
    scale = (1 - process.momentum) * variance
    rates = betas * process.momentum / scale
    jumps = torch.arange(int(rates.max() + 12 * rates.max().sqrt() + 20), dtype=torch.float64)
    poisson = torch.exp(torch.xlogy(jumps, rates[:, None]) - rates[:, None] - torch.lgamma(jumps + 1))
    masses = _gamma_cdf((jumps + 1 / variance)[:, None], edges / scale).diff(dim=1)
    moves = poisson @ masses
    return moves / moves.sum(1, keepdim=True)


def _gamma_cdf(shape: Tensor, x: Tensor) -> Tensor:
    """P(Gamma(shape, 1) <= x), also at infinity."""
    finite = torch.special.gammainc(shape.double(), x.clamp(max=1e6))
    return torch.where(x.isinf(), torch.ones_like(finite), finite)


def _stationary(kernel: Tensor) -> Tensor:
    """Probabilities [n] with p K = p and sum 1, of a kernel [n, n] with rows that sum to 1."""
    size = len(kernel)
    system = kernel.T - torch.eye(size, dtype=kernel.dtype)
    system[-1] = 1
    right = torch.zeros(size, dtype=kernel.dtype)
    right[-1] = 1
    return torch.linalg.solve(system, right).clamp(min=1e-300)

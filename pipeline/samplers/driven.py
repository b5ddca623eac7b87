"""Temperature driven sampling (Algorithms 1 and 2): block Gibbs at slowly drifting inverse temperatures.

Every particle has its own beta, an autoregressive Gamma process with mean 1: with Var = std^2, nu = 1 / Var and
c = (1 - phi) Var,

    z ~ Poisson(beta phi / c),    beta' ~ Gamma(shape nu + z, scale c).

Its stationary law is Gamma(shape 1 / Var, scale Var) and its lag-1 autocorrelation phi. beta multiplies the whole energy.
Everything is drawn on the device of the chains.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.rbm import RBM, Couplings
from pipeline.samplers.gibbs import ChainState, gibbs_sweep
from pipeline.streams import Random, poisson, standard_gamma


@dataclass(frozen=True)
class GammaProcess:
    """The inverse temperature's process: stationary standard deviation in [0, 1) and lag-1 autocorrelation in [0, 1)."""

    std: float
    momentum: float

    def stationary(self, like: Tensor, random: Random) -> Tensor:
        """Independent draws from the stationary law, shaped like `like`; ones, and no draw, when std is 0."""
        if self.std == 0:
            return torch.ones_like(like)
        variance = self.std**2
        return standard_gamma(torch.full_like(like, 1 / variance), random) * variance

    def step(self, beta: Tensor, random: Random) -> Tensor:
        """The next value of each process (Algorithm 1); `beta` itself, and no draw, when std is 0."""
        if self.std == 0:
            return beta
        variance = self.std**2
        scale = (1 - self.momentum) * variance
        jumps = poisson(beta * (self.momentum / scale), random)
        return standard_gamma(jumps + 1 / variance, random) * scale


@dataclass(frozen=True)
class DrivenGibbs:
    """`num_sweeps` sweeps of driven Gibbs (Algorithm 2). With process.std = 0 it is plain Gibbs, bit for bit.

    A sweep uses max(beta, min_beta): a Gaussian unit has variance s / beta, and near beta = 0 one draw would throw a
    particle out of every region the model knows. The process is not touched, so the law of the beta in use is the
    stationary Gamma law with its mass below min_beta moved to min_beta: at std 0.95 and min_beta 1e-3 that is 5e-4 of
    the mass, and the mean moves by less than 1e-6.
    """

    process: GammaProcess
    num_sweeps: int
    min_beta: float = 1e-3

    def run(self, rbm: RBM, chains: ChainState, random: Random, couplings: Couplings | None = None) -> ChainState:
        """The chains after `num_sweeps` sweeps; in each, beta moves first, then h, then v.

        The process does not depend on the states, so it is drawn for all sweeps before the first: small operations in a row are
        faster than between products. `couplings` are `rbm.couplings()` of the present parameters, where the caller has them
        already.
        """
        if self.num_sweeps == 0:
            return chains
        couplings = couplings or rbm.couplings()
        betas = [chains.beta]
        for _ in range(self.num_sweeps):
            betas.append(self.process.step(betas[-1], random))
        used = [None if self.process.std == 0 else beta.clamp(min=self.min_beta) for beta in betas[1:]]
        for beta, bounded in zip(betas[1:], used):
            chains = gibbs_sweep(rbm, couplings, chains._replace(beta=beta), bounded, random)
        return chains

    def at_one(self, chains: ChainState) -> ChainState:
        """Select the chains that are samples: all of them, since each is a particle of its own."""
        return chains


def plain_gibbs(num_sweeps: int) -> DrivenGibbs:
    """`num_sweeps` sweeps of block Gibbs at beta = 1."""
    return DrivenGibbs(GammaProcess(0.0, 0.0), num_sweeps)

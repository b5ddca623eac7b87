"""Fig. 8: Gibbs and the driven sampler on an RBM that encodes three Gaussians exactly; what its averages are worth.

One Gaussian visible unit and three one-hot hidden units, in closed form: with means m_k, weights pi_k, variance s and b any
number, W_k = m_k - b and c_k = log pi_k - (b W_k + W_k^2 / 2) / s give

    E(v, k) = (v - m_k)^2 / (2 s) - log pi_k + const,    so p(v) = sum_k pi_k N(v; m_k, s).

At inverse temperature beta v given k is N(m_k, s / beta), whatever the rest. In the driven sampler beta ~ Gamma(1/Var, Var),
so within a mode v - m_k is sqrt(s) times Student's t with 2 / Var degrees of freedom, but for what k knows of beta
(`driven_law.py` has the exact law): variance s / (1 - Var), and no fourth moment for Var >= 1/2.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jobs.paper.driven_law import DrivenLaw, driven_law
from pipeline.config import RBMConfig
from pipeline.models.rbm import RBM
from pipeline.samplers.driven import DrivenGibbs, GammaProcess
from pipeline.samplers.gibbs import ChainState, gibbs_sweep
from pipeline.streams import stream

BETA_STD = BETA_MOMENTUM = 0.9
BINS = 120
TRACE_SWEEPS = 1000


class Modes(NamedTuple):
    """A mixture of Gaussians on a line, of one standard deviation."""

    means: tuple[float, ...]
    std: float
    weights: tuple[float, ...]

    def density(self, v: Tensor) -> Tensor:
        """p(v) [n] at v [n], float64."""
        return self.parts(v).exp().sum(1)

    def parts(self, v: Tensor) -> Tensor:
        """log(pi_k N(v; m_k, s)) [n, modes]."""
        x = (v.double()[:, None] - torch.tensor(self.means, dtype=torch.float64)) / self.std
        weights = torch.tensor(self.weights, dtype=torch.float64)
        return weights.log() - 0.5 * x**2 - math.log(self.std * math.sqrt(2 * math.pi))

    def nearest(self, v: Tensor) -> Tensor:
        """Index of the nearest center, of any shape."""
        return (v[..., None] - torch.tensor(self.means, dtype=v.dtype)).abs().argmin(-1)


GEOMETRIES = {
    "4 sd apart": Modes((-2.0, 0.0, 2.0), 0.5, (1 / 3, 1 / 3, 1 / 3)),
    "6 sd apart": Modes((-3.0, 0.0, 3.0), 0.5, (1 / 3, 1 / 3, 1 / 3)),
    "10 sd apart": Modes((-5.0, 0.0, 5.0), 0.5, (1 / 3, 1 / 3, 1 / 3)),
    "6 sd apart, unequal": Modes((-3.0, 0.0, 3.0), 0.5, (0.6, 0.3, 0.1)),
}
"""The paper states none; distance between neighbors in standard deviations of a mode."""
READINGS = {
    "gibbs": "plain Gibbs",
    "driven": "the driven chains as they are",
    "v at beta 1": "v drawn again at beta = 1, given the driven chain's h",
    "sweep at beta 1": "one whole sweep at beta = 1 on a copy of the driven chains",
    "weighted by temperature": "driven, weighted by p(v, h) / p_beta(v, h), as if each chain were in equilibrium at its beta",
    "weighted by the exact law": "driven, weighted by p(v, h) / (the sampler's own stationary law of v, h)",
}
"""How averages are read from the chains."""


def encode_modes(modes: Modes) -> RBM:
    """The RBM (float64) with p(v) = sum_k pi_k N(v; m_k, s), in closed form."""
    rbm = RBM(RBMConfig(1, len(modes.means), "gaussian", "onehot"), torch.float64)
    means = torch.tensor(modes.means, dtype=torch.float64)
    weights = torch.tensor(modes.weights, dtype=torch.float64)
    center, variance = (weights * means).sum(), modes.std**2
    couplings = means - center
    with torch.no_grad():
        rbm.weights.copy_(couplings[None])
        rbm.visible.bias.copy_(center)
        rbm.visible.log_variance.fill_(math.log(variance))  # type: ignore[operator]
        rbm.hidden.bias.copy_(weights.log() - (center * couplings + 0.5 * couplings**2) / variance)
    return rbm.requires_grad_(False)


def mixing_experiment(
    seed: int = 0, sweeps: int = 4000, num_chains: int = 128, geometries: Mapping[str, Modes] = GEOMETRIES
) -> dict[str, Any]:
    """Gibbs and driven chains on each geometry: traces, histograms, mode switches, and averages beside the truth.

    All chains begin at exact draws of the mixture. A *switch* is a change of the center nearest to v from one sweep to the
    next; since a hot v may stray without its mode, changes of the hidden state are counted too. Errors are over independent
    chains (of ratios, by the delta method).

    Args:
        seed: fixes every number.
        sweeps: of each chain, at least 100; the first tenth of them is left out of averages.
        num_chains: independent chains, at least 8.
        geometries: what to sample, by name.

    Returns:
        JSON-able: "settings", and "geometries": name -> {"modes", "truth", "density": {"v", "p"}, "samplers": {"gibbs",
        "driven": {"trace": {"v", "beta"} of one chain, "histogram": {"edges", "density"}, "switches_per_1000": {"visible",
        "hidden"}, "sweeps_per_independent_sample"}}, "readings": name of READINGS -> {quantity: {"value", "error"},
        "effective_share"}, "exact_driven_law": quantities}. Quantities: mean, variance, weight_1.. (share of v nearest to
        each center), tail_mass (share of v beyond 3 sd of every center).

    Raises:
        ValueError: too few sweeps or chains.
    """
    if sweeps < 100 or num_chains < 8:
        raise ValueError(f"sweeps = {sweeps}, num_chains = {num_chains}: at least 100 sweeps of 8 chains")
    return {
        "settings": {
            "seed": seed,
            "sweeps": sweeps,
            "num_chains": num_chains,
            "beta_std": BETA_STD,
            "beta_momentum": BETA_MOMENTUM,
        },
        "geometries": {name: _on_geometry(modes, name, seed, sweeps, num_chains) for name, modes in geometries.items()},
    }


class _Run(NamedTuple):
    """Recorded sweeps [sweeps, chains] of v, h (index) and beta."""

    v: Tensor
    k: Tensor
    beta: Tensor


def run_chains(
    rbm: RBM, modes: Modes, process: GammaProcess, sweeps: int, num_chains: int, name: str, seed: int
) -> _Run:
    """Chains from exact draws of the mixture, every sweep recorded; the stream is named by `name` and `seed`."""
    generator = stream(seed, name)
    weights = torch.tensor(modes.weights, dtype=torch.float64)
    start = torch.multinomial(weights, num_chains, True, generator=generator)
    noise = torch.randn(num_chains, generator=generator, dtype=torch.float64)
    v = torch.tensor(modes.means, dtype=torch.float64)[start] + modes.std * noise
    hidden = torch.eye(len(modes.means), dtype=torch.float64)[start]
    beta = process.stationary(torch.ones(num_chains, 1, dtype=torch.float64), generator)
    chains, couplings, sampler = ChainState(v[:, None], hidden, beta), rbm.couplings(), DrivenGibbs(process, 1)
    found = _Run(*(torch.empty(sweeps, num_chains, dtype=t) for t in (torch.float64, torch.int64, torch.float64)))
    for sweep in range(sweeps):
        chains = sampler.run(rbm, chains, generator, couplings)
        found.v[sweep], found.k[sweep] = chains.visible[:, 0], chains.hidden.argmax(1)
        found.beta[sweep] = chains.beta[:, 0].clamp(min=sampler.min_beta)
    return found


def _on_geometry(modes: Modes, name: str, seed: int, sweeps: int, num_chains: int) -> dict[str, Any]:
    rbm, driven = encode_modes(modes), GammaProcess(BETA_STD, BETA_MOMENTUM)
    runs = {
        label: run_chains(rbm, modes, process, sweeps, num_chains, f"mixing {name} {label}", seed)
        for label, process in (("gibbs", GammaProcess(0.0, 0.0)), ("driven", driven))
    }
    kept = {label: _Run(*(part[sweeps // 10 :] for part in run)) for label, run in runs.items()}
    reach = max(abs(m) for m in modes.means) + 8 * modes.std
    v = torch.linspace(-reach, reach, 401, dtype=torch.float64)
    law = driven_law(modes.means, modes.std, modes.weights, driven)
    samplers = {label: _sampler_facts(modes, runs[label], kept[label], reach) for label in runs}
    return {
        "modes": modes._asdict(),
        "truth": true_quantities(modes),
        "density": {"v": v.tolist(), "p": modes.density(v).tolist()},
        "samplers": samplers,
        "readings": _readings(rbm, modes, kept, law, f"mixing {name} readings", seed),
        "exact_driven_law": _law_quantities(modes, law.weights, law.betas),
    }


def true_quantities(modes: Modes) -> dict[str, float]:
    """The quantities of `mixing_experiment` under the mixture itself, in closed form."""
    components = torch.tensor(modes.weights, dtype=torch.float64)[:, None]
    return _law_quantities(modes, components, torch.ones(1, dtype=torch.float64))


def _law_quantities(modes: Modes, weights: Tensor, betas: Tensor) -> dict[str, float]:
    """Of v drawn from N(m_k, s / beta_j) with probabilities `weights` [modes, betas]."""
    means = torch.tensor(modes.means, dtype=torch.float64)
    mean = (weights.sum(1) * means).sum()
    noise = modes.std**2 / betas
    variance = (weights * ((means - mean) ** 2)[:, None]).sum() + (weights * noise).sum()
    order = sorted(range(len(means)), key=lambda i: modes.means[i])
    middles = (means[order][1:] + means[order][:-1]) / 2
    infinite = torch.tensor([math.inf], dtype=torch.float64)
    low, high = torch.cat([-infinite, middles]), torch.cat([middles, infinite])

    def mass(left: Tensor, right: Tensor) -> Tensor:
        """Of the intervals [n]: [n]."""
        scale = modes.std / betas.sqrt()
        ends = (torch.special.ndtr((end[:, None, None] - means[:, None]) / scale) for end in (right, left))
        return ((next(ends) - next(ends)) * weights).sum((1, 2))

    shares = mass(low, high)
    near = mass(torch.maximum(low, means[order] - 3 * modes.std), torch.minimum(high, means[order] + 3 * modes.std))
    named = {f"weight_{index + 1}": float(share) for index, share in sorted(zip(order, shares))}
    return {"mean": float(mean), "variance": float(variance), **named, "tail_mass": 1 - float(near.sum())}


def _sampler_facts(modes: Modes, run: _Run, kept: _Run, reach: float) -> dict[str, Any]:
    nearest = modes.nearest(kept.v)
    counts = torch.histc(kept.v, BINS, -reach, reach)
    edges = torch.linspace(-reach, reach, BINS + 1, dtype=torch.float64)

    def per_1000(states: Tensor) -> dict[str, float]:
        rates = (states[1:] != states[:-1]).double().mean(0) * 1000
        return {"value": float(rates.mean()), "error": float(rates.std() / math.sqrt(len(rates)))}

    # variance of a chain's share of each mode, beside that of independent draws
    shares = torch.nn.functional.one_hot(nearest, len(modes.means)).double().mean(0)
    total = shares.mean(0)
    inflation = len(nearest) * shares.var(0).sum() / (total * (1 - total)).sum()
    return {
        "trace": {"v": run.v[:TRACE_SWEEPS, 0].tolist(), "beta": run.beta[:TRACE_SWEEPS, 0].tolist()},
        "histogram": {
            "edges": edges.tolist(),
            "density": (counts / kept.v.numel() / (edges[1] - edges[0])).tolist(),
        },
        "switches_per_1000": {"visible": per_1000(nearest), "hidden": per_1000(kept.k)},
        "sweeps_per_independent_sample": float(inflation),
    }


def _readings(rbm: RBM, modes: Modes, runs: Mapping[str, _Run], law: DrivenLaw, name: str, seed: int) -> dict[str, Any]:
    run, generator = runs["driven"], stream(seed, name)
    means = torch.tensor(modes.means, dtype=torch.float64)
    again = means[run.k] + modes.std * torch.randn(run.v.shape, generator=generator, dtype=torch.float64)
    state = ChainState(
        run.v.reshape(-1, 1), torch.zeros(run.v.numel(), len(means), dtype=torch.float64), torch.empty(0)
    )
    swept = gibbs_sweep(rbm, rbm.couplings(), state, None, generator).visible.view(run.v.shape)
    log_pi = torch.tensor(modes.weights, dtype=torch.float64).log()
    log_joint = log_pi[run.k] - 0.5 * ((run.v - means[run.k]) / modes.std) ** 2
    log_tempered = run.beta * log_joint + 0.5 * run.beta.log() - torch.logsumexp(run.beta[..., None] * log_pi, -1)
    by_temperature = torch.exp(log_joint - log_tempered)  # both but for log sqrt(2 pi s)
    by_law = torch.exp(log_joint - math.log(modes.std * math.sqrt(2 * math.pi)) - law.log_density(run.v, run.k))
    ones = torch.ones_like(run.v)
    return {
        "gibbs": _averages(modes, runs["gibbs"].v, torch.ones_like(runs["gibbs"].v)),
        "driven": _averages(modes, run.v, ones),
        "v at beta 1": _averages(modes, again, ones),
        "sweep at beta 1": _averages(modes, swept, ones),
        "weighted by temperature": _averages(modes, run.v, by_temperature),
        "weighted by the exact law": _averages(modes, run.v, by_law),
    }


def _averages(modes: Modes, v: Tensor, weights: Tensor) -> dict[str, Any]:
    """Weighted averages of states [sweeps, chains]; errors over chains by the delta method of a ratio."""
    nearest = modes.nearest(v)
    centers = torch.tensor(modes.means, dtype=torch.float64)
    mean = float((weights * v).sum() / weights.sum())
    terms = {"mean": v, "variance": (v - mean) ** 2}
    terms |= {f"weight_{k + 1}": (nearest == k).double() for k in range(len(centers))}
    terms["tail_mass"] = ((v - centers[nearest]).abs() > 3 * modes.std).double()
    total, chains = weights.sum(), v.shape[1]
    found: dict[str, Any] = {}
    for key, term in terms.items():
        value = (weights * term).sum() / total
        residuals = (weights * (term - value)).sum(0)
        error = residuals.square().sum().mul(chains / (chains - 1)).sqrt() / total
        found[key] = {"value": float(value), "error": float(error)}
    found["effective_share"] = float(total**2 / weights.square().sum() / weights.numel())
    return found

"""Natural gradient for small RBMs: an ascent direction measured by how far it moves the density, not the parameters.

With f = -dE/dtheta, averaged over h given v, the Fisher matrix of p(v) is F = Cov_model[E[f | v]], and the step

    theta += rate (F + damping U)^-1 g

does not depend on how parameters are scaled. A grid of modes needs it: where sigma is a tenth of the modes' distance, hidden
biases lie in the hundreds while a weight off by a hundredth moves a mode. U is diagonal and gives each parameter its own
unit: for a Gaussian layer 1/s for weights and visible biases (lengths in the data), s / Var for hidden biases (a bias b puts
the threshold of its unit at a length b s / |W|; Var is the data's variance, so that the data's unit does not matter); 1 for
log s and discrete layers. One number for all of them is too large for some and too small for others by a factor of s^2.
"""

import torch
from torch import Tensor

from pipeline.config import NaturalGradientConfig
from pipeline.models.rbm import RBM
from pipeline.models.units import Gaussian


def energy_features(rbm: RBM, v: Tensor) -> Tensor:
    """E[-dE/dtheta | v] of every row [n, P], parameters flattened in the order of `rbm.named_parameters()`.

    Its mean over rows, with `rbm.hidden_statistics`, is `rbm.negative_energy_gradient`.

    Args:
        rbm: with a hidden layer that is not Gaussian.
        v: visible states [n, V].
    """
    hidden = rbm.hidden_mean(v)
    scaled_v, scaled_h = rbm.visible.scaled(v), rbm.hidden.scaled(hidden)
    parts = {"weights": (scaled_v[:, :, None] * scaled_h[:, None, :]).flatten(1), "hidden.bias": hidden}
    if isinstance(rbm.visible, Gaussian):
        s, deviation = rbm.visible.variance(), v - rbm.visible.bias
        parts["visible.bias"] = deviation / s
        parts["visible.log_variance"] = (0.5 * deviation**2 - (v - rbm.visible.offset) * (scaled_h @ rbm.weights.T)) / s
    else:
        parts["visible.bias"] = v
    return torch.cat([parts[name] for name, _ in rbm.named_parameters()], 1)


def damping_units(rbm: RBM, data: Tensor) -> Tensor:
    """The diagonal of U [P] (see above), in the order of `energy_features`; Var is the mean over columns of `data` [n, V]."""
    s = rbm.visible.variance()
    of_bias = rbm.hidden.bias.new_ones(()) if s is None else s.mean() / data.var(0).mean()
    s = torch.ones_like(rbm.visible.bias) if s is None else s
    parts = {
        "weights": (1 / s)[:, None].expand_as(rbm.weights).flatten(),
        "hidden.bias": of_bias.expand_as(rbm.hidden.bias),
        "visible.bias": 1 / s,
        "visible.log_variance": torch.ones_like(s),
    }
    return torch.cat([parts[name] for name, _ in rbm.named_parameters()])


@torch.no_grad()
def natural_step(
    rbm: RBM,
    gradient: dict[str, Tensor],
    data: Tensor,
    particles: Tensor,
    config: NaturalGradientConfig,
    rate: float,
    frozen: frozenset[str] = frozenset(),
) -> dict[str, Tensor]:
    """The change of each parameter, by name, float64: rate (F + damping U)^-1 g, shortened to max_divergence.

    F is the mean of the covariances of `energy_features` over the data and over the particles. At the optimum the two agree;
    before it, a direction in which the chains do not vary but the data do keeps a bounded step. The step d is shortened until
    d^T (F + damping U) d / 2 is at most max_divergence: with little damping that is, to second order, the KL divergence between
    the densities before and after it; the damping bounds what rows too few for F leave undetermined.

    Args:
        rbm: with a hidden layer that is not Gaussian.
        gradient: the ascent direction g by parameter name; not changed.
        data: rows of the batch of all workers [B, V].
        particles: visible states of all workers' chains at beta = 1 [M, V].
        config: damping and max_divergence.
        rate: learning rate; at 1 and without noise a Newton step near the optimum.
        frozen: names of parameters that are not learned; the step is the natural one among the others.
    """
    fisher = torch.zeros((), dtype=torch.float64)
    for rows in (data, particles):
        features = energy_features(rbm, rows).double()
        centered = features - features.mean(0)
        fisher = fisher.to(centered) + 0.5 * (centered.T @ centered) / len(rows)
    flat = torch.cat([gradient[name].double().flatten() for name, _ in rbm.named_parameters()])
    free = torch.cat(
        [torch.full((p.numel(),), name not in frozen, device=flat.device) for name, p in rbm.named_parameters()]
    )
    damped = fisher + config.damping * torch.diag(damping_units(rbm, data).double())
    step = torch.zeros_like(flat)
    step[free] = rate * torch.linalg.solve(damped[free][:, free], flat[free])
    divergence = float(0.5 * step @ damped @ step)
    if divergence > config.max_divergence:
        step = step * (config.max_divergence / divergence) ** 0.5
    names, shapes = zip(*((name, p.shape) for name, p in rbm.named_parameters()))
    return dict(zip(names, (part.view(shape) for part, shape in zip(step.split([s.numel() for s in shapes]), shapes))))

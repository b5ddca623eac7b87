"""The restricted Boltzmann machine with the generic energy of Eq. 1: p(v, h) = exp(-E(v, h)) / Z."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.config import RBMConfig
from pipeline.models.units import UNITS


class Hidden(NamedTuple):
    """Hidden states that enter the statistics: a sample (variance None), or a conditional mean with its variance [H]
    where the energy is quadratic in h.
    """

    states: Tensor
    variance: Tensor | None


class Couplings(NamedTuple):
    """Products with offsets and variances folded in, so that a half sweep is one addmm; valid until parameters change.

    total_h = hidden_bias + v @ to_hidden,    total_v = visible_bias + h @ to_visible.
    """

    to_hidden: Tensor
    """W / s_v [V, H]."""
    to_visible: Tensor
    """(W / s_h)^T, a view [H, V]."""
    hidden_bias: Tensor
    visible_bias: Tensor


class RBM(nn.Module):
    """A visible and a hidden layer of units, and weights [V, H] between them. Parameters have no autograd in training."""

    def __init__(self, config: RBMConfig, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config = config
        self.visible = UNITS[config.visible_units](config.num_visible, dtype)
        self.hidden = UNITS[config.hidden_units](config.num_hidden, dtype)
        self.weights = nn.Parameter(torch.zeros(config.num_visible, config.num_hidden, dtype=dtype))

    def hidden_field(self, v: Tensor) -> Tensor:
        """W^T scaled(v): [rows, V] -> [rows, H]."""
        return self.visible.scaled(v) @ self.weights

    def visible_field(self, h: Tensor) -> Tensor:
        """W scaled(h): [rows, H] -> [rows, V]."""
        return self.hidden.scaled(h) @ self.weights.T

    def energy(self, v: Tensor, h: Tensor) -> Tensor:
        """E(v, h) [rows] (Eq. 1), for v [rows, V] and h [rows, H]."""
        coupling = (self.visible.scaled(v) * self.visible_field(h)).sum(1)
        return self.visible.self_energy(v) + self.hidden.self_energy(h) - coupling

    def free_energy(self, v: Tensor, beta: float = 1.0) -> Tensor:
        """F(v) [rows] with exp(-F(v)) = sum or integral over h of exp(-beta E(v, h)); exact."""
        return beta * self.visible.self_energy(v) - self.hidden.log_partition(self.hidden_field(v), beta)

    def hidden_mean(self, v: Tensor, beta: Tensor | float = 1.0) -> Tensor:
        """E[h | v] [rows, H] at inverse temperature beta."""
        return self.hidden.mean(self.hidden.bias + self.hidden_field(v), beta)

    def visible_mean(self, h: Tensor, beta: Tensor | float = 1.0) -> Tensor:
        """E[v | h] [rows, V] at inverse temperature beta."""
        return self.visible.mean(self.visible.bias + self.visible_field(h), beta)

    @torch.no_grad()
    def couplings(self) -> Couplings:
        """Folded products for many sweeps with the present parameters."""
        s_v, s_h = self.visible.variance(), self.hidden.variance()
        weights = self.weights.detach()
        to_hidden = weights if s_v is None else weights / s_v[:, None]
        to_visible = (weights if s_h is None else weights / s_h).T
        return Couplings(
            to_hidden,
            to_visible,
            self.hidden.bias - self.visible.offset @ to_hidden if self.visible.shifts() else self.hidden.bias.detach(),
            self.visible.bias - self.hidden.offset @ to_visible if self.hidden.shifts() else self.visible.bias.detach(),
        )

    def negative_energy_gradient(self, v: Tensor, hidden: Hidden, weights: Tensor) -> dict[str, Tensor]:
        """Weighted sum over rows of f = -dE/dtheta, for every parameter by its name (closed form, no autograd).

        Both terms of the objective are such sums (see learning/weights.py). With conditional means in `hidden` it is the
        expectation of f over h given v (Rao-Blackwell), exact because E is at most quadratic in h.

        Args:
            v: visible states [rows, V].
            hidden: hidden states or conditional means [rows, H].
            weights: [rows].
        """
        s_v, s_h = self.visible.variance(), self.hidden.variance()
        grad = self.visible.shifted(v).T @ (self.hidden.scaled(hidden.states) * weights[:, None])
        if s_v is not None:
            grad /= s_v[:, None]
        grads = {"weights": grad}
        for name, value in self.visible.self_gradient(v, None, weights).items():
            grads[f"visible.{name}"] = value
        for name, value in self.hidden.self_gradient(hidden.states, hidden.variance, weights).items():
            grads[f"hidden.{name}"] = value
        # the coupling is linear in 1 / s, so its derivative with respect to log s is the coupling itself, turned around
        if s_v is not None:
            grads["visible.log_variance"] -= (self.weights * grad).sum(1)
        if s_h is not None:
            grads["hidden.log_variance"] -= (self.weights * grad).sum(0)
        return grads

    def hidden_statistics(self, v: Tensor, couplings: Couplings | None = None) -> Hidden:
        """Conditional means (and variances where they matter) of h given v at beta = 1.

        With `couplings` of the present parameters it is one product; without, the textbook formula.
        """
        if couplings is None:
            return Hidden(self.hidden_mean(v), self.hidden.mean_variance())
        total = torch.addmm(couplings.hidden_bias, v, couplings.to_hidden)
        return Hidden(self.hidden.mean(total), self.hidden.mean_variance())

    @torch.no_grad()
    def move_hidden_offset_(self, offset: Tensor) -> None:
        """Set the hidden offsets [H] and move the visible biases so that p(v, h) stays as it was.

        Both E[v | h] = bias + W (h - o) / s and the logits of discrete visible units keep their value when
        bias += W (o_new - o) / s.
        """
        change = offset - self.hidden.offset
        s_h = self.hidden.variance()
        self.visible.bias.add_(self.weights @ (change if s_h is None else change / s_h))
        self.hidden.offset.copy_(offset)

    def check_normalizable(self) -> None:
        """Raise ValueError when Z is infinite: two Gaussian layers whose precision matrix is not positive definite.

        The precision [[diag(1/s_v), -W/(s_v s_h)], [., diag(1/s_h)]] is positive definite exactly when the largest
        singular value of W / sqrt(s_v s_h) is below 1.
        """
        s_v, s_h = self.visible.variance(), self.hidden.variance()
        if s_v is None or s_h is None:
            return
        with torch.no_grad():
            top = float(torch.linalg.matrix_norm(self.weights / torch.sqrt(s_v[:, None] * s_h), ord=2))
        if not top < 1:
            raise ValueError(
                f"the largest singular value of W / (sigma_v sigma_h) is {top:.4g}: two Gaussian layers have a finite "
                "partition function only below 1; lower the weights or the learning rate"
            )

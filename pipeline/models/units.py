"""Layers of units: Bernoulli, Gaussian and one-hot; what each contributes to the generic energy of Eq. 1.

With x the states of a layer, s its variances (1 unless Gaussian), o its offsets (0 unless centered) and W the weights,

    E(v, h) = self_energy(v) + self_energy(h) - scaled(v)^T W scaled(h),    scaled(x) = (x - o) / s.

A new kind is a class here, with its name in UNITS and in the settings (config/model.py: UnitKind).

A layer sees the other only through its *field*, W^T scaled(v) or W scaled(h). `total` is bias + field: the logits of a
Bernoulli or one-hot layer, the mean of a Gaussian one. beta multiplies the whole energy.
"""

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import RBMConfig, UnitKind
from pipeline.streams import Random, exponential_, normal_, uniform_


class Units(nn.Module):
    """A layer of `size` units with biases [size] and constant offsets [size]."""

    bias: nn.Parameter
    offset: Tensor
    in_unit_interval = False
    """True when states lie in {0, 1}, and means between: they travel as bits, and rows outside of [0, 1] are refused."""

    def __init__(self, size: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size, dtype=dtype))
        self.register_buffer("offset", torch.zeros(size, dtype=dtype))
        self._asked: tuple[Tensor, int, bool] | None = None
        """Offsets, their version and the answer of `shifts` for them."""

    def shifts(self) -> bool:
        """False where all offsets are known to be zero. A GPU's are not asked: it would have to wait."""
        offset = self.offset
        if offset.device.type != "cpu" or offset.is_inference():  # the latter have no version
            return True
        asked = self._asked
        if asked is None or asked[0] is not offset or asked[1] != offset._version:  # it counts changes in place
            asked = self._asked = (offset, offset._version, bool(offset.any()))
        return asked[2]

    def variance(self) -> Tensor | None:
        """Variances s [size] that divide the states in the coupling; None stands for 1."""
        return None

    def shifted(self, x: Tensor) -> Tensor:
        """States [rows, size] less the offsets."""
        return x - self.offset if self.shifts() else x

    def scaled(self, x: Tensor) -> Tensor:
        """(x - offset) / s, the form in which a state [rows, size] enters the coupling."""
        s = self.variance()
        return self.shifted(x) if s is None else self.shifted(x) / s

    def self_energy(self, x: Tensor) -> Tensor:
        """-sum_i a_i(x_i) [rows] of states x [rows, size]."""
        return -(x @ self.bias)

    def mean(self, total: Tensor, beta: Tensor | float = 1.0) -> Tensor:
        """E[x | total] [rows, size] at inverse temperature beta ([rows, 1] or a number)."""
        raise NotImplementedError

    def mean_variance(self) -> Tensor | None:
        """Var[x | total] [size] where E[x^2] enters the energy (Gaussian); None where the energy is linear in x."""
        return None

    def sample_(self, total: Tensor, beta: Tensor | None, random: Random) -> Tensor:
        """A draw from p(x | total) [rows, size]; `total` is used as scratch. beta [rows, 1], None for 1."""
        raise NotImplementedError

    def log_partition(self, field: Tensor, beta: float = 1.0) -> Tensor:
        """Log of sum or integral over x of exp(-beta (self_energy(x) - scaled(x).field)) [rows]; exact."""
        raise NotImplementedError

    def self_gradient(self, x: Tensor, x_variance: Tensor | None, weights: Tensor) -> dict[str, Tensor]:
        """Weighted sums over rows of -d self_energy(x) / d(parameter of this layer).

        Args:
            x: states or conditional means [rows, size].
            x_variance: conditional variances [size] when x is a mean and self_energy is quadratic in it, else None.
            weights: [rows].
        """
        return {"bias": weights @ x}

    def clamp_(self, min_std: float) -> None:
        """Keep parameters in their range, after an update."""

    def fit_(self, mean: Tensor, variance: Tensor, config: RBMConfig) -> None:
        """Set a visible layer's starting values from the data's mean and variance per unit [size], float64."""
        raise NotImplementedError

    def independent(self, data: Tensor) -> "Units":
        """A visible layer without a field that fits data rows [N, size], N >= 2, in float64: where annealing starts.

        A unit that never changes keeps a finite bias, and tails are not lighter than this layer's own: they would give the
        weights of annealing an infinite variance.
        """
        raise NotImplementedError

    def _empty(self) -> Self:
        """A layer of this kind and size in float64, at zero."""
        return type(self)(len(self.bias), torch.float64).to(self.bias.device)

    def spread(self, mean: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
        """Independent wide states [rows, size] of the data's mean [rows, size] and, if real, its standard deviation [size]."""
        raise NotImplementedError

    def log2_states(self) -> float:
        """Logarithm to base 2 of the number of states; infinite for real units."""
        return math.inf

    def states(self, indices: Tensor) -> Tensor:
        """The states [n, size] of a discrete layer at `indices` [n], below 2^log2_states()."""
        raise ValueError(
            f"a {type(self).__name__} layer cannot be enumerated; enumerate the other one, or use quadrature"
        )


class Bernoulli(Units):
    """Units in {0, 1}: a(x) = bias * x."""

    in_unit_interval = True

    def mean(self, total: Tensor, beta: Tensor | float = 1.0) -> Tensor:
        return torch.sigmoid(total if isinstance(beta, float) and beta == 1 else total * beta)

    def sample_(self, total: Tensor, beta: Tensor | None, random: Random) -> Tensor:
        if beta is not None:
            total.mul_(beta)
        total.sigmoid_()
        return uniform_(torch.empty_like(total), random).lt_(total)

    def log_partition(self, field: Tensor, beta: float = 1.0) -> Tensor:
        return F.softplus(beta * (self.bias + field)).sum(1) - beta * (field @ self.offset)

    def fit_(self, mean: Tensor, variance: Tensor, config: RBMConfig) -> None:
        self.bias.copy_(torch.logit(mean, eps=0.01))

    def independent(self, data: Tensor) -> "Bernoulli":
        base, mean = self._empty(), data.mean(0, dtype=torch.float64)
        base.bias.copy_(torch.logit((mean * len(data) + 0.5) / (len(data) + 1)))
        return base

    def spread(self, mean: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
        return torch.empty_like(mean).uniform_(generator=generator).lt_(mean)

    def log2_states(self) -> float:
        return float(len(self.bias))

    def states(self, indices: Tensor) -> Tensor:
        """Binary digits, the first unit the highest."""
        places = torch.arange(len(self.bias) - 1, -1, -1, device=indices.device)
        return ((indices[:, None] >> places) & 1).to(self.bias.dtype)


class OneHot(Units):
    """One categorical variable as `size` units of which exactly one is 1 (a softmax layer)."""

    in_unit_interval = True

    def mean(self, total: Tensor, beta: Tensor | float = 1.0) -> Tensor:
        return torch.softmax(total * beta, dim=1)

    def sample_(self, total: Tensor, beta: Tensor | None, random: Random) -> Tensor:
        if beta is not None:
            total.mul_(beta)
        # argmax of logits + Gumbel noise is a draw from the softmax; Gumbel = -log(Exponential(1))
        noise = exponential_(torch.empty_like(total), random).log_()
        winner = total.sub_(noise).argmax(dim=1, keepdim=True)
        return torch.zeros_like(total).scatter_(1, winner, 1.0)

    def log_partition(self, field: Tensor, beta: float = 1.0) -> Tensor:
        return torch.logsumexp(beta * (self.bias + field), dim=1) - beta * (field @ self.offset)

    def fit_(self, mean: Tensor, variance: Tensor, config: RBMConfig) -> None:
        self.bias.copy_(mean.clamp(min=0.01 / len(mean)).log())

    def independent(self, data: Tensor) -> "OneHot":
        base, mean = self._empty(), data.mean(0, dtype=torch.float64)
        base.bias.copy_(((mean * len(data) + 1 / len(mean)) / (len(data) + 1)).log())
        return base

    def spread(self, mean: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
        return self.sample_(mean.clamp(min=1e-6).log(), None, generator)

    def log2_states(self) -> float:
        return math.log2(len(self.bias))

    def states(self, indices: Tensor) -> Tensor:
        return F.one_hot(indices, len(self.bias)).to(self.bias.dtype)


class Gaussian(Units):
    """Real units: a(x) = -(x - bias)^2 / (2 s), s = exp(log_variance), learned per unit.

    Given its field, x ~ N(bias + field, s / beta): the mean does not move with beta, the variance does.
    """

    def __init__(self, size: int, dtype: torch.dtype = torch.float32):
        super().__init__(size, dtype)
        self.log_variance = nn.Parameter(torch.zeros(size, dtype=dtype))

    def variance(self) -> Tensor:
        return self.log_variance.exp()

    def self_energy(self, x: Tensor) -> Tensor:
        return ((x - self.bias) ** 2 / (2 * self.variance())).sum(1)

    def mean(self, total: Tensor, beta: Tensor | float = 1.0) -> Tensor:
        return total

    def mean_variance(self) -> Tensor:
        return self.variance()

    def sample_(self, total: Tensor, beta: Tensor | None, random: Random) -> Tensor:
        noise = normal_(torch.empty_like(total), random).mul_((0.5 * self.log_variance).exp())
        if beta is not None:
            noise.mul_(beta.rsqrt())
        return total.add_(noise)

    def log_partition(self, field: Tensor, beta: float = 1.0) -> Tensor:
        s = self.variance()
        quadratic = ((self.bias - self.offset) * field + 0.5 * field**2) / s
        return 0.5 * (math.log(2 * math.pi / beta) + self.log_variance).sum() + beta * quadratic.sum(1)

    def self_gradient(self, x: Tensor, x_variance: Tensor | None, weights: Tensor) -> dict[str, Tensor]:
        s = self.variance()
        deviation = x - self.bias
        bias = (weights @ deviation) / s
        square = weights @ deviation.square_()
        if x_variance is not None:
            square += weights.sum() * x_variance
        return {"bias": bias, "log_variance": 0.5 * square / s}

    def clamp_(self, min_std: float) -> None:
        self.log_variance.clamp_(min=2 * math.log(min_std))

    def fit_(self, mean: Tensor, variance: Tensor, config: RBMConfig) -> None:
        smooth = variance.lerp(torch.ones_like(mean), config.initial_smoothing)
        std = (config.initial_std * smooth.sqrt()).clamp(min=config.min_std)
        if config.fixed_std is not None:
            std = torch.full_like(std, config.fixed_std)
        self.bias.copy_(mean)
        self.log_variance.copy_(2 * std.log())

    def independent(self, data: Tensor) -> "Gaussian":
        base = self._empty()
        base.bias.copy_(data.mean(0, dtype=torch.float64))
        base.log_variance.copy_(torch.maximum(data.double().var(0), self.variance()).log())
        return base

    def spread(self, mean: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
        return torch.empty_like(mean).normal_(generator=generator) * std + mean


UNITS: dict[UnitKind, type[Units]] = {"bernoulli": Bernoulli, "gaussian": Gaussian, "onehot": OneHot}
"""Unit kinds by the name they have in settings."""

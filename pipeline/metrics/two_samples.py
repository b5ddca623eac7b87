"""Tests of whether two sets of rows come from one law: kernel MMD with an error bar, and the nearest-neighbor two-sample score.

MMD is 0 for equal laws and sees every difference in principle, but in practice the coarse ones first. The two-sample score
sees the fine ones: on average half of the nearest neighbors belong to the other set when the laws are equal. Rows of
the model nearer to real rows than those are to each other (copies) push the real accuracy below 1/2; rows of the model
nearer to each other (collapse, near-duplicates, or a law of its own) push the model's accuracy toward 1.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pipeline.metrics.divergences import nearest_distances

KernelName = Literal["polynomial", "gaussian"]

_MEDIAN_ROWS = 1000  # real rows whose distances set the Gaussian bandwidth


class Kernel(NamedTuple):
    """A kernel with its scale, fixed by the real rows so that all compared models are measured by the same one."""

    name: KernelName
    scale: float
    """Polynomial: mean squared length of the real rows. Gaussian: median squared distance between real rows."""


class DiscrepancyEstimate(NamedTuple):
    """A squared maximum mean discrepancy."""

    squared: float
    """Mean over subsets of the unbiased estimate; can be negative."""
    standard_error: float
    """Standard deviation over the disjoint subsets, divided by the square root of their number."""
    num_rows: int
    """Rows of each set that entered: num_subsets * (n // num_subsets)."""
    num_subsets: int


class NeighborAccuracy(NamedTuple):
    """Leave-one-out accuracies of the nearest-neighbor classifier between real and generated rows; .5 is equal laws."""

    overall: float
    real: float
    """Share of real rows whose nearest row is real; far below 1/2 shows copies of these very rows."""
    generated: float
    """Share of generated rows whose nearest row is generated; far above 1/2 shows collapse or duplicates."""
    num_rows: int
    """Rows of each set."""


def fit_kernel(real: Tensor, name: KernelName) -> Kernel:
    """Return the kernel of a name, scaled by the real rows [n, d], n >= 2.

    - polynomial: k(x, y) = (x.y / scale + 1)^3 with scale the mean of |x|^2: the kernel of KID (Binkowski et al. 2018),
      whose 1/d stands for the same when the features' mean square is 1;
    - gaussian: k(x, y) = exp(-|x - y|^2 / (2 scale)) with scale the median of |x - x'|^2 over the first 1,000 rows.

    Raises:
        ValueError: on fewer than two rows, or real rows that are all equal (all zero, for the polynomial kernel).
    """
    if real.ndim != 2 or len(real) < 2:
        raise ValueError(f"real rows have shape {tuple(real.shape)}; expected [n >= 2, d]")
    if name == "polynomial":
        scale = real.double().square().sum(1).mean().item()
    elif name == "gaussian":
        few = real[:_MEDIAN_ROWS].double()
        scale = torch.nn.functional.pdist(few).median().item() ** 2
    else:
        raise ValueError(f"kernel {name!r} is unknown; there are 'polynomial' and 'gaussian'")
    if not 0 < scale < math.inf:
        raise ValueError(f"the scale of the {name} kernel is {scale}: the real rows are all equal, zero or not finite")
    return Kernel(name, scale)


def kernel_discrepancy(
    real: Tensor, generated: Tensor, kernel: Kernel, num_subsets: int = 10, seed: int = 0
) -> DiscrepancyEstimate:
    """Return the unbiased squared MMD, averaged over disjoint subsets of both sets.

        MMD^2 = 1/(m(m-1)) sum_{i != j} [k(x_i, x_j) + k(y_i, y_j)] - 2/m^2 sum_{i, j} k(x_i, y_j)
                                                                              (Gretton et al. 2012, Eq. 3)

    Subsets share no rows, so their estimates are independent and the standard error is an honest one. It is the error
    of *this* draw of rows; two models scored on the same real rows share a part of it.

    Args:
        real: [n, d].
        generated: [n, d], as many.
        kernel: from `fit_kernel` on the real rows.
        num_subsets: from 2 to n / 2.
        seed: deals the rows to subsets.

    Raises:
        ValueError: on unequal shapes or an impossible number of subsets.
    """
    _require_equal(real, generated)
    size = len(real) // max(num_subsets, 1)
    if num_subsets < 2 or size < 2:
        raise ValueError(f"num_subsets is {num_subsets}; with {len(real)} rows of each set give 2..{len(real) // 2}")
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.randperm(len(real), generator=generator).to(real.device) for _ in range(2)]
    estimates = torch.tensor(
        [
            _squared_discrepancy(real[chosen[0][part]].double(), generated[chosen[1][part]].double(), kernel)
            for part in (slice(start, start + size) for start in range(0, num_subsets * size, size))
        ],
        dtype=torch.float64,
    )
    return DiscrepancyEstimate(
        estimates.mean().item(), estimates.std().item() / math.sqrt(num_subsets), num_subsets * size, num_subsets
    )


def neighbor_accuracy(real: Tensor, generated: Tensor) -> NeighborAccuracy:
    """Return the leave-one-out accuracies of the 1-nearest-neighbor classifier (Lopez-Paz and Oquab 2017).

    A row counts 1 when its nearest other row is of its own set, 1/2 when the two sets are equally near (exact copies).

    Args:
        real: [n, d].
        generated: [n, d], as many: with unequal counts 1/2 would mean nothing.

    Raises:
        ValueError: on unequal shapes, fewer than two rows or values that are not finite.
    """
    _require_equal(real, generated)
    accuracy_real, accuracy_generated = _own_share(real, generated), _own_share(generated, real)
    return NeighborAccuracy(
        (accuracy_real + accuracy_generated) / 2, accuracy_real, accuracy_generated, num_rows=len(real)
    )


def _own_share(rows: Tensor, others: Tensor) -> float:
    own, other = nearest_distances(rows, None, 1)[:, 0], nearest_distances(rows, others, 1)[:, 0]
    return ((own < other).double() + 0.5 * (own == other).double()).mean().item()


def _squared_discrepancy(x: Tensor, y: Tensor, kernel: Kernel) -> float:
    size = len(x)
    within = sum(matrix.sum() - matrix.diagonal().sum() for matrix in (_matrix(x, x, kernel), _matrix(y, y, kernel)))
    return float(within / (size * (size - 1)) - 2 * _matrix(x, y, kernel).mean())


def _matrix(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    if kernel.name == "polynomial":
        return (x @ y.T / kernel.scale + 1) ** 3
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return torch.exp(squares.clamp_min(0) / (-2 * kernel.scale))


def _require_equal(real: Tensor, generated: Tensor) -> None:
    if real.shape != generated.shape or real.ndim != 2:
        raise ValueError(
            f"real rows have shape {tuple(real.shape)} and generated ones {tuple(generated.shape)}: these scores depend "
            "on the number of rows, so give equally many of each as [n, d]"
        )

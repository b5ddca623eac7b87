"""The BEAM objective as the weights of one sum; fused/update_kernels.py has the same weights for a GPU.

We minimize C = -gamma L - (1 - gamma) A (Eq. 9), so we ascend gamma L + (1 - gamma) A. With f = -dE/dtheta,

    dL = <f>_data - <f>_model                                   (Eq. 2)
    dA = Cov_model[T, f] = <T f>_model - <T>_model <f>_model    (Eq. 13, 22)

Both are weighted sums of f over rows: weight gamma / B on each of B data rows; on particle i of M,
-gamma / M + (1 - gamma) (T_i - mean T) / M. B, M and mean T are global. (Eq. 18 of the paper has a sign slip.)
"""

import torch
from torch import Tensor


def data_weights(gamma: float, num_local: int, num_data: int, like: Tensor) -> Tensor:
    """Weights [num_local] of this worker's data rows in the ascent direction; num_data = B is global."""
    return torch.full((num_local,), gamma / num_data, dtype=like.dtype, device=like.device)


def particle_weights(
    gamma: float, scores: Tensor | None, mean_score: float | Tensor, num_particles: int, like: Tensor
) -> Tensor:
    """Weights [m] of this worker's particles in the ascent direction.

    Args:
        gamma: weight of the likelihood.
        scores: T of these particles [m]; None before there is a memory, or when gamma is 1: the step is plain PCD.
        mean_score: mean of T over the particles of all workers.
        num_particles: M, global.
        like: a tensor of m rows that gives dtype and device.
    """
    if scores is None:
        return torch.full((len(like),), -gamma / num_particles, dtype=like.dtype, device=like.device)
    return (-gamma + (1 - gamma) * (scores - mean_score)) / num_particles

"""Batch normalization over the global batch, with the same bits for any number of workers.

The batch lies in fixed blocks, some here and some on other workers. Every block gives its own sums of a layer's values;
`comm` adds them exactly, so the statistics do not depend on who had which block, and neither do the gradients that flow
back through them: a block's rows enter the statistics, and through these every other row's output, wherever it is.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.comm import LIMIT, Comm, snap_to_grid

EPSILON = 1e-5
"""Added to a variance before its root, as everywhere."""
MOMENTUM = 0.1
"""Share of the newest batch in the running moments."""


class Moments(NamedTuple):
    """Moments of one layer's values over a global batch, by channel; the same on all workers."""

    mean: Tensor
    """[channels]."""
    variance: Tensor
    """[channels], unbiased."""


class GlobalBatchNorm(nn.Module):
    """y = scale (x - mean) / sqrt(variance + 1e-5) + shift by channel, for [n, channels] or [n, channels, height, width].

    In training the moments are those of the global batch: `normalize_blocks`. Called as a module it takes the running
    moments (`track_`), so that a row's result does not depend on the rows beside it.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, num_channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_channels))
        self.shift = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_variance", torch.ones(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """`x` normalized by the running moments."""
        return F.batch_norm(
            x, self.running_mean, self.running_variance, self.scale, self.shift, training=False, eps=EPSILON
        )

    @torch.no_grad()
    def track_(self, moments: Moments) -> None:
        """Move the running moments toward those of a batch, in place."""
        self.running_mean.lerp_(moments.mean, MOMENTUM)
        self.running_variance.lerp_(moments.variance, MOMENTUM)


def normalize_blocks(
    layers: list[GlobalBatchNorm], blocks: list[Tensor], batch_rows: int, comm: Comm
) -> tuple[list[Tensor], Moments]:
    """Blocks of this worker normalized by the moments of the whole batch, with gradients; collective, as is its backward.

    Args:
        layers: one per block, with parameters of their own in the graph and equal values: so each block has a gradient of
            its own, and a sum of them over blocks need not care for their order.
        blocks: [rows of the block, channels, ...] each; a worker without blocks gives one of no rows.
        batch_rows: rows of all blocks of all workers.
        comm: the group.

    Returns:
        (the blocks' outputs, the batch's moments). Moments that are not finite, or beyond the range of exact sums, are NaN
        on all workers, and so is all that follows from them.
    """
    shapes = [block.shape for block in blocks]
    rows = [_as_rows(block) for block in blocks]
    values = batch_rows * shapes[0][2:].numel()
    scales, shifts = [layer.scale for layer in layers], [layer.shift for layer in layers]
    *out, mean, variance = _Normalize.apply(comm, values, *rows, *scales, *shifts)
    unbiased = variance * (values / max(1, values - 1))
    return [_from_rows(y, shape) for y, shape in zip(out, shapes)], Moments(mean, unbiased)


def _as_rows(x: Tensor) -> Tensor:
    """[n, c, h, w] -> [n h w, c]: a view where the channels are last in memory."""
    if x.ndim == 2:
        return x.float()
    return x.movedim(1, -1).reshape(-1, x.shape[1]).float()


def _from_rows(rows: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) == 2:
        return rows
    return rows.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def _exact_sums(comm: Comm, partial: list[Tensor]) -> Tensor:
    """Sum over blocks and workers, float64, free of order; NaN where it is not exact."""
    total = snap_to_grid(partial[0])
    for part in partial[1:]:
        total += snap_to_grid(part)
    comm.sum_(total)
    return torch.where(total.abs() < LIMIT, total, torch.nan)


class _Normalize(torch.autograd.Function):
    """Rows of K blocks, K scales, K shifts -> K normalized blocks, the batch's mean and (biased) variance.

    With z = (x - mean) / sd and N values of a channel in the batch, dL/dx = scale / sd (dy - sum dy / N - z sum(dy z) / N),
    the sums over the whole batch; dL/dscale and dL/dshift are a block's own sum(dy z) and sum(dy).
    """

    @staticmethod
    def forward(ctx: Any, comm: Comm, values: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(tensors) // 3
        rows, scale, shift = tensors[:count], tensors[count], tensors[2 * count]
        partial = []
        for x in rows:  # moments of the block about its own mean: nothing cancels
            share = len(x) / values
            mean = x.mean(0) if len(x) else x.new_zeros(x.shape[1])
            square = (x - mean).square().sum(0, dtype=torch.float32).double() / values
            partial.append(torch.stack([mean.double() * share, square + mean.double().square() * share]))
        mean, square = _exact_sums(comm, partial)
        variance = (square - mean.square()).clamp_min(0)
        deviation = (variance + EPSILON).sqrt()
        mean32, inverse = mean.float(), (1 / deviation).float()
        normal = [(x - mean32).mul_(inverse) for x in rows]
        ctx.comm, ctx.values = comm, values
        ctx.save_for_backward(scale, inverse, *normal)
        out = [torch.addcmul(shift, z, scale) for z in normal]
        moments = (mean32, variance.float())
        ctx.mark_non_differentiable(*moments)
        return (*out, *moments)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale, inverse, *normal = ctx.saved_tensors
        incoming = gradients[: len(normal)]
        shifts = [dy.sum(0) for dy in incoming]
        scales = [(dy * z).sum(0) for dy, z in zip(incoming, normal)]
        shift, along = _exact_sums(ctx.comm, [torch.stack(pair) for pair in zip(shifts, scales)]) / ctx.values
        factor = scale * inverse
        rows = [
            torch.addcmul(dy - shift.float(), z, along.float(), value=-1).mul_(factor)
            for dy, z in zip(incoming, normal)
        ]
        return (None, None, *rows, *scales, *shifts)

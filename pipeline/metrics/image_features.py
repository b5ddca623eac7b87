"""Histograms of oriented gradients: a feature space of pictures that no model was trained in.

Scores in the latents of an autoencoder favor the model that was trained on those latents. These features are a formula
(Dalal and Triggs, "Histograms of oriented gradients for human detection", 2005): where strokes and edges are and which
way they run, without color and with contrast normalized within blocks. They see shape; they do not see color or
overall brightness. Inception's features are in inception.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_BINS = 9
"""Unsigned orientations, [0, 180) degrees."""
CLIP = 0.2
"""L2-Hys: entries of a normalized block are cut here before it is normalized again."""
FLATNESS = 0.005
"""A block of length n (mean votes per pixel, intensities in [0, 1]) becomes one of length n / sqrt(n^2 + FLATNESS^2), not
1: the rounding of uint8 in a flat block stays near 0 instead of being blown up to an edge."""

_LUMA = (0.299, 0.587, 0.114)
_BLOCK = 256  # images at a time: 38 MiB of float32 votes at 64x64


def hog(pixels: Tensor, num_bins: int = NUM_BINS) -> Tensor:
    """Return histograms of oriented gradients of pictures: [n, features], float32.

        g = (I(x+1) - I(x-1), I(y+1) - I(y-1)) / 2,    angle = atan2(g_y, g_x) mod 180 degrees

    Each pixel gives |g|, split linearly between the two bins whose centers, (k + 1/2) 180 / num_bins degrees, are
    nearest in angle. Votes are averaged over cells; blocks of 2x2 cells, overlapping by one, are normalized to length
    1, cut at CLIP and normalized again (L2-Hys), and made shorter where they are flat (FLATNESS). Borders are continued
    by their last pixel, which halves the gradient there.

    A cell is 8x8 pixels, or 7x7 where the side is a multiple of 7 but not of 8: 64x64 gives 7 x 7 blocks x 36 = 1,764
    features, 28x28 (MNIST) 3 x 3 x 36 = 324.

    Args:
        pixels: uint8 [n, s, s, 3] (RGB) or [n, s, s], n >= 1; s a multiple of 8 or 7, at least two cells.
        num_bins: orientations, at least 2.

    Returns:
        On the device of `pixels`, rows ordered by block row, block column, cell, bin.

    Raises:
        ValueError: on another shape or type.
    """
    cell = _cell_side(pixels)
    if num_bins < 2:
        raise ValueError(f"num_bins is {num_bins}; at least 2 orientations are told apart")
    return torch.cat([_hog_block(block, cell, num_bins) for block in pixels.split(_BLOCK)])


def gray(pixels: Tensor) -> Tensor:
    """Return intensities in [0, 1] of uint8 pictures: [n, s, s, 3] by ITU-R 601 luma, [n, s, s] as they are; float32."""
    images = pixels.float() / 255
    return images if pixels.ndim == 3 else images @ torch.tensor(_LUMA, device=pixels.device)


def to_pixels(rows: Tensor, side: int) -> Tensor:
    """Return uint8 pictures [n, side, side] of rows [n, side^2] in [0, 1], rounded; values outside are cut.

    Raises:
        ValueError: on another number of columns or values that are not finite.
    """
    if rows.ndim != 2 or rows.shape[1] != side**2:
        raise ValueError(f"rows have shape {tuple(rows.shape)}; pictures of side {side} need [n, {side**2}]")
    if not torch.isfinite(rows).all():
        raise ValueError("rows hold values that are not finite: the run that made them has diverged")
    return (rows.clamp(0, 1) * 255).round().to(torch.uint8).view(-1, side, side)


def _cell_side(pixels: Tensor) -> int:
    """Side of a cell, after checking the pictures."""
    shape = tuple(pixels.shape)
    square = len(shape) in (3, 4) and shape[0] > 0 and shape[1] == shape[2] and shape[3:] in ((), (3,))
    if pixels.dtype == torch.uint8 and square:
        for cell in (8, 7):
            if shape[1] % cell == 0 and shape[1] >= 2 * cell:
                return cell
    raise ValueError(
        f"pictures are {pixels.dtype} of shape {shape}; expected uint8 [n, s, s, 3] or [n, s, s] with n >= 1 and s a "
        "multiple of 8 or 7, at least 14: use `to_pixels` on rows in [0, 1]"
    )


def _hog_block(pixels: Tensor, cell: int, num_bins: int) -> Tensor:
    padded = F.pad(gray(pixels)[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    across = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    magnitude = torch.hypot(across, down)
    # In units of a bin's width, from the center of the first bin: bin k's center is at k.
    position = torch.atan2(down, across) * (num_bins / math.pi) - 0.5
    centers = torch.arange(num_bins, device=pixels.device).view(1, -1, 1, 1)
    distance = torch.remainder(position[:, None] - centers + num_bins / 2, num_bins) - num_bins / 2
    votes = (1 - distance.abs()).clamp_min(0) * magnitude[:, None]
    cells = F.avg_pool2d(votes, cell)  # [n, bins, rows of cells, columns of cells]
    blocks = torch.stack([cells[:, :, :-1, :-1], cells[:, :, :-1, 1:], cells[:, :, 1:, :-1], cells[:, :, 1:, 1:]], 1)
    blocks = blocks.permute(0, 3, 4, 1, 2).flatten(3)  # [n, block rows, block columns, 4 * bins]
    return _normalized(blocks).flatten(1)


def _normalized(blocks: Tensor) -> Tensor:
    """L2-Hys along the last dimension, with the lengths of flat blocks; blocks of 0 stay 0."""
    lengths = blocks.norm(dim=-1, keepdim=True)
    clipped = (blocks / lengths.clamp_min(1e-12)).clamp_max(CLIP)
    directions = clipped / clipped.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return directions * (lengths / torch.hypot(lengths, torch.full_like(lengths, FLATNESS)))

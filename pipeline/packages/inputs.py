"""Checks of what people hand to a trained model: pixels, rows of points, masks of units or image cells, and parameters.

Everything here turns what came in (arrays, tensors, nested lists, data frames) into one tensor of one kind, or raises a
ValueError that says what was found and what to give.
"""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.models.autoencoder import IMAGE_SIZE, NUM_FEATURES

CELLS = 4
"""The latents of a picture are 64 channels on a grid of CELLS x CELLS."""
CELL_SIZE = IMAGE_SIZE // CELLS
"""Pixels on a side of the patch that belongs to a cell."""

PROTOCOLS = ("driven", "fresh", "persistent")
SPACES = ("latent", "hidden")
SAMPLE_DEFAULTS: dict[str, Any] = {"n_samples": 36, "gibbs_steps": 100, "seed": 0, "protocol": "driven"}
"""Parameters of `PackagedBeam.sample` and their defaults."""
SAMPLE_RANGES = {"n_samples": (1, 10_000), "gibbs_steps": (1, 100_000), "seed": (0, 2**31 - 1), "steps": (2, 1000)}
Data = Tensor | np.ndarray | Sequence[Any]
"""Pixels [n, 64, 64, 3] of whole numbers from 0 to 255, or rows [n, V] for a model of points."""


def check_parameters(**values: Any) -> None:
    """Raises ValueError on a value out of its range."""
    for name, value in values.items():
        choices = {"protocol": PROTOCOLS, "space": SPACES}.get(name)
        if choices is not None:
            if value not in choices:
                raise ValueError(f"{name} = {value!r}: must be one of {', '.join(choices)}")
            continue
        low, high = SAMPLE_RANGES[name]
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or not low <= int(value) <= high:
            raise ValueError(f"{name} = {value!r}: must be a whole number from {low} to {high}")


def as_pixels(value: Any) -> Tensor:
    """Pixels uint8 [n, 64, 64, 3] of numbers of any type that are whole and in 0..255.

    Raises:
        ValueError: another shape, no picture at all, values that are no numbers, not finite, not whole or out of range.
    """
    array = _numbers(value)
    if array.ndim != 4 or array.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3) or not len(array):
        hint = "; one picture is [1, 64, 64, 3]" if array.shape == (IMAGE_SIZE, IMAGE_SIZE, 3) else ""
        raise ValueError(
            f"the input has shape {list(array.shape)}: must be pixels [n, {IMAGE_SIZE}, {IMAGE_SIZE}, 3] "
            f"(rows, columns, red-green-blue) of at least one picture{hint}"
        )
    if array.dtype != np.uint8:
        for bad, reason in ((array < 0) | (array > 255), "from 0 to 255"), (array % 1 != 0, "whole numbers"):
            if bad.any():
                raise ValueError(
                    f"a pixel is {array[bad][0]}: pixels must be {reason}; scale images in [0, 1] by 255 and round"
                )
    return torch.from_numpy(np.array(array, dtype=np.uint8))  # a copy: torch refuses to share read-only arrays quietly


def as_points(value: Any, width: int, unit_interval: bool = False) -> Tensor:
    """Rows float32 [n, width] of finite numbers; with `unit_interval` (discrete units) in [0, 1].

    Raises:
        ValueError: another shape, no row at all, values that are no numbers, not finite or out of range.
    """
    array = _numbers(value)
    if array.ndim != 2 or array.shape[1] != width or not len(array):
        raise ValueError(f"the input has shape {list(array.shape)}: must be rows [n, {width}], at least one")
    with np.errstate(over="ignore"):
        rows = torch.from_numpy(np.array(array, dtype=np.float32))
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"a value is {np.abs(array).max():.4g}: too large for float32")
    if unit_interval and bool(((rows < 0) | (rows > 1)).any()):
        raise ValueError("a value is below 0 or above 1, but this model's visible units are 0 or 1")
    return rows


def as_clamped(value: Any, shape: Sequence[int], pictures: bool) -> Tensor:
    """Which visible units are held, bool [n, V].

    Args:
        value: a mask of booleans [V] or [n, V], for pictures also [4, 4] over the cells of the picture; or
            whole numbers: cells of the picture (0 to 15, row by row from the top left), and for models of points units.
        shape: of the rows, [n, V].
        pictures: whether the visible units are the 64 x 4 x 4 latents of a picture.

    Raises:
        ValueError: another shape, a number out of range, or nothing is held.
    """
    num_rows, width = shape
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype != bool:
        indices = array.tolist() if array.ndim == 1 else [array.tolist()]
        mask = cell_mask(indices) if pictures else unit_mask(indices, width)
    elif pictures and array.shape == (CELLS, CELLS):
        mask = cell_mask(np.flatnonzero(array).tolist())
    elif array.shape in ((width,), (num_rows, width)):
        mask = torch.from_numpy(np.array(array))
    else:
        cells = f", [{CELLS}, {CELLS}]" if pictures else ""
        raise ValueError(
            f"clamped has shape {list(array.shape)}: "
            f"must be booleans [{width}] or [{num_rows}, {width}]{cells}, or a list of numbers"
        )
    if not bool(mask.any()):
        raise ValueError("nothing is clamped: name what is kept, or draw free samples")
    return mask.expand(num_rows, width)


def cell_mask(cells: Sequence[Any]) -> Tensor:
    """Bool [1024]: the 64 channels of each of the `cells` (0 to 15). Raises ValueError on a number out of range."""
    grid = _index_mask(cells, CELLS * CELLS, "cells")
    return grid.repeat(NUM_FEATURES // len(grid))


def unit_mask(units: Sequence[Any], width: int) -> Tensor:
    """Bool [width]: the `units` (0 to width - 1). Raises ValueError on a number out of range."""
    return _index_mask(units, width, "units")


def clamped_pixels(clamped: Tensor) -> Tensor:
    """The patches of wholly held cells as a mask over pixels: bool [n, 64, 64, 1] of `clamped` [n, 1024]."""
    cells = clamped.reshape(len(clamped), -1, CELLS, CELLS).all(1)
    return cells.repeat_interleave(CELL_SIZE, 1).repeat_interleave(CELL_SIZE, 2)[..., None]


def _index_mask(indices: Sequence[Any], size: int, name: str) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    for index in indices:
        whole = isinstance(index, numbers.Integral) and not isinstance(index, bool)
        if not whole or not 0 <= int(index) < size:
            raise ValueError(f"{name} has {index!r}: must be whole numbers from 0 to {size - 1}")
        mask[int(index)] = True
    return mask


def _numbers(value: Any) -> np.ndarray:
    """`value` as an array of finite integers or floats."""
    if value is None or (isinstance(value, np.ndarray) and value.ndim == 0 and value.item() is None):
        raise ValueError("there is no input: give pixels or rows")
    if isinstance(value, Mapping):
        raise ValueError(f"the input has named parts ({', '.join(map(str, value))}): give one array of numbers")
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError("the input is a list of parts of unequal length: give one array of numbers") from error
    if array.size and array.dtype.kind not in "iuf":
        kind = "text" if array.dtype.kind in "US" else f"{array.dtype} values"
        raise ValueError(f"the input holds {kind}: must be numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("the input has values that are NaN or infinite: all must be finite numbers")
    return array

"""One call of a packaged model through MLflow: task and parameters by name, an input as it came, limits, an answer.

`mlflow.pyfunc` and `mlflow models serve` end here. What a call may ask for is bounded, because a server answers it while
somebody waits; the methods of `PackagedBeam` have no such limits.
"""

import base64
import difflib
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from pipeline.packages.autoencoder import PackagedAutoencoder
from pipeline.packages.inputs import SAMPLE_DEFAULTS, cell_mask, check_parameters, unit_mask
from pipeline.packages.models import Packaged, PackagedBeam
from pipeline.samplers.protocols import ROWS_PER_BLOCK

DEFAULTS: dict[str, Any] = {
    "task": "sample",
    **SAMPLE_DEFAULTS,
    "cells": [],
    "units": [],
    "paste": False,
    "steps": 10,
    "space": "latent",
    "image_format": "array",
}
"""Parameters of `predict` and their defaults. `cells` and `units` are what `inpaint` keeps."""
IMAGE_FORMATS = ("array", "png")

MAX_ROWS = 1000
"""Rows of one call, in or out."""
MAX_ARRAY_PICTURES = 256
"""Pictures of one answer as numbers: MLflow writes 80 of them a second as JSON, and a thousand as PNG take half a second."""
MAX_WORK = 1e11
"""Largest work of one call: blocks of 32 rows x Gibbs steps x (32 V H + 2e6).

About 6 s on one core of 2026; the server gives up after 60."""
_SWEEP_WORK = 2e6  # what a sweep costs however small the model is
_INSTEAD = "call PackagedBeam's methods in Python, or python -m jobs.generate, which have no such limit"


def predict(
    model: Packaged, model_input: Any = None, params: Mapping[str, Any] | None = None
) -> np.ndarray | list[str]:
    """The answer of `model` to one call.

    Args:
        model: a BEAM, or an autoencoder, which reconstructs and knows no parameters.
        model_input: pictures of whole numbers from 0 to 255 [n, 64, 64, 3], or rows [n, V] for a model of points; None
            or empty for the task `sample`. At most 1000 rows.
        params: a subset of `DEFAULTS`. `task` is the name of a method of `PackagedBeam`, the others are its arguments;
            those that the task does not know are not looked at. `inpaint` keeps the image `cells` and visible `units`.
            `image_format`: pictures as an array, or each as a PNG file in base64.

    Returns:
        Pictures uint8 [n, 64, 64, 3] or a list of n texts; rows float32 [n, V]; `encode` float32 [n, H];
        `free_energy` [n].

    Raises:
        ValueError: an unknown parameter, a value out of its range, an input of another kind, more than one call may
            take.
    """
    if isinstance(model, PackagedAutoencoder):
        _check_rows("the input", _length(model_input))
        return model.reconstruct(model_input).numpy()
    given = _complete(params or {})
    task, image_format = given["task"], given["image_format"]
    pictures = model.autoencoder is not None and task not in ("encode", "free_energy")
    if image_format == "png" and not pictures:
        what = f"task {task!r}" if model.autoencoder is not None else "this model of points"
        raise ValueError(f"image_format = 'png': {what} answers with numbers and not with pictures; use 'array'")
    count = {"sample": given["n_samples"], "interpolate": given["steps"]}.get(task, _length(model_input))
    name = {"sample": "n_samples", "interpolate": "steps"}.get(task, "the input")
    _check_rows(name, count)
    if pictures and image_format == "array" and count > MAX_ARRAY_PICTURES:
        raise ValueError(
            f"{name} = {count}: one call gives at most {MAX_ARRAY_PICTURES} pictures as numbers; ask for image_format 'png', "
            f"or {_INSTEAD}"
        )
    if task in ("sample", "inpaint"):
        _check_work(model, count, given["gibbs_steps"])
    result = _TASKS[task](model, model_input, given)
    return [_png(image) for image in result.numpy()] if image_format == "png" else result.numpy()


def _sample(beam: PackagedBeam, data: Any, given: Mapping[str, Any]) -> Tensor:
    if _length(data):
        raise ValueError(
            f"task 'sample' takes no input: give none (in JSON \"inputs\": []), or another task: {', '.join(_TASKS)}"
        )
    return beam.sample(*(given[name] for name in SAMPLE_DEFAULTS))


def _inpaint(beam: PackagedBeam, data: Any, given: Mapping[str, Any]) -> Tensor:
    if len(given["cells"]) and beam.autoencoder is None:
        raise ValueError("cells: a model of points has no image cells; name the units that are kept")
    if not len(given["cells"]) and not len(given["units"]):
        raise ValueError("task 'inpaint' needs what is kept: cells (0 to 15, row by row), or units")
    width = len(beam.rbm.visible.bias)
    clamped = unit_mask(given["units"], width)
    if len(given["cells"]):
        clamped |= cell_mask(given["cells"])
    return beam.inpaint(data, clamped, given["gibbs_steps"], given["seed"], given["paste"])


_TASKS: dict[str, Callable[[PackagedBeam, Any, Mapping[str, Any]], Tensor]] = {
    "sample": _sample,
    "reconstruct": lambda beam, data, given: beam.reconstruct(data),
    "encode": lambda beam, data, given: beam.encode(data),
    "free_energy": lambda beam, data, given: beam.free_energy(data),
    "inpaint": _inpaint,
    "interpolate": lambda beam, data, given: beam.interpolate(data, given["steps"], given["space"]),
}
TASKS = tuple(_TASKS)


def _complete(params: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters, checked. Raises ValueError."""
    for name in params:
        if name not in DEFAULTS:
            near = difflib.get_close_matches(str(name), DEFAULTS, n=1, cutoff=0.0)
            raise ValueError(f"unknown parameter {name!r}; the nearest is {near[0]!r}")
    given = {**DEFAULTS, **params}
    for name, choices in (("task", TASKS), ("image_format", IMAGE_FORMATS)):
        if given[name] not in choices:
            raise ValueError(f"{name} = {given[name]!r}: must be one of {', '.join(choices)}")
    for name in ("cells", "units"):
        if not isinstance(given[name], list | tuple | np.ndarray):
            raise ValueError(f"{name} = {given[name]!r}: must be a list of whole numbers")
    if not isinstance(given["paste"], bool):
        raise ValueError(f"paste = {given['paste']!r}: must be true or false")
    check_parameters(**{name: given[name] for name in (*SAMPLE_DEFAULTS, "steps", "space")})
    return given


def _length(data: Any) -> int:
    """Rows of an input of whatever kind; JSON's null comes as an array without dimensions."""
    if isinstance(data, np.ndarray) and data.ndim == 0:
        data = data.item()
    return 0 if data is None else len(data) if hasattr(data, "__len__") else 1


def _check_rows(name: str, count: int) -> None:
    if count > MAX_ROWS:
        rows = f"{name} has {count} rows" if name == "the input" else f"{name} = {count}"
        raise ValueError(f"{rows}: one call takes at most {MAX_ROWS}; split it, or {_INSTEAD}")


def _check_work(beam: PackagedBeam, count: int, gibbs_steps: int) -> None:
    blocks = -(-count // ROWS_PER_BLOCK)
    sweeps = int(MAX_WORK / (ROWS_PER_BLOCK * beam.rbm.weights.numel() + _SWEEP_WORK))
    if blocks * gibbs_steps > sweeps:
        raise ValueError(
            f"gibbs_steps = {gibbs_steps} for {count} rows: one call takes at most {sweeps // blocks} with so many rows; "
            f"ask for less, or {_INSTEAD}"
        )


def _png(pixels: np.ndarray) -> str:
    """A picture uint8 [H, W, 3] as a PNG file in base64."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")

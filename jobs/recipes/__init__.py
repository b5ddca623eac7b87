"""Named runs as Python functions that return a complete RunConfig. `python -m jobs.train --list` prints them."""

import inspect
from collections.abc import Callable

from jobs.recipes import digits, faces, gans, mixtures, mixtures_research, stacks
from pipeline.config import ConfigError, RunConfig

RECIPES: dict[str, Callable[[], RunConfig]] = {
    f.__name__: f
    for f in (
        faces.celeba_autoencoder,
        faces.celeba_beam,
        faces.celeba_beam_paper,
        faces.celeba_beam_text,
        faces.celeba_beam_centered,
        mixtures.mixture_bimodal_paper,
        mixtures.mixture_bimodal,
        mixtures.mixture_ring_paper,
        mixtures.mixture_ring,
        mixtures.mixture_grid_paper,
        mixtures.mixture_grid,
        mixtures.mixture_toy,
        mixtures_research.mixture_grid_learned_sigma,
        mixtures_research.mixture_ring_learned_sigma,
        digits.mnist_beam_paper,
        digits.mnist_beam,
        digits.mnist_binary_beam_paper,
        digits.mnist_binary_beam,
        digits.digits_beam,
        faces.faces_quick_autoencoder,
        faces.faces_quick,
        faces.faces_toy_autoencoder,
        faces.faces_toy,
        stacks.celeba_stack_top,
        stacks.celeba_stack_tied,
        stacks.stack_toy,
        *gans.GANS,
    )
}

AUTOENCODER_OF = {"faces_quick": "faces_quick_autoencoder", "faces_toy": "faces_toy_autoencoder"}
"""Which autoencoder recipe goes with a BEAM recipe; celeba_autoencoder for all others."""
MIXTURE_OF = {
    name: next(kind for kind in ("bimodal", "ring", "grid", "toy") if kind in name).replace("toy", "bimodal")
    for name in RECIPES
    if name.startswith("mixture_")
}
"""Recipes of points, and the Gaussian mixture that each is trained on."""
TOYS = ("faces_toy", "mixture_toy", "stack_toy")
"""Recipes of toy size; their models have names of their own, so that none becomes a champion of real ones."""


def recipe(name: str, settings: dict[str, str] | None = None) -> RunConfig:
    """The named recipe with settings overridden by dotted key. Raises ConfigError on an unknown name."""
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name]().override(dict(settings or {}))


def describe() -> str:
    """One line per recipe: name and first line of its docstring."""
    lines = ((name, (inspect.getdoc(f) or "").splitlines()[0]) for name, f in RECIPES.items())
    return "\n".join(f"{name:24s} {text}" for name, text in lines)

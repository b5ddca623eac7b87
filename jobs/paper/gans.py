"""GANs with recommended settings on the three mixtures: what Table I's GANs lose by their settings, and not by their kind.

The paper compares its BEAM with GANs as Table I sets them. Rows, test rows and figures are those of the other mixtures.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.paper.experiments import Experiment, Finding, Plan
from jobs.paper.mixtures import QUICK_ROWS, ROWS, ROWS_OF, SEEDS, as_table, collect, train_mixture
from jobs.paper.units import Unit
from pipeline.data.mixtures import GaussianMixture, make_mixture
from pipeline.pictures.paper import sample_panels
from pipeline.streams import stream

RECIPES = {name: f"mixture_{name}_gan_recommended" for name in ROWS_OF}


def _waves(plan: Plan) -> list[list[Unit]]:
    short = {**QUICK_ROWS, "epochs_scale": 0.01} if plan.quick else {}
    units = []
    for mixture, recipe_name in RECIPES.items():
        rows = ROWS_OF[mixture] // (10 if plan.quick else 1)
        for seed in SEEDS[:1] if plan.quick else SEEDS:
            what = {"recipe_name": recipe_name, "settings": short, "geometry": {"name": mixture}, "rows": rows}
            compared = {"compared": 200} if plan.quick else {}
            units.append(
                Unit(f"{mixture}-GAN-{seed}", train_mixture, {**what, "seed": seed, "curve_every": None, **compared})
            )
    return [units]


def _finish(figures: dict[str, dict[str, Any]], folder: Path, plan: Plan) -> Finding:
    numbers = collect(figures)
    samples, densities = {}, {}
    for mixture in RECIPES:
        exact = make_mixture(mixture)
        made = np.load(folder / f"{mixture}-GAN-0" / "samples.npz")["generator"]
        samples[mixture] = {"data": exact.sample(ROWS, stream(0, "shown rows")).numpy(), "GAN": made}
        densities[mixture] = partial(_density, exact)
    sample_panels(folder / "panels.png", samples, densities)
    pictures = ["panels.png: samples of GANs with recommended settings, seed 0 (as Fig. 3)"]
    return Finding([as_table("GANs, recommended settings", numbers, "generator")], numbers, pictures, [__doc__ or ""])


def _density(mixture: GaussianMixture, points: np.ndarray) -> np.ndarray:
    return mixture.log_prob(torch.from_numpy(points)).exp().numpy()


EXPERIMENT = Experiment("mixture_gans", "Table I, other settings", "Recommended GANs on mixtures", _waves, _finish)

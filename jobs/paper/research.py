"""The open problem: a learned sigma on the grid, and an equilibrium that is right. The record is docs/research.md.

What is run here is the recipe that came of it, on ring and grid, over seeds; the tries that failed are in the record.
"""

from pathlib import Path
from typing import Any

from jobs.paper.experiments import Experiment, Finding, Plan
from jobs.paper.mixtures import SEEDS, as_table, collect, train_mixture
from jobs.paper.units import Unit

RECIPES: dict[str, tuple[str, dict[str, Any], int]] = {}


def _waves(plan: Plan) -> list[list[Unit]]:
    units = []
    for label, (recipe_name, geometry, rows) in RECIPES.items():
        short = {"epochs_scale": 0.01} if plan.quick else {}
        for seed in SEEDS[:1] if plan.quick else SEEDS:
            what = {"recipe_name": recipe_name, "settings": short, "geometry": geometry}
            count = rows // (10 if plan.quick else 1)
            units.append(
                Unit(f"{label}-{seed}", train_mixture, {**what, "rows": count, "seed": seed, "curve_every": None})
            )
    return [units] if units else []


def _finish(figures: dict[str, dict[str, Any]], folder: Path, plan: Plan) -> Finding:
    numbers = collect(figures)
    return Finding(
        [as_table(f"learned sigma: {p}", numbers, p) for p in ("fresh", "equilibrium")], numbers, (), [__doc__ or ""]
    )


EXPERIMENT = Experiment("research", "beyond the paper", "A learned sigma and a right equilibrium", _waves, _finish)

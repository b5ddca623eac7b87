"""The open problem: a learned sigma on the grid, and an equilibrium that is right. The record is docs/research.md.

What is run here is the recipe that came of it, on ring and grid, over seeds; the tries that failed are in the record.
"""

from pathlib import Path
from typing import Any

from jobs.paper.experiments import PROTOCOLS, Experiment, Finding, Plan
from jobs.paper.mixtures import QUICK_ROWS, SEEDS, as_table, collect, train_mixture
from jobs.paper.units import Unit

_NO_ADVERSARY = {"schedules.likelihood.gamma": 1.0, "schedules.adversarial.gamma": 1.0}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "grid": ("mixture_grid_learned_sigma", {}, {"name": "grid"}),
    "grid_gamma_1": ("mixture_grid_learned_sigma", _NO_ADVERSARY, {"name": "grid"}),
    "grid_4x6": ("mixture_grid_learned_sigma", {}, {"name": "grid", "rows": 4, "columns": 6}),
    "grid_moved_x10": ("mixture_grid_learned_sigma", {}, {"name": "grid", "shift": [5.0, -3.0], "scale": 10.0}),
    "ring": ("mixture_ring_learned_sigma", {}, {"name": "ring"}),
    "ring_of_12": ("mixture_ring_learned_sigma", {}, {"name": "ring", "num_modes": 12, "radius": 3.0}),
}
"""Recipe, its settings, and the mixture."""
ROWS = {"grid": 100_000, "ring": 10_000}


def _waves(plan: Plan) -> list[list[Unit]]:
    units = []
    cases = [name for name in CASES if name in ("grid", "ring")] if plan.quick else list(CASES)
    for label in cases:
        recipe_name, settings, geometry = CASES[label]
        short = {**QUICK_ROWS, "epochs_scale": 0.02} if plan.quick else {}
        more = {"compared": 200} if plan.quick else {}
        for seed in SEEDS[:1] if plan.quick else SEEDS:
            what = {"recipe_name": recipe_name, "settings": {**settings, **short}, "geometry": geometry, **more}
            rows = ROWS[geometry["name"]] // (10 if plan.quick else 1)
            units.append(
                Unit(f"{label}-{seed}", train_mixture, {**what, "rows": rows, "seed": seed, "curve_every": None})
            )
    return [units]


def _finish(figures: dict[str, dict[str, Any]], folder: Path, plan: Plan) -> Finding:
    numbers = collect(figures)
    return Finding(
        [as_table(f"learned sigma: {p}", numbers, p) for p in ("fresh", "equilibrium")],
        numbers,
        (),
        [__doc__ or "", PROTOCOLS],
    )


EXPERIMENT = Experiment("research", "beyond the paper", "A learned sigma and a right equilibrium", _waves, _finish)

"""The recommended mixture recipes, unchanged, on other geometries of the same kind: more modes, moved, ten times as large."""

from pathlib import Path
from typing import Any

from jobs.paper.experiments import PROTOCOLS, Experiment, Finding, Plan
from jobs.paper.mixtures import MODELS, QUICK_ROWS, SEEDS, as_table, collect, train_mixture
from jobs.paper.units import Unit

GEOMETRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bimodal moved, x10": ("mixture_bimodal", {"name": "bimodal", "shift": [7.0], "scale": 10.0}),
    "ring of 12": ("mixture_ring", {"name": "ring", "num_modes": 12, "radius": 3.0}),
    "ring moved, x10": ("mixture_ring", {"name": "ring", "shift": [5.0, -3.0], "scale": 10.0}),
    "grid 4x6": ("mixture_grid", {"name": "grid", "rows": 4, "columns": 6}),
    "grid moved, x10": ("mixture_grid", {"name": "grid", "shift": [5.0, -3.0], "scale": 10.0}),
}


def _waves(plan: Plan) -> list[list[Unit]]:
    units = []
    for label, (recipe_name, geometry) in GEOMETRIES.items():
        grid = recipe_name == "mixture_grid"
        rows = (100_000 if grid else 10_000) // (10 if plan.quick else 1)
        short = {**QUICK_ROWS, "epochs_scale": 0.01 if grid else 0.1, "sampler.gibbs_steps": 5} if plan.quick else {}
        compared = {"compared": 200} if plan.quick else {}
        for model in ("driven RBM", "BEAM"):
            for seed in SEEDS[:1] if plan.quick else SEEDS:
                what = {"recipe_name": recipe_name, "settings": {**short, **MODELS[model]}, "geometry": geometry}
                name = f"{label}-{model}-{seed}".replace(" ", "_").replace(",", "")
                units.append(
                    Unit(name, train_mixture, {**what, "rows": rows, "seed": seed, "curve_every": None, **compared})
                )
    return [units]


def _finish(figures: dict[str, dict[str, Any]], folder: Path, plan: Plan) -> Finding:
    numbers = collect(figures)
    tables = [as_table(f"other geometries: {p}", numbers, p) for p in ("fresh", "driven", "equilibrium")]
    return Finding(tables, numbers, (), [__doc__ or "", PROTOCOLS, _RADIUS])


_RADIUS = (
    "The ring of 12 has radius 3, so that its modes are as far apart as the 8 of radius 2. The 4x6 grid has 24 modes, of which "
    "22 are asked for (of the 25 of Table I: 23)."
)
EXPERIMENT = Experiment("geometry", "Table I, elsewhere", "Recommended recipes on other geometries", _waves, _finish)

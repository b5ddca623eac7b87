"""Fig. 2: p is two equally likely Gaussians of unit width some distance apart, q one Gaussian with p's mean and variance.

Forward D(p || q), reverse D(q || p) and the discriminator divergence (Eq. 5, q in the model's place), by quadrature.
"""

from pathlib import Path
from typing import Any

from jobs.paper.experiments import Experiment, Finding, Plan, Table
from jobs.paper.separation import two_gaussians_against_one
from jobs.paper.units import Unit
from pipeline.pictures.paper import separation_curves

SEPARATIONS = [0.25 * i for i in range(41)]


def integrate(folder: Path, cache: Path, separations: list[float]) -> dict[str, Any]:
    """The three divergences at each separation, in nats, and the quadrature's error."""
    found = two_gaussians_against_one(separations)
    return {name: getattr(found, name).tolist() for name in found._fields}


def _finish(figures: dict[str, dict[str, Any]], folder: Path, plan: Plan) -> Finding:
    found = figures["quadrature"]
    bound = [0.6931471805599453 + value for value in found["discriminator"]]
    curves = {
        "forward KL": found["forward"],
        "reverse KL": found["reverse"],
        "discriminator divergence": found["discriminator"],
        "log 2 + discriminator divergence": bound,
    }
    separation_curves(folder / "separation.png", found["separation"], curves)
    slack = min(b - r for b, r in zip(bound, found["reverse"]))
    chosen = [i for i, x in enumerate(found["separation"]) if x in (1, 2, 4, 6, 8, 10)]
    rows = [[f"{found['separation'][i]:g}", *(f"{curve[i]:.4g}" for curve in curves.values())] for i in chosen]
    numbers = {"smallest_slack": slack, "largest_error": max(found["error"]), "holds": slack >= 0}
    notes = [__doc__ or "", f"Bound log 2 + D_D >= reverse KL: smallest slack {slack:.3g} nats over all separations."]
    pictures = ["separation.png: divergences against separation (Fig. 2)"]
    return Finding([Table("Divergences in nats", ("separation", *curves), rows)], numbers, pictures, notes)


EXPERIMENT = Experiment(
    "divergences",
    "Fig. 2, Eq. 3 to 8",
    "Forward, reverse and discriminator divergence",
    lambda plan: [[Unit("quadrature", integrate, {"separations": SEPARATIONS})]],
    _finish,
)

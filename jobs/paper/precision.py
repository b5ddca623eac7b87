"""Sweeps in bfloat16 against float32: the recommended BEAMs of the grid and of continuous MNIST.

On MNIST (784-200) operands are rounded and normal numbers coarse; on the grid (2-20), whose layers are too small for rounded
operands, normal numbers alone. Both precisions train from the same seeds; their runs part with the first draw, so a difference
below the spread over seeds is none. On MNIST also the state at the switch. Rows, test rows and figures are those of the two
experiments. A processor without bfloat16 products emulates them, which takes longer.
"""

from pathlib import Path
from typing import Any

from jobs.paper.digit_units import READINGS, Lengths
from jobs.paper.experiments import PROTOCOLS, Experiment, Finding, Plan, Table
from jobs.paper.mixtures import QUICK_ROWS, ROWS_OF, SEEDS, as_table, collect, train_mixture
from jobs.paper.records import late_mean, spread_text
from jobs.paper.units import Unit

PRECISIONS = ("float32", "bfloat16")
GRID_SEEDS = range(6)
"""More than elsewhere: their divergences vary most, and with rounded operands, as was, three did not tell."""
_MEASURED = ("driven noisy", "persistent noisy", "driven mean")
_METRICS = ("forward", "reverse")


def _waves(plan: Plan) -> list[list[Unit]]:
    if plan.mnist is None and not plan.quick:
        return []
    quick = {**QUICK_ROWS, "epochs_scale": 0.01, "sampler.gibbs_steps": 5} if plan.quick else {}
    rows, compared = ROWS_OF["grid"], {}
    if plan.quick:
        rows, compared = rows // 10, {"compared": 200}
    grids, bases, beams = [], [], []
    at = None if plan.mnist is None else Lengths(plan, plan.mnist)
    for seed in SEEDS[:1] if plan.quick else GRID_SEEDS:
        for precision in PRECISIONS:
            setting = {"sampler.precision": precision}
            what = {"recipe_name": "mixture_grid", "settings": {**quick, **setting}, "geometry": {"name": "grid"}}
            more = {"rows": rows, "seed": seed, "curve_every": None, **compared}
            grids.append(Unit(f"grid-{precision}-{seed}", train_mixture, {**what, **more}))
            if at is not None and seed in SEEDS:
                name = READINGS["recommended"]
                base = at.unit(f"mnist-base-{precision}", name, seed, setting, until=at.switch)
                forked = {"fork": base.name, "parents": (base.fingerprint,)}
                bases.append(base)
                beams.append(at.unit(f"mnist-{precision}", name, seed, setting, **forked))
    return [grids] if at is None else [[at.classifier()], [*bases, *grids], beams]


def _finish(figures: dict[str, dict[str, Any]], folder: Path, plan: Plan) -> Finding:
    grid = collect({name: found for name, found in figures.items() if name.startswith("grid")})
    tables = [as_table(f"grid: {protocol} chains", grid, protocol) for protocol in ("fresh", "driven")]
    numbers: dict[str, Any] = {"grid": grid, "mnist": {}}
    runs: dict[str, list[dict[str, Any]]] = {}
    for name in sorted(name for name in figures if name.startswith("mnist")):
        runs.setdefault(name.rpartition("-")[0].removeprefix("mnist-"), []).append(figures[name])
    for protocol in _MEASURED if runs else ():
        rows = []
        for model, found in runs.items():
            values = {metric: [late_mean(run, protocol, metric) for run in found] for metric in _METRICS}
            numbers["mnist"].setdefault(model, {})[protocol] = values
            rows.append([model, str(len(found)), *(spread_text(values[metric]) for metric in _METRICS)])
        head = ("model", "seeds", "forward, nats/dim", "reverse, nats/dim")
        tables.append(Table(f"continuous MNIST: {protocol}", head, rows))
    return Finding(tables, numbers, (), [__doc__ or "", PROTOCOLS])


EXPERIMENT = Experiment(
    "reduced_precision",
    "sampler.precision",
    "Sweeps in bfloat16 against float32",
    _waves,
    _finish,
    "needs MNIST: make paper MNIST=folder of the four IDX files",
)

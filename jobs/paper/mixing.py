"""Fig. 8 as an experiment: the driven sampler beside plain Gibbs on mixtures that an RBM encodes exactly; see sampling.py."""

import json
from pathlib import Path
from typing import Any

from data_prep.manifest import write_json
from jobs.paper import sampling
from jobs.paper.experiments import Experiment, Finding, Plan, Table
from jobs.paper.units import Unit
from pipeline.pictures.paper import mixing_traces

SEEDS = (0, 1, 2)
_QUANTITIES = ("mean", "variance", "weight_1", "tail_mass")


def mix(folder: Path, cache: Path, seed: int, sweeps: int) -> dict[str, Any]:
    """One seed of `mixing_experiment`; traces and histograms go to a file beside the figures."""
    found = sampling.mixing_experiment(seed, sweeps)
    write_json(folder / "traces.json", found)
    return {
        name: {
            "truth": geometry["truth"],
            "switches": {label: facts["switches_per_1000"] for label, facts in geometry["samplers"].items()},
            "sweeps_per_sample": {
                label: facts["sweeps_per_independent_sample"] for label, facts in geometry["samplers"].items()
            },
            "readings": geometry["readings"],
            "exact_driven_law": geometry["exact_driven_law"],
        }
        for name, geometry in found["geometries"].items()
    }


def _waves(plan: Plan) -> list[list[Unit]]:
    sweeps, seeds = (400, SEEDS[:1]) if plan.quick else (4000, SEEDS)
    return [[Unit(f"seed-{seed}", mix, {"seed": seed, "sweeps": sweeps}) for seed in seeds]]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _finish(figures: dict[str, dict[str, Any]], folder: Path, plan: Plan) -> Finding:

    runs = [figures[name] for name in sorted(figures)]
    traces = json.loads((folder / "seed-0" / "traces.json").read_text())["geometries"]
    numbers, tables, pictures = {}, [], []
    for name in runs[0]:
        found = [run[name] for run in runs]

        def reading(label: str, quantity: str, found: list[dict[str, Any]] = found) -> float:
            return _mean([run["readings"][label][quantity]["value"] for run in found])

        truth = found[0]["truth"]
        numbers[name] = {
            **{
                f"{s}_switches": _mean([run["switches"][s]["hidden"]["value"] for run in found])
                for s in ("gibbs", "driven")
            },
            **{
                f"{s}_sweeps_per_sample": _mean([run["sweeps_per_sample"][s] for run in found])
                for s in ("gibbs", "driven")
            },
            "true_variance": truth["variance"],
            "driven_variance": reading("driven", "variance"),
            "cooled_variance": reading("v at beta 1", "variance"),
            "true_tail": truth["tail_mass"],
            "driven_tail": reading("driven", "tail_mass"),
        }
        rows = [["exact", *(f"{truth[q]:.4g}" for q in _QUANTITIES), ""]]
        for label, meaning in sampling.READINGS.items():
            share = _mean([run["readings"][label]["effective_share"] for run in found])
            cells = [
                f"{reading(label, q):.4g} +- {_mean([run['readings'][label][q]['error'] for run in found]):.2g}"
                for q in _QUANTITIES
            ]
            rows.append([meaning, *cells, f"{share:.2g}"])
        law = found[0]["exact_driven_law"]
        rows.append(["exact law of the driven sampler", *(f"{law[q]:.4g}" for q in _QUANTITIES), ""])
        tables.append(Table(f"{name}: averages read in each way", ("reading", *_QUANTITIES, "effective share"), rows))
        file = f"mixing-{name.replace(' ', '-').replace(',', '')}.png"
        mixing_traces(folder / file, traces[name], title=name)
        pictures.append(f"{file}: one chain and the histogram of all, Gibbs and driven, modes {name}")
    rows = [
        [
            name,
            *(f"{values[f'{s}_{key}']:.3g}" for key in ("switches", "sweeps_per_sample") for s in ("gibbs", "driven")),
        ]
        for name, values in numbers.items()
    ]
    head = ("modes", "switches, Gibbs", "switches, driven", "sweeps per sample, Gibbs", "sweeps per sample, driven")
    first = Table("Mode switches (of h) per 1 000 sweeps, and sweeps per independent sample", head, rows)
    return Finding([first, *tables], numbers, pictures, [sampling.__doc__ or ""])


EXPERIMENT = Experiment("sampling", "Fig. 8", "Gibbs against the driven sampler on three modes", _waves, _finish)

"""What comes of the models trained on digits: tables, curves and grids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.paper import digits
from jobs.paper.digit_units import Lengths, sign_lengths
from jobs.paper.experiments import PROTOCOLS, Finding, Finish, Plan, Table
from jobs.paper.records import late_mean
from jobs.paper.training import mean_and_spread
from pipeline.data.shards import read_manifest
from pipeline.pictures.paper import digit_grids, divergence_curves

_COLUMNS = {
    "forward": "forward, nats/dim",
    "reverse": "reverse, nats/dim",
    "precision": "precision",
    "recall": "recall",
    "classes": "classes",
    "confidence": "confidence",
    "floored": "floored",
}
LATE = 3
"""Tables show means over so many of the last measurements of a run."""


def _by_model(figures: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    models: dict[str, list[dict[str, Any]]] = {}
    for name in sorted(figures):
        if "measured" in figures[name]:
            models.setdefault(name.rsplit("-", 1)[0], []).append(figures[name])
    return models


def _end_table(title: str, models: dict[str, list[dict[str, Any]]]) -> list[Table]:
    """For each protocol the mean of every model's last measurements, and its spread over seeds."""
    protocols = [
        key for key in ("fresh noisy", "driven noisy", "persistent noisy", "fresh mean", "driven mean", "persistent mean",
                        "generator mean")
        if any(key in runs[0]["measured"][-1] for runs in models.values())
    ]  # fmt: skip
    tables = []
    for protocol in protocols:
        rows = []
        for model, runs in models.items():
            shown = [run for run in runs if protocol in run["measured"][-1]]
            if shown:
                there = shown[0]["measured"][-1][protocol]
                cells = [
                    _spread([late_mean(run, protocol, c, LATE) for run in shown]) if c in there else "-"
                    for c in _COLUMNS
                ]
                rows.append([model, str(len(shown)), *cells])
        tables.append(Table(f"{title}: {protocol}", ("model", "seeds", *_COLUMNS.values()), rows))
    return tables


def _reference_table(title: str, found: dict[str, dict[str, float]]) -> Table:
    rows = [[name, *(f"{row[c]:.3g}" for c in _COLUMNS)] for name, row in found.items()]
    return Table(f"{title}: what these scores are worth", ("rows", *_COLUMNS.values()), rows)


def _spread(values: Sequence[float]) -> str:
    mean, spread = mean_and_spread(values)
    return f"{mean:.3g}" + (f" +- {spread:.2g}" if len(values) > 1 else "")


def _curves(figures: dict[str, dict[str, Any]], epoch: float, protocol: str, models: Sequence[str]) -> dict[str, Any]:
    """Model -> curves over seeds of (epoch, forward, reverse); a second phase is joined to its base."""
    curves: dict[str, list[list[tuple[float, float, float]]]] = {}
    for model in models:
        for name in sorted(figures):
            kind, _, seed = name.rpartition("-")
            if kind != model or "measured" not in figures[name]:
                continue
            base = figures.get(f"{model.split('-')[0]}-base-{seed}", {}) if kind.split("-")[-1] != "plain" else {}
            rows = [*base.get("measured", []), *figures[name]["measured"]]
            seen = {row["step"]: row[protocol] for row in rows if protocol in row}
            curve = [(step / epoch, seen[step]["forward"], seen[step]["reverse"]) for step in sorted(seen)]
            curves.setdefault(model, []).append(curve)
    return curves


def _grids(folder: Path, names: Sequence[str], protocol: str, side: int) -> dict[str, np.ndarray]:
    """Samples of each model by the protocol, with those of GANs, which have none; empty where no model has it."""
    shown = {}
    for name in names:
        files = sorted((folder / name).glob("shown_*.npz"))
        if files:
            shown[name.rsplit("-", 1)[0]] = np.load(files[-1])
    if not any(protocol in found for found in shown.values()):
        return {}
    keys = {model: protocol if protocol in found else "generator mean" for model, found in shown.items()}
    return {model: found[keys[model]].reshape(-1, side, side) for model, found in shown.items()}


def _later_table(title: str, found: dict[str, dict[str, Any]]) -> Table:
    keys = list(next(iter(found.values())))
    rows = [
        [name, *(f"{v:.4g}" if isinstance(v := row[k], float) else str(v) for k in keys)] for name, row in found.items()
    ]
    return Table(title, ("model", *keys), rows)


def finish_for(title: str, names: Sequence[str], curve_models: Sequence[str], slug: str) -> Finish:
    """How an experiment ends: tables of all models, grids of `names`, curves of `curve_models`; files begin with `slug`."""

    def finish(figures: dict[str, dict[str, Any]], folder: Path, plan: Plan) -> Finding:
        data = plan.binary if slug == "binary" else plan.mnist
        assert data is not None
        at = Lengths(plan, data)
        side = round(at.width**0.5)
        pictures = []
        for protocol in ("fresh", "driven", "persistent"):
            curves = _curves(figures, at.epoch, f"{protocol} noisy", curve_models)
            if curves and all(len(c) > 1 for runs in curves.values() for c in runs):
                file = f"{slug}-curves-{protocol}.png"
                divergence_curves(folder / file, curves, at.switch / at.epoch)
                pictures.append(
                    f"{file}: divergences during training, {protocol} chains, v with noise; mean and range over seeds"
                )
        for protocol in ("fresh mean", "driven mean", "persistent mean", "generator mean"):
            if protocol == "generator mean" and pictures:
                continue  # they stand in the grids of the chains
            if grids := _grids(folder, [f"{n}-0" for n in names], protocol, side):
                kind = protocol.split()[0]
                file = f"{slug}-grids-{kind}.png"
                digit_grids(folder / file, grids)
                how = "" if kind == "generator" else f", {kind} chains, E[v | h]"
                pictures.append(f"{file}: 16 samples of each model{how}, seed 0")
        dataset = read_manifest(data).dataset
        notes = [
            digits.__doc__ or "",
            PROTOCOLS,
            f"Data: {dataset}. An epoch here is {at.epoch} updates; the switch is after {at.switch}. Tables: means over the "
            f"last {LATE} measurements of a run, {at.every} updates apart.",
        ]
        if "classifier" in figures:
            c = figures["classifier"]
            truth = f"on test rows {c['classes']:.2f} classes, confidence {c['confidence']:.3f}"
            notes.append(f"Classifier: accuracy {c['accuracy']:.4f}; {truth}.")
        models = _by_model(figures)
        rates = {
            model: [r["updates_per_second"] for r in runs if r["updates_per_second"]] for model, runs in models.items()
        }
        seconds = [[model, _spread(found)] for model, found in rates.items()]
        tables = _end_table(title, models)
        if "references" in figures:
            tables.append(_reference_table(title, figures["references"]))
        later = {
            "pictures": "oriented gradients of pictures, driven chains",
            "likelihoods": "log-likelihood of test rows",
        }
        tables += [
            _later_table(f"{title}: {what}", found)
            for name, found in figures.items()
            for begin, what in later.items()
            if name.startswith(begin)
        ]
        tables.append(Table(f"{title}: speed", ("model", "updates/s, one thread"), seconds))
        return Finding(tables, {"dataset": dataset, "epoch": at.epoch, "switch": at.switch}, pictures, notes)

    return finish


def finish_sign(figures: dict[str, dict[str, Any]], folder: Path, plan: Plan) -> Finding:
    """Tables and curves of the sign's experiment, for continuous and binary digits."""
    assert plan.small is not None
    tables, pictures = [], []
    for kind, data in zip(("continuous", "binary"), plan.small):
        at = sign_lengths(plan, data)
        own = {name: found for name, found in figures.items() if name.startswith(kind)}
        tables += _end_table(f"8x8 digits, {kind}", _by_model(own))
        curves = _curves(own, at.epoch, "driven noisy", [f"{kind}-{phase}" for phase in ("beam", "control", "flipped")])
        file = f"sign-{kind}.png"
        divergence_curves(folder / file, curves, at.switch / at.epoch)
        pictures.append(
            f"{file}: divergences with the right sign, without the adversary, with the wrong sign; driven chains, v"
        )
    return Finding(
        tables,
        {},
        pictures,
        [
            digits.__doc__ or "",
            PROTOCOLS,
            "Real 8x8 digits, not MNIST: 250 rows against 250, and a short run; the rows and updates above are MNIST's.",
        ],
    )

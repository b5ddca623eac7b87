"""Fig. 3, 4 and Table I: five models on three mixtures, and the recommended recipes on other geometries of the same kind.

A row of a table is one model on one mixture over several seeds (of the data and of the training). Compared are 2 000 rows of
the model, v with its noise, and 2 000 test rows, in the units of the data; kNN KL with k = 1 in nats, not per dimension.

Protocols beside `fresh` and `driven`: `hot` is 100 sweeps of the driven sampler at standard deviation .9 from a wide start,
the law that a literal driven RBM or BEAM was trained under; `equilibrium` is independent rows by enumeration. Panels show
literal driven RBMs and BEAMs by `hot` chains, the others by `fresh` ones. On the grid the literal recipes make 10 sweeps an
update, a tenth of Table I's: 100 would take half an hour a run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep.mixtures import draw_mixture
from jobs.chain import read_beam
from jobs.paper.experiments import PROTOCOLS, Experiment, Finding, Plan, Table
from jobs.paper.records import protocol_of
from jobs.paper.training import read_curve, read_generator, train_in
from jobs.paper.units import Unit
from jobs.recipes import recipe
from pipeline.comm import Comm
from pipeline.config import GANConfig, RBMConfig, RunConfig
from pipeline.data.mixtures import GaussianMixture, make_mixture, moved
from pipeline.data.rows import read_scaling
from pipeline.data.shards import load_split
from pipeline.metrics.coverage import exact_kl, mode_coverage
from pipeline.metrics.divergences import knn_kl
from pipeline.models.gan import generate
from pipeline.pictures.paper import divergence_curves, sample_panels
from pipeline.samplers.driven import DrivenGibbs, GammaProcess
from pipeline.samplers.protocols import DRIVEN, FRESH, Protocol, WideStart, draw_samples
from pipeline.streams import stream
from pipeline.training.checkpoint import Checkpoint

ROWS = 2000
HOT = Protocol("hot", (DrivenGibbs(GammaProcess(0.9, 0.9), 100),))
MODELS: dict[str, dict[str, Any]] = {
    "RBM": {"sampler.beta_std": 0.0, "schedules.likelihood.gamma": 1.0, "schedules.adversarial.gamma": 1.0},
    "driven RBM": {"schedules.likelihood.gamma": 1.0, "schedules.adversarial.gamma": 1.0},
    "BEAM": {},
}
"""What each RBM changes in the BEAM's recipe: they share its architecture, initial weights and updates."""
SEEDS = (0, 1, 2)


def train_mixture(
    folder: Path,
    cache: Path,
    recipe_name: str,
    settings: dict[str, Any],
    geometry: dict[str, Any],
    rows: int,
    seed: int,
    curve_every: int | None,
    compared: int = ROWS,
) -> dict[str, Any]:
    """Train one model on rows of one mixture; all its figures, from `compared` rows."""
    mixture = build_geometry(geometry)
    data = folder / "data"
    draw_mixture(mixture, data, rows, seed)
    length = {} if curve_every is None else {"evaluation.every_updates": curve_every}
    config = recipe(recipe_name).override({**settings, **length, "seed": seed})
    found = train_in(folder / "run", config, data)
    figures: dict[str, Any] = {"updates": found.step, "curve": read_curve(folder / "run")}
    test = load_split(data, "test")[:compared]
    drawn = draw_rows(found, config, data, mixture, compared, figures)
    for protocol, samples in drawn.items():
        figures[protocol] = score_points(test, samples, mixture)
    np.savez_compressed(folder / "samples.npz", **{name: x.numpy() for name, x in drawn.items()})  # type: ignore[arg-type]
    return figures


def build_geometry(geometry: dict[str, Any]) -> GaussianMixture:
    """{"name": "ring", "num_modes": 12, "shift": 5.0, "scale": 10.0}: a named mixture, its settings, where it lies."""
    values = dict(geometry)
    shift, scale = values.pop("shift", 0.0), values.pop("scale", 1.0)
    return moved(make_mixture(values.pop("name"), values), shift, scale)


def draw_rows(
    found: Checkpoint, config: RunConfig, data: Path, mixture: GaussianMixture, count: int, figures: dict[str, Any]
) -> dict[str, Tensor]:
    """Rows [count, d] of the trained model by each protocol; adds sigma and exact divergences of an RBM to `figures`."""
    scaling = read_scaling(data, config.data.scaling)
    if isinstance(config.model, GANConfig):
        generated = generate(read_generator(found, config.model), count, 1, Comm())
        return {"generator": scaling.invert(generated)}
    assert isinstance(config.model, RBMConfig)
    rbm, chains = read_beam(found, config.model)
    start = WideStart.of(scaling.apply(load_split(data, "train")))
    drawn = {p.name: scaling.invert(draw_samples(rbm, start, p, count, 1).visible) for p in (FRESH, DRIVEN, HOT)}
    variance = rbm.visible.variance()
    assert variance is not None
    figures["sigma"] = (variance.sqrt() * scaling.std).tolist()
    exact = exact_kl(rbm, mixture, count, stream(1, "exact rows"), (scaling.mean, scaling.std))
    figures["equilibrium"] = {
        "modes": exact.equilibrium.num_covered,
        "precision": exact.equilibrium.precision,
        "total_variation": exact.equilibrium.total_variation,
        "forward": exact.forward.nats,
        "forward_error": exact.forward.standard_error,
        "reverse": exact.reverse.nats,
        "reverse_error": exact.reverse.standard_error,
    }
    if len(chains.visible) >= count // 2:
        drawn["persistent"] = scaling.invert(chains.visible)
    return drawn


def score_points(test: Tensor, samples: Tensor, mixture: GaussianMixture) -> dict[str, float]:
    """Modes, precision and total variation, and kNN divergences against equally many test rows."""
    covered = mode_coverage(samples, mixture)
    n = min(len(test), len(samples))
    return {
        "modes": covered.num_covered,
        "precision": covered.precision,
        "total_variation": covered.total_variation,
        "forward": knn_kl(test[:n], samples[:n], 1).nats,
        "reverse": knn_kl(samples[:n], test[:n], 1).nats,
        "rows": n,
    }


def score_reference(folder: Path, cache: Path, geometry: dict[str, Any], seed: int) -> dict[str, Any]:
    """The same figures of rows of the mixture itself, and of one Gaussian with its moments: what a score is worth."""
    mixture = build_geometry(geometry)
    generator = stream(seed, "reference rows")
    test, truth = mixture.sample(ROWS, generator), mixture.sample(ROWS, generator)
    moments = mixture.sample(10_000, generator).double()
    factor = torch.linalg.cholesky(torch.atleast_2d(moments.T.cov()))
    noise = torch.randn(ROWS, moments.shape[1], generator=generator, dtype=torch.float64)
    gaussian = (moments.mean(0) + noise @ factor.T).float()
    np.savez_compressed(folder / "samples.npz", truth=truth.numpy())
    return {"truth": score_points(test, truth, mixture), "gaussian": score_points(test, gaussian, mixture)}


# --- the experiments ----------------------------------------------------------------------------------------------------

ROWS_OF = {"bimodal": 10_000, "ring": 10_000, "grid": 100_000}
_QUICK = {"bimodal": 0.5, "ring": 0.2, "grid": 0.02}
"""Share of a recipe's updates in the quick form, which has a tenth of the rows."""
QUICK_ROWS = {"evaluation.num_rows": 100, "evaluation.minibatch_rows": 100}


def _units(mixture: str, plan: Plan) -> list[Unit]:
    units = []
    seeds = SEEDS[:1] if plan.quick else SEEDS
    geometry = {"name": mixture}
    rows = ROWS_OF[mixture] // (10 if plan.quick else 1)
    short: dict[str, Any] = {}
    if plan.quick:
        short = {**QUICK_ROWS, "epochs_scale": _QUICK[mixture], "sampler.gibbs_steps": 5}
    elif mixture == "grid":
        short = {"sampler.gibbs_steps": 10}
    for seed in seeds:
        for kind, name in (("literal", f"mixture_{mixture}_paper"), ("recommended", f"mixture_{mixture}")):
            for model, changes in MODELS.items():
                settings = {"recipe_name": name, "settings": {**short, **changes}}
                units.append(_unit(f"{kind}-{model}", settings, geometry, rows, seed, _curve_every(mixture, plan)))
        for model in ("gan", "wgan"):
            scale = {**QUICK_ROWS, "epochs_scale": _QUICK[mixture] / 10} if plan.quick else {}
            settings = {"recipe_name": f"mixture_{mixture}_{model}", "settings": scale}
            units.append(_unit(f"literal-{model.upper()}", settings, geometry, rows, seed, None))
        units.append(Unit(f"reference-{seed}", score_reference, {"geometry": geometry, "seed": seed}))
    if mixture == "ring" and not plan.quick:  # one initialization in three ended badly elsewhere: look at more
        settings = {"recipe_name": "mixture_ring", "settings": {}}
        units += [_unit("recommended-BEAM", settings, geometry, rows, seed, None) for seed in (3, 4)]
    return units


def _curve_every(mixture: str, plan: Plan) -> int | None:
    return None if plan.quick or mixture != "grid" else 1000


def _unit(
    name: str, settings: dict[str, Any], geometry: dict[str, Any], rows: int, seed: int, curve_every: int | None
) -> Unit:
    what = {**settings, "geometry": geometry, "rows": rows, "seed": seed, "curve_every": curve_every}
    if "evaluation.num_rows" in settings["settings"]:
        what["compared"] = 200
    return Unit(f"{name.replace(' ', '_')}-{seed}", train_mixture, what)


def _finish(mixture: str, figures: dict[str, dict[str, Any]], folder: Path, plan: Plan) -> Finding:
    numbers = collect(figures)
    tables = [as_table(f"{mixture}: {protocol} chains", numbers, protocol) for protocol in ("fresh", "driven", "hot")]
    worth = as_table(f"{mixture}: GANs, and what a score is worth", numbers, "generator")
    for protocol, name in (("truth", "the mixture itself"), ("gaussian", "one Gaussian with its moments")):
        worth.rows.extend([name, *row[1:]] for row in as_table("", numbers, protocol).rows)
    tables.append(worth)
    tables.append(as_table(f"{mixture}: equilibrium, exact divergences", numbers, "equilibrium"))
    exact = make_mixture(mixture)

    def density(points: np.ndarray) -> np.ndarray:
        return exact.log_prob(torch.from_numpy(points)).exp().numpy()

    pictures = []
    for kind in ("literal", "recommended"):
        models = (*(("GAN", "WGAN") if kind == "literal" else ()), *MODELS)
        units = {model: f"{kind}-{model.replace(' ', '_')}" for model in models}
        shown = {"data": np.load(folder / "reference-0" / "samples.npz")["truth"]}
        for model, unit in units.items():
            shown[model] = np.load(folder / f"{unit}-0" / "samples.npz")[protocol_of(kind, model)]
        file = f"panels-{kind}.png"
        sample_panels(folder / file, {f"{mixture}, {kind}": shown}, {f"{mixture}, {kind}": density})
        pictures.append(f"{file}: samples of each model on {mixture}, seed 0, {kind} (as Fig. 3)")
        curves = {m: [f["curve"] for name, f in figures.items() if name.startswith(f"{units[m]}-")] for m in models}
        curves = {model: found for model, found in curves.items() if all(len(curve) > 2 for curve in found)}
        if curves:
            file = f"curves-{kind}.png"
            divergence_curves(folder / file, curves, None)
            pictures.append(
                f"{file}: divergences per dimension and epoch, {kind}, driven chains, mean and range over seeds (as Fig. 4)"
            )
    return Finding([t for t in tables if t.rows], numbers, pictures, [__doc__ or "", PROTOCOLS])


def collect(figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """{"recommended-BEAM": {"fresh": {"modes": [8, 8, 7], ...}, "sigma": [...], ...}}: lists over seeds."""
    out: dict[str, Any] = {}
    for name in sorted(figures):
        model = name.rsplit("-", 1)[0]
        for key, value in figures[name].items():
            if isinstance(value, dict):
                for metric, number in value.items():
                    out.setdefault(model, {}).setdefault(key, {}).setdefault(metric, []).append(number)
            elif key != "curve":
                out.setdefault(model, {}).setdefault(key, []).append(value)
    return out


_COLUMNS = ("modes", "precision", "total_variation", "forward", "reverse")


def as_table(title: str, numbers: dict[str, Any], protocol: str) -> Table:
    """One row per model: each metric's median, and all values where they differ."""
    rows = []
    for model, found in numbers.items():
        if protocol in found:
            sigma = found.get("sigma")
            cells = [_cell(found[protocol][column]) for column in _COLUMNS]
            widths = _cell([sum(s) / len(s) for s in sigma]) if sigma else "-"
            rows.append([model, *cells, widths])
    return Table(title, ("model", "modes", "precision", "TV", "forward, nats", "reverse, nats", "sigma"), rows)


def _cell(values: Sequence[float]) -> str:
    if len(set(values)) == 1:
        return f"{values[0]:.3g}"
    return f"{float(np.median(values)):.3g} ({' '.join(f'{v:.3g}' for v in values)})"


def _experiment(mixture: str, figure: str) -> Experiment:
    def waves(plan: Plan) -> list[list[Unit]]:
        return [_units(mixture, plan)]

    def finish(figures: dict[str, dict[str, Any]], folder: Path, plan: Plan) -> Finding:
        return _finish(mixture, figures, folder, plan)

    return Experiment(f"mixture_{mixture}", figure, f"Five models on the {mixture} mixture", waves, finish)


EXPERIMENTS = (
    _experiment("bimodal", "Fig. 3, Table I"),
    _experiment("ring", "Fig. 3, Table I"),
    _experiment("grid", "Fig. 3, 4, Table I"),
)

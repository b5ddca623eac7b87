"""Which models are trained on digits for which figure, and the tables, curves and grids that come of them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.paper import digits
from jobs.paper.experiments import Experiment, Finding, Plan, Table
from jobs.paper.training import mean_and_spread
from jobs.paper.units import Unit
from pipeline.data.shards import read_manifest
from pipeline.paper_pictures import digit_grids, divergence_curves

SEEDS = (0, 1, 2)
READINGS = {"literal": "mnist_beam_paper", "recommended": "mnist_beam"}
BINARY = {"literal": "mnist_binary_beam_paper", "recommended": "mnist_binary_beam"}
PLAIN = {"sampler.beta_std": 0.0, "schedules.adversarial.gamma": 1.0, "schedules.likelihood.epochs": 55,
         "schedules.adversarial.epochs": 0}  # fmt: skip
_CONTROL = {"schedules.adversarial.gamma": 1.0}
_KEEP = {"schedules.likelihood.epochs": 55, "schedules.adversarial.epochs": 0}
SECOND_PHASES: dict[str, dict[str, Any]] = {
    "beam": {},
    "control": _CONTROL,
    "keep": _KEEP,
    "flipped": {"critic.sign": -1},
}
CRITICS: dict[str, dict[str, Any]] = {
    "hidden neighbors": {},
    "visible neighbors": {"critic.feature": "visible"},
    "hidden forest": {"critic": {"kind": "ForestCriticConfig"}},
    "hidden network": {"critic": {"kind": "NetworkCriticConfig"}},
}


class Lengths:
    """Updates of the digits experiments: an epoch, the likelihood phase, what is measured when."""

    def __init__(self, plan: Plan, data: Path, scale: float | None = None):
        rows = read_manifest(data).splits["train"].rows
        self.quick = plan.quick
        self.scale = scale or (0.04 if plan.quick else digits.EPOCHS_SCALE)
        per_epoch = -(-rows // 100)
        self.epoch = max(1, round(per_epoch * self.scale))
        self.every = 5 * self.epoch
        self.switch = max(1, round(25 * per_epoch * self.scale))
        self.data = data
        self.seeds = SEEDS[:1] if plan.quick else SEEDS
        self.width = int(read_manifest(data).row_shape[0])

    def settings(self, seed: int, **more: Any) -> dict[str, Any]:
        """What all runs share: lengths, seed, the width of the rows, and held-out monitors at the ends alone."""
        shared = {"epochs_scale": self.scale, "seed": seed, "evaluation.every_updates": 10**6}
        if self.width != 784:  # 8x8 digits stand in
            shared |= {"model.num_visible": self.width, "evaluation.num_rows": 100, "evaluation.minibatch_rows": 100}
        return {**shared, **more}

    def unit(self, name: str, recipe_name: str, seed: int, changes: dict[str, Any], **more: Any) -> Unit:
        """A training of one model."""
        settings = self.settings(seed, **changes)
        what = {"recipe_name": recipe_name, "settings": settings, "data": str(self.data), "measure_every": self.every}
        if self.quick:
            what["compared"] = 100
        return Unit(f"{name}-{seed}".replace(" ", "_"), digits.train_digits, {**what, **more})

    def classifier(self) -> Unit:
        """The classifier that every measurement uses."""
        return Unit("classifier", digits.fit_classifier, {"data": str(self.data)})

    def bases(self, readings: dict[str, str], seeds: Iterable[int]) -> list[Unit]:
        """The likelihood phases from which the second phases start."""
        return [
            self.unit(f"{reading}-base", name, seed, {}, until=self.switch)
            for reading, name in readings.items()
            for seed in seeds
        ]

    def second(
        self, reading: str, name: str, phase: str, changes: dict[str, Any], seed: int, until: int | None = None
    ) -> Unit:
        """A second phase from the reading's likelihood checkpoint of this seed."""
        base = f"{reading}-base-{seed}"
        return self.unit(f"{reading}-{phase}", name, seed, changes, fork=base, until=until)


def _continuous(plan: Plan) -> list[list[Unit]]:
    if plan.mnist is None:
        return []
    at = Lengths(plan, plan.mnist)
    first = [*at.bases(READINGS, at.seeds)]
    second = [
        at.second(reading, name, phase, SECOND_PHASES[phase], seed)
        for reading, name in READINGS.items()
        for phase in ("beam", "control", "keep")
        for seed in at.seeds
        if reading == "literal" or phase != "keep"
    ]
    five = at.switch + 5 * at.epoch
    flipped = [
        at.second(reading, name, "flipped", SECOND_PHASES["flipped"], seed, until=five)
        for reading, name in READINGS.items()
        for seed in at.seeds[:2]
    ]
    plain = [at.unit("literal-plain", READINGS["literal"], seed, PLAIN) for seed in at.seeds]
    gans = [at.unit(kind.upper(), f"mnist_{kind}", seed, {}) for kind in ("gan", "wgan") for seed in at.seeds]
    return [[at.classifier()], first, [*second, *flipped, *plain, *gans]]


def _critics(plan: Plan) -> list[list[Unit]]:
    if plan.mnist is None:
        return []
    at = Lengths(plan, plan.mnist)
    seeds = at.seeds[:2]
    fifteen = at.switch + 15 * at.epoch
    second = [
        at.second("literal", READINGS["literal"], critic, changes, seed, until=fifteen)
        for critic, changes in CRITICS.items()
        for seed in seeds
    ]
    return [[at.classifier()], at.bases({"literal": READINGS["literal"]}, seeds), second]


def _binary(plan: Plan) -> list[list[Unit]]:
    if plan.binary is None:
        return []
    at = Lengths(plan, plan.binary)
    first = at.bases(BINARY, at.seeds)
    second = [
        at.second(reading, name, phase, SECOND_PHASES[phase], seed)
        for reading, name in BINARY.items()
        for phase in ("beam", "control")
        for seed in (at.seeds if reading == "literal" else at.seeds[:1])
    ]
    plain = [at.unit("literal-plain", BINARY["literal"], seed, PLAIN) for seed in at.seeds]
    return [[at.classifier()], first, [*second, *plain]]


def _dcgan(plan: Plan) -> list[list[Unit]]:
    if plan.mnist is None:
        return []
    at = Lengths(plan, plan.mnist)
    kinds = {"GAN": "mnist_gan", "DCGAN": "mnist_dcgan"} if at.width == 784 else {"GAN": "mnist_gan"}
    units = [at.unit(name, recipe, seed, {}) for name, recipe in kinds.items() for seed in at.seeds[:1]]
    return [[at.classifier()], units]


def _sign(plan: Plan) -> list[list[Unit]]:
    if plan.small is None:
        return []
    waves: list[list[Unit]] = [[], [], []]
    for kind, data in zip(("continuous", "binary"), plan.small):
        at = Lengths(Plan(plan.quick), data, scale=0.1 if plan.quick else 1.0)
        units = {} if kind == "continuous" else {"model.visible_units": "bernoulli"}
        name, after = f"classifier-{kind}", at.data
        waves[0].append(Unit(name, digits.fit_classifier, {"data": str(after)}))
        for seed in at.seeds:
            more: dict[str, Any] = {"classifier": name, "compared": 250}
            switch = 60 * at.epoch
            waves[1].append(at.unit(f"{kind}-base", "digits_beam", seed, units, until=switch, **more))
            for phase in ("beam", "control", "flipped"):
                changes = {**units, **SECOND_PHASES[phase]}
                fork = f"{kind}-base-{seed}"
                waves[2].append(at.unit(f"{kind}-{phase}", "digits_beam", seed, changes, fork=fork, **more))
    return waves


# --- what came out ------------------------------------------------------------------------------------------------------

_COLUMNS = ("forward", "reverse", "precision", "recall", "classes", "confidence")


def _by_model(figures: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    models: dict[str, list[dict[str, Any]]] = {}
    for name in sorted(figures):
        if "measured" in figures[name]:
            models.setdefault(name.rsplit("-", 1)[0], []).append(figures[name])
    return models


def _end_table(title: str, models: dict[str, list[dict[str, Any]]]) -> list[Table]:
    """For each protocol the last measurement of every model, mean and spread over seeds."""
    protocols = [
        key for key in ("fresh noisy", "driven noisy", "persistent noisy", "fresh mean", "driven mean", "persistent mean",
                        "generator mean")
        if any(key in runs[0]["measured"][-1] for runs in models.values())
    ]  # fmt: skip
    tables = []
    for protocol in protocols:
        rows = []
        for model, runs in models.items():
            last = [run["measured"][-1][protocol] for run in runs if protocol in run["measured"][-1]]
            if last:
                cells = [_spread([row[c] for row in last]) if c in last[0] else "-" for c in _COLUMNS]
                rows.append([model, str(len(last)), *cells])
        tables.append(Table(f"{title}: {protocol}", ("model", "seeds", *_COLUMNS), rows))
    return tables


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
    grids = {}
    for name in names:
        files = sorted((folder / name).glob("shown_*.npz"))
        if files:
            shown = np.load(files[-1])
            key = protocol if protocol in shown else "generator mean"
            grids[name.rsplit("-", 1)[0]] = shown[key].reshape(-1, side, side)
    return grids


def _finish_for(title: str, names: Sequence[str], curve_models: Sequence[str], slug: str) -> Any:
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
            grids = _grids(folder, [f"{n}-0" for n in names], f"{protocol} mean", side)
            if grids:
                file = f"{slug}-grids-{protocol}.png"
                digit_grids(folder / file, grids)
                pictures.append(f"{file}: 16 samples of each model, {protocol} chains, E[v | h], seed 0")
        dataset = read_manifest(data).dataset
        notes = [
            digits.__doc__ or "",
            f"Data: {dataset}. An epoch here is {at.epoch} updates; the switch is after {at.switch}.",
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
        tables = [*_end_table(title, models), Table(f"{title}: speed", ("model", "updates/s, one thread"), seconds)]
        return Finding(tables, {"dataset": dataset, "epoch": at.epoch, "switch": at.switch}, pictures, notes)

    return finish


def _finish_sign(figures: dict[str, dict[str, Any]], folder: Path, plan: Plan) -> Finding:
    assert plan.small is not None
    tables, pictures = [], []
    for kind, data in zip(("continuous", "binary"), plan.small):
        at = Lengths(Plan(plan.quick), data, scale=0.1 if plan.quick else 1.0)
        own = {name: found for name, found in figures.items() if name.startswith(kind)}
        tables += _end_table(f"8x8 digits, {kind}", _by_model(own))
        curves = _curves(own, at.epoch, "driven noisy", [f"{kind}-{phase}" for phase in ("beam", "control", "flipped")])
        file = f"sign-{kind}.png"
        divergence_curves(folder / file, curves, 60)
        pictures.append(
            f"{file}: divergences with the right sign, without the adversary, with the wrong sign; driven chains, v"
        )
    return Finding(tables, {}, pictures, [digits.__doc__ or "", "Real 8x8 digits, not MNIST; 250 rows against 250."])


EXPERIMENTS = (
    Experiment("digits_sign", "Eq. 18", "The critic's sign on 8x8 digits", _sign, _finish_sign, "", "digits8"),
    Experiment(
        "digits_continuous",
        "Fig. 5, 6, Table II",
        "Continuous MNIST: GAN, WGAN, RBM, driven RBM, BEAM",
        _continuous,
        _finish_for(
            "continuous MNIST",
            ("GAN", "WGAN", "literal-plain", "literal-keep", "literal-control", "literal-beam", "recommended-base",
             "recommended-control", "recommended-beam", "recommended-flipped"),
            ("literal-plain", "literal-keep", "literal-control", "literal-beam", "recommended-control", "recommended-beam"),
            "continuous",
        ),
        "prepare MNIST: make paper MNIST=folder of the four IDX files",
        "digits",
    ),
    Experiment(
        "digits_critics",
        "Fig. 9, 10, 11",
        "Critics from the same likelihood checkpoint: hidden and visible neighbors, forest, network",
        _critics,
        _finish_for(
            "critics", tuple(f"literal-{c.replace(' ', '_')}" for c in CRITICS),
            tuple(f"literal-{c.replace(' ', '_')}" for c in CRITICS), "critics",
        ),
        "prepare MNIST: make paper MNIST=folder of the four IDX files",
        "digits",
    ),
    Experiment(
        "digits_binary",
        "Fig. 6, second row",
        "Binary MNIST: RBM, driven RBM, BEAM",
        _binary,
        _finish_for(
            "binary MNIST", ("literal-plain", "literal-control", "literal-beam", "recommended-control", "recommended-beam"),
            ("literal-plain", "literal-control", "literal-beam"), "binary",
        ),
        "prepare MNIST: make paper MNIST=folder of the four IDX files",
        "digits_binary",
    ),
    Experiment(
        "digits_dcgan",
        "Fig. 12",
        "Continuous MNIST: dense GAN against a convolutional one",
        _dcgan,
        _finish_for("GANs", ("GAN", "DCGAN"), (), "gans"),
        "prepare MNIST: make paper MNIST=folder of the four IDX files",
        "digits",
    ),
)  # fmt: skip

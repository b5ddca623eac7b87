"""Which models are trained on digits for which figure: lengths, likelihood phases, second phases, waves."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jobs.paper import digits
from jobs.paper.experiments import Plan
from jobs.paper.units import Unit
from pipeline.data.shards import read_manifest

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

    def __init__(self, plan: Plan, data: Path, scale: float | None = None, likelihood_epochs: int = 25):
        rows = read_manifest(data).splits["train"].rows
        self.quick = plan.quick
        self.scale = scale or (0.04 if plan.quick else digits.EPOCHS_SCALE)
        per_epoch = -(-rows // 100)
        self.epoch = max(1, round(per_epoch * self.scale))
        self.every = 5 * self.epoch
        self.switch = max(1, round(likelihood_epochs * per_epoch * self.scale))
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

    def later(self, name: str, function: Callable[..., dict[str, Any]], runs: list[str]) -> Unit:
        """A unit that scores finished runs by the names of their units."""
        compared = {"compared": 100} if self.quick else {}
        return Unit(name, function, {"data": str(self.data), "runs": runs, **compared})

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


def continuous(plan: Plan) -> list[list[Unit]]:
    """Fig. 5, 6: two readings of Table II, their controls, plain PCD, GANs; from one likelihood phase per reading and seed."""
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
    looked_at = [u.name for u in (*second, *plain, *gans) if u.name.endswith("-0") and "keep" not in u.name]
    return [
        [at.classifier()],
        first,
        [*second, *flipped, *plain, *gans],
        [at.later("pictures", digits.score_pictures, looked_at)],
    ]


def critics(plan: Plan) -> list[list[Unit]]:
    """Fig. 9 to 11: four critics from the same likelihood phase."""
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


def binary(plan: Plan) -> list[list[Unit]]:
    """Fig. 6, second row: Bernoulli visible units."""
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
    looked_at = [unit.name for unit in (*second, *plain) if unit.name.endswith("-0")]
    likelihoods = at.later("likelihoods", digits.score_likelihoods, looked_at)
    return [[at.classifier()], first, [*second, *plain], [likelihoods]]


def dcgan(plan: Plan) -> list[list[Unit]]:
    """Fig. 12: a dense and a convolutional GAN."""
    if plan.mnist is None:
        return []
    at = Lengths(plan, plan.mnist)
    kinds = {"GAN": "mnist_gan", "DCGAN": "mnist_dcgan"} if at.width == 784 else {"GAN": "mnist_gan"}
    units = [at.unit(name, recipe, seed, {}) for name, recipe in kinds.items() for seed in at.seeds[:1]]
    return [[at.classifier()], units]


def sign_lengths(plan: Plan, data: Path) -> Lengths:
    """Of the recipe digits_beam: 60 epochs of likelihood, at its own length."""
    return Lengths(plan, data, 0.1 if plan.quick else 1.0, 60)


def sign(plan: Plan) -> list[list[Unit]]:
    """The critic's sign right, turned around, and no adversary, on 8x8 digits."""
    if plan.small is None:
        return []
    waves: list[list[Unit]] = [[], [], []]
    for kind, data in zip(("continuous", "binary"), plan.small):
        at = sign_lengths(plan, data)
        units = {} if kind == "continuous" else {"model.visible_units": "bernoulli"}
        name, after = f"classifier-{kind}", at.data
        waves[0].append(Unit(name, digits.fit_classifier, {"data": str(after)}))
        for seed in at.seeds:
            more: dict[str, Any] = {"classifier": name, "compared": 250}
            waves[1].append(at.unit(f"{kind}-base", "digits_beam", seed, units, until=at.switch, **more))
            for phase in ("beam", "control", "flipped"):
                changes = {**units, **SECOND_PHASES[phase]}
                fork = f"{kind}-base-{seed}"
                waves[2].append(at.unit(f"{kind}-{phase}", "digits_beam", seed, changes, fork=fork, **more))
    return waves

"""Which models are trained on digits for which figure: lengths, likelihood phases, second phases, waves."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jobs.paper import digits
from jobs.paper.experiments import Plan
from jobs.paper.units import Unit
from pipeline.data.manifest import read_manifest

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
BINARY_TRIES: dict[str, dict[str, Any]] = {
    "gamma .5": {"schedules.adversarial.gamma": 0.5},
    "10 neighbors": {"critic.num_neighbors": 10},
    "sampled features": {"critic.feature": "hidden_sample"},
    "own chain hidden": {"critic.exclude_own_chain": True, "critic.num_neighbors": 5},
    "visible critic": {"critic.feature": "visible"},
    "a third of the rate": {"schedules.adversarial.learning_rate.initial": 3e-5},
}
"""Second phases on binary digits, 15 epochs, beside the recipe's own."""
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
        parents = more.pop("parents", ())
        return Unit(f"{name}-{seed}".replace(" ", "_"), digits.train_digits, {**what, **more}, parents)

    def classifier(self) -> Unit:
        """The classifier that every measurement uses."""
        return Unit("classifier", digits.fit_classifier, {"data": str(self.data)})

    def references(self) -> Unit:
        """Scores of rows that no model made."""
        compared = {"compared": 100} if self.quick else {}
        return Unit("references", digits.score_references, {"data": str(self.data), **compared})

    def later(self, name: str, function: Callable[..., dict[str, Any]], runs: list[Unit]) -> Unit:
        """A unit that scores finished runs."""
        compared = {"compared": 100} if self.quick else {}
        what = {"data": str(self.data), "runs": [run.name for run in runs], **compared}
        return Unit(name, function, what, tuple(run.fingerprint for run in runs))

    def bases(self, readings: dict[str, str], seeds: Iterable[int]) -> list[Unit]:
        """The likelihood phases from which the second phases start."""
        return [self.base(reading, name, seed) for reading, name in readings.items() for seed in seeds]

    def base(self, reading: str, name: str, seed: int) -> Unit:
        """One of them."""
        return self.unit(f"{reading}-base", name, seed, {}, until=self.switch)

    def second(
        self, reading: str, name: str, phase: str, changes: dict[str, Any], seed: int, until: int | None = None
    ) -> Unit:
        """A second phase from the reading's likelihood checkpoint of this seed."""
        base = self.base(reading, name, seed)
        more: dict[str, Any] = {"fork": base.name, "until": until, "parents": (base.fingerprint,)}
        return self.unit(f"{reading}-{phase}", name, seed, changes, **more)


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
    looked_at = [u for u in (*second, *plain, *gans) if u.name.endswith("-0") and "keep" not in u.name]
    rbms = [unit for unit in (*second, *plain) if "keep" not in unit.name]
    return [
        [at.classifier()],
        [*first, at.references()],
        [*second, *flipped, *plain, *gans],
        [
            at.later("pictures", digits.score_pictures, looked_at),
            at.later("likelihoods", digits.score_likelihoods, rbms),
        ],
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
    first = at.bases({"literal": READINGS["literal"]}, seeds)
    looked_at = at.later("pictures_critics", digits.score_pictures, second)
    return [[at.classifier()], [*first, at.references()], second, [looked_at]]


def binary(plan: Plan) -> list[list[Unit]]:
    """Fig. 6, second row: Bernoulli visible units; and the search for a setting in which the adversary helps."""
    if plan.binary is None:
        return []
    at = Lengths(plan, plan.binary)
    first = [*at.bases({"literal": BINARY["literal"]}, at.seeds), at.base("recommended", BINARY["recommended"], 0)]
    second = [
        at.second(reading, name, phase, SECOND_PHASES[phase], seed)
        for reading, name in BINARY.items()
        for phase in ("beam", "control")
        for seed in (at.seeds if reading == "literal" else at.seeds[:1])
    ]
    fifteen = at.switch + 15 * at.epoch
    tries = [
        at.second("literal", BINARY["literal"], name, changes, seed, until=fifteen)
        for name, changes in BINARY_TRIES.items()
        for seed in at.seeds[:2]
    ]
    plain = [at.unit("literal-plain", BINARY["literal"], seed, PLAIN) for seed in at.seeds]
    looked_at = [unit for unit in second if unit.name.endswith("-0")] + plain[:1]
    scores = [
        at.later("pictures", digits.score_pictures, looked_at),
        at.later("likelihoods", digits.score_likelihoods, [*second, *plain]),
    ]
    return [[at.classifier()], [*first, at.references()], [*second, *tries, *plain], scores]


def dcgan(plan: Plan) -> list[list[Unit]]:
    """Fig. 12: a dense and a convolutional GAN."""
    if plan.mnist is None:
        return []
    at = Lengths(plan, plan.mnist)
    kinds = {"GAN": "mnist_gan", "DCGAN": "mnist_dcgan"} if at.width == 784 else {"GAN": "mnist_gan"}
    units = [at.unit(name, recipe, seed, {}) for name, recipe in kinds.items() for seed in at.seeds[:1]]
    return [[at.classifier()], [*units, at.references()], [at.later("pictures_gans", digits.score_pictures, units)]]


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
            base = at.unit(f"{kind}-base", "digits_beam", seed, units, until=at.switch, **more)
            waves[1].append(base)
            more |= {"fork": base.name, "parents": (base.fingerprint,)}
            for phase in ("beam", "control", "flipped"):
                waves[2].append(
                    at.unit(f"{kind}-{phase}", "digits_beam", seed, {**units, **SECOND_PHASES[phase]}, **more)
                )
    return waves

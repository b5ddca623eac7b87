"""What a sweep searches: dotted config keys with Optuna distributions, as Python values or as text on the command line."""

import ast
from collections.abc import Callable, Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from pipeline.config import ConfigError, CriticConfig, RBMConfig, RunConfig, flatten

Space = Mapping[str, BaseDistribution]

FIXED = (
    "name",
    "seed",
    "epochs_scale",
    "data.batch_size",
    "data.scaling",
    "evaluation.",
    "checkpoint.",
    "model.num_visible",
    "config_version",
)
"""Keys that no search may change: they decide how a model is measured, or how long (in updates or in rows) and under which
name it is trained."""
LENGTHS = (".epochs", ".updates")
FORMS = "uniform(low,high), loguniform(low,high), int(low,high), logint(low,high) or choice(a,b,...)"


def default_space(config: RunConfig) -> dict[str, BaseDistribution]:
    """gamma, the phases' learning rates, the driven sampler and the critic's neighbors, around the recipe's values."""
    if not isinstance(config.model, RBMConfig) or config.sampler is None:
        raise ConfigError(f"recipe {config.name!r} is not a BEAM; a sweep searches the settings of one")
    space: dict[str, BaseDistribution] = {}
    if config.schedules.adversarial.gamma < 1:
        space["schedules.adversarial.gamma"] = FloatDistribution(0.03, 0.9, log=True)
    for name in ("likelihood", "adversarial"):
        phase = getattr(config.schedules, name)
        if phase.epochs or phase.updates:
            rate = phase.learning_rate.initial
            key = f"schedules.{name}.learning_rate.initial"
            space[key] = FloatDistribution(_rounded(rate / 4), _rounded(rate * 4), log=True)
    space["sampler.beta_std"] = FloatDistribution(0.3, 0.97)
    space["sampler.beta_momentum"] = FloatDistribution(0.0, 0.97)
    steps = config.sampler.gibbs_steps
    space["sampler.gibbs_steps"] = IntDistribution(max(1, steps // 3), 2 * steps, log=True)
    if isinstance(config.critic, CriticConfig):
        space["critic.num_neighbors"] = IntDistribution(1, 4 * config.critic.num_neighbors, log=True)
    return space


def paper_space(config: RunConfig) -> dict[str, BaseDistribution]:
    """The default space for recipes with k = 100 sweeps, where more of them cost too much: 5 to 100."""
    return {**default_space(config), "sampler.gibbs_steps": IntDistribution(5, 100, log=True)}


SPACES: dict[str, Callable[[RunConfig], dict[str, BaseDistribution]]] = {
    name: paper_space for name in ("celeba_beam_paper", "celeba_beam_text", "celeba_beam_centered", "mixture_bimodal")
}
"""Spaces of recipes that have one of their own, by the recipe's name; `default_space` for all others."""


def space_of(config: RunConfig, items: list[str]) -> dict[str, BaseDistribution]:
    """The recipe's space with `key=distribution` items replaced or added; `key=-` takes a key out.

    A recipe's value outside of a distribution widens it: the recipe itself is always the first trial.

    Raises:
        ConfigError: an unknown key, one that a search may not change, or text that is no distribution.
    """
    space = SPACES.get(config.name, default_space)(config)
    known = flatten(config.to_dict())
    for item in items:
        key, sep, text = (part.strip() for part in item.partition("="))
        if not sep:
            raise ConfigError(f"--space {item!r}: write KEY={FORMS}, or KEY=- to leave the key out")
        if text == "-":
            if key not in space:
                raise ConfigError(f"--space {item!r}: {key!r} is not searched; searched are {', '.join(space)}")
            del space[key]
            continue
        config.override({key: known.get(key)})  # refuses an unknown key, naming the nearest
        if key.startswith(FIXED) or key.endswith(LENGTHS):
            raise ConfigError(
                f"--space {key}: a search may not change it, since it decides how long a model is trained or how it is "
                "measured; use --set to fix another value for all trials"
            )
        space[key] = parse_distribution(key, text)
    if not space:
        raise ConfigError("--space: nothing is left to search")
    for key, distribution in space.items():
        try:
            space[key] = containing(distribution, known[key])
        except (ValueError, TypeError):
            raise ConfigError(
                f"--space {key}={as_text(distribution)}: it cannot be widened to hold the recipe's value {known[key]!r}; "
                f"give another distribution, or {key}=- to leave the key out"
            ) from None
        for value in extremes(space[key]):
            config.override({key: value})  # refuses a range that the setting does not allow
    return space


def parse_distribution(key: str, text: str) -> BaseDistribution:
    """`loguniform(1e-5,1e-2)` and its like as a distribution. Raises ConfigError on anything else."""
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.keywords:
            raise ValueError("it is no such call")
        values = [ast.literal_eval(value) for value in call.args]
        if call.func.id == "choice":
            return CategoricalDistribution(values)
        low, high = values
        make = {
            "uniform": lambda: FloatDistribution(float(low), float(high)),
            "loguniform": lambda: FloatDistribution(float(low), float(high), log=True),
            "int": lambda: IntDistribution(low, high),
            "logint": lambda: IntDistribution(low, high, log=True),
        }[call.func.id]
        return make()
    except (SyntaxError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"--space {key}={text}: write {FORMS} ({error})") from None


def containing(distribution: BaseDistribution, value: Any) -> BaseDistribution:
    """The distribution, widened to hold `value` if it does not."""
    if isinstance(distribution, CategoricalDistribution):
        if value in distribution.choices:
            return distribution
        return CategoricalDistribution((*distribution.choices, value))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = min(distribution.low, value), max(distribution.high, value)
    return type(distribution)(low, high, log=distribution.log)


def extremes(distribution: BaseDistribution) -> tuple[Any, ...]:
    """All choices, or the two ends of a range."""
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return (distribution.low, distribution.high)


def as_text(distribution: BaseDistribution) -> str:
    """The distribution as `parse_distribution` reads it."""
    if isinstance(distribution, CategoricalDistribution):
        return f"choice({', '.join(repr(value) for value in distribution.choices)})"
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    name = {(False, False): "uniform", (False, True): "loguniform", (True, False): "int", (True, True): "logint"}[
        isinstance(distribution, IntDistribution), distribution.log
    ]
    return f"{name}({distribution.low!r},{distribution.high!r})"


def as_tune_domain(distribution: BaseDistribution) -> Any:
    """The same distribution as Ray Tune's, for its population based training."""
    from ray import tune

    if isinstance(distribution, CategoricalDistribution):
        return tune.choice(list(distribution.choices))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if isinstance(distribution, IntDistribution):
        return (tune.lograndint if distribution.log else tune.randint)(distribution.low, distribution.high + 1)
    return (tune.loguniform if distribution.log else tune.uniform)(distribution.low, distribution.high)


def clip(value: Any, distribution: BaseDistribution) -> Any:
    """`value` moved into the range, whole for whole numbers; a choice stays as it is."""
    if isinstance(distribution, CategoricalDistribution):
        return value
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    inside = min(max(value, distribution.low), distribution.high)
    return round(inside) if isinstance(distribution, IntDistribution) else float(inside)


def changed_in_flight(config: RunConfig, space: Space) -> dict[str, BaseDistribution]:
    """What population based training perturbs: gamma, the learning rates and beta_std, as far as they are searched."""
    keys = ("gamma", "learning_rate.initial", "sampler.beta_std")
    chosen = {key: distribution for key, distribution in space.items() if key.endswith(keys)}
    if not chosen:
        raise ConfigError(
            "--scheduler pbt changes gamma, learning rates and sampler.beta_std; --space holds none of them"
        )
    return chosen


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")

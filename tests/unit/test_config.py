"""Settings: what is written is what is read, one key space, and errors that name the key and what is allowed."""

import dataclasses
import functools
import json
import math
import pickle
import re
import reprlib
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, get_args

import numpy as np
import pytest

from pipeline.config import (
    AnyCriticConfig,
    AutoencoderConfig,
    CheckpointConfig,
    ConfigError,
    Cosine,
    CriticConfig,
    DataConfig,
    EvaluationConfig,
    ForestCriticConfig,
    NetworkCriticConfig,
    OptimizerConfig,
    Phase,
    PowerLaw,
    RBMConfig,
    RunConfig,
    SamplerConfig,
    Schedules,
    UnitKind,
    chosen_settings,
    flatten,
    parse_settings,
)

BEAM = RunConfig(
    "beam",
    seed=7,
    epochs_scale=0.25,
    data=DataConfig(64),
    model=RBMConfig(13, 5, "bernoulli", "onehot", center_hidden=True),
    sampler=SamplerConfig(num_chains=32, beta_std=0.0, initial_chains="wide"),
    critic=CriticConfig(weighting="uniform", num_neighbors=3, form="log", feature="visible", exclude_own_chain=True),
    optimizer=OptimizerConfig(0.5, 0.9, convention="paysage"),
    schedules=Schedules(
        Phase(epochs=2.5, learning_rate=PowerLaw(0.01, 0.3, decay_updates=50, convention="paysage")),
        Phase(updates=40, gamma=0.1, learning_rate=Cosine(1e-4, 5)),
    ),
    evaluation=EvaluationConfig(10, 100, selection_metric="kl_sum"),
    checkpoint=CheckpointConfig(5, 3),
)
AUTOENCODER = RunConfig(
    "autoencoder",
    model=AutoencoderConfig("float32", flip=False),
    sampler=None,
    critic=None,
    schedules=Schedules(likelihood=Phase(epochs=3, learning_rate=Cosine())),
)
LIKELIHOOD_ONLY = RunConfig("pcd", critic=None, schedules=Schedules(adversarial=Phase(updates=0)))
FOREST = RunConfig("forest", critic=ForestCriticConfig(num_trees=7, max_depth=3, feature="visible", form="log"))
NETWORK = RunConfig("network", critic=NetworkCriticConfig(hidden=(64, 16), learning_rate=0.01, updates=2, sign=-1))
EVERY_CONFIG = pytest.mark.parametrize(
    "config",
    [RunConfig("default"), BEAM, AUTOENCODER, LIKELIHOOD_ONLY, FOREST, NETWORK],
    ids=lambda config: config.name,
)


@EVERY_CONFIG
def test_a_config_survives_json(config: RunConfig) -> None:
    read = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert read == config
    assert read.to_dict() == config.to_dict()


@EVERY_CONFIG
def test_every_leaf_can_be_overridden_by_its_dotted_key_with_its_own_value(config: RunConfig) -> None:
    leaves = {key: value for key, value in flatten(config.to_dict()).items() if value is not None}
    assert config.override(leaves) == config
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in leaves.items()}
    assert config.override(texts) == config


def test_an_override_changes_its_key_alone() -> None:
    changed = BEAM.override({"critic.num_neighbors": "10", "schedules.adversarial.learning_rate.initial": "1e-3"})
    before, after = flatten(BEAM.to_dict()), flatten(changed.to_dict())
    assert {key: after[key] for key in after if after[key] != before[key]} == {
        "critic.num_neighbors": 10,
        "schedules.adversarial.learning_rate.initial": 1e-3,
    }
    assert isinstance(BEAM.critic, CriticConfig) and BEAM.critic.num_neighbors == 3


@pytest.mark.parametrize(("text", "value"), [("null", None), ("None", None), ("100", 100)])
def test_a_setting_that_may_be_null_takes_null(text: str, value: int | None) -> None:
    rule = BEAM.override({"schedules.likelihood.learning_rate.decay_updates": text}).schedules.likelihood.learning_rate
    assert isinstance(rule, PowerLaw) and rule.decay_updates == value


def test_booleans_are_read_in_both_spellings_and_whole_numbers_become_floats() -> None:
    changed = BEAM.override({"model.center_visible": "True", "model.center_hidden": "false", "sampler.beta_std": "0"})
    assert isinstance(changed.model, RBMConfig) and changed.model.center_visible and not changed.model.center_hidden
    assert changed.sampler is not None and type(changed.sampler.beta_std) is float


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("critic.num_neighbours", "critic.num_neighbors"),
        ("sampler.num_chain", "sampler.num_chains"),
        ("critic", "critic."),  # a group is not a setting
        ("seed.x", "seed"),
        ("zzz", ""),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting '{key}'; the nearest is '{nearest}"):
        BEAM.override({key: "1"})


def test_an_unknown_key_of_a_file_is_refused_with_its_place() -> None:
    tree = BEAM.to_dict()
    RunConfig.from_dict(tree)
    assert tree == BEAM.to_dict()  # reading leaves the dict alone
    for key, nearest in (("num_neighbour", "num_neighbors"), ("zzz", "")):
        with pytest.raises(ConfigError, match=rf"'critic\.{key}'; the nearest is 'critic\.{nearest}"):
            RunConfig.from_dict({**tree, "critic": {**tree["critic"], key: 3}})


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("critic.num_neighbors", True, "at least 1 (a whole number)"),
        ("critic.num_neighbors", 2.5, "at least 1 (a whole number)"),
        ("critic.num_neighbors", None, "at least 1 (a whole number)"),
        ("sampler.beta_std", "high", "at least 0 and below 1 (a finite number)"),
        ("model.center_visible", 1, "true or false"),
        ("name", 5, "text"),
        ("critic.weighting", "cubic", "'distance' or 'uniform'"),
        ("model.visible_units", "poisson", " or ".join(map(repr, get_args(UnitKind)))),
        ("schedules.likelihood.updates", "soon", "at least 0 (a whole number) or null"),
        ("model.num_visible", 2**53, "below 2^53"),
        ("optimizer.epsilon", 10**400, "above 0 (a finite number)"),
        ("sampler", 5, "SamplerConfig or null"),
        ("schedules.likelihood", "long", "Phase"),
    ],
)
def test_a_wrong_type_is_refused_with_what_is_allowed(key: str, value: Any, allowed: str) -> None:
    tree = BEAM.to_dict()
    *parts, last = key.split(".")
    functools.reduce(dict.__getitem__, parts, tree)[last] = value
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{key} = {reprlib.repr(value)}: must be {allowed}')}$"):
        RunConfig.from_dict(tree)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.num_visible", 0),
        ("model.initial_std", 0.0),
        ("model.min_std", 1.0),
        ("model.centering_rate", 1.5),
        ("sampler.num_chains", 1),
        ("sampler.gibbs_steps", 0),
        ("sampler.beta_std", 1.0),
        ("sampler.beta_std", float("nan")),
        ("sampler.beta_momentum", 1.0),
        ("sampler.min_beta", 0.0),
        ("sampler.statistics_sweeps", -1),
        ("sampler.num_blocks", 33),  # of 32 chains
        ("critic.num_neighbors", 0),
        ("critic.epsilon", 0.0),
        ("critic.min_probability", 0.6),
        ("optimizer.beta1", 1.0),
        ("optimizer.beta2", -0.1),
        ("optimizer.epsilon", 0.0),
        ("schedules.likelihood.learning_rate.initial", 0.0),
        ("schedules.likelihood.learning_rate.decay", -1.0),
        ("schedules.likelihood.learning_rate.decay_updates", 0),
        ("schedules.adversarial.learning_rate.warmup_updates", -1),
        ("schedules.likelihood.epochs", -1.0),
        ("schedules.adversarial.updates", -1),
        ("schedules.adversarial.gamma", 1.1),
        ("schedules.likelihood.updates", 10),  # epochs are set too
        ("schedules.likelihood.epochs", None),  # neither is set
        ("data.batch_size", 0),
        ("evaluation.every_updates", 0),
        ("evaluation.num_rows", 7),
        ("evaluation.num_components", 0),
        ("evaluation.selection_metric", "beauty"),
        ("checkpoint.every_updates", 0),
        ("checkpoint.keep", 1),
        ("checkpoint.log_every_updates", 0),
        ("epochs_scale", 0.0),
        ("seed", -1),
        ("seed", 2**31),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(key: str, value: Any) -> None:
    name = key.replace(".updates", ".epochs, updates") if value == 10 else key
    with pytest.raises(ConfigError, match=f"^{name}.* = .*: must be "):
        BEAM.override({key: value})


def test_a_choice_of_kind_is_written_and_read() -> None:
    assert AUTOENCODER.to_dict()["model"]["kind"] == "AutoencoderConfig"
    rates = [BEAM.to_dict()["schedules"][phase]["learning_rate"]["kind"] for phase in ("likelihood", "adversarial")]
    assert rates == ["PowerLaw", "Cosine"]
    assert "kind" not in BEAM.to_dict()["data"]  # no choice there
    tree = BEAM.to_dict()
    for kind in ("GAN", None):
        tree["model"]["kind"] = kind
        with pytest.raises(ConfigError, match=r"model\.kind = .*: must be RBMConfig or AutoencoderConfig"):
            RunConfig.from_dict(tree)
    del tree["model"]["kind"]
    with pytest.raises(ConfigError, match=r"model\.kind"):
        RunConfig.from_dict(tree)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_an_unknown_version_is_refused(version: Any) -> None:
    with pytest.raises(ConfigError, match="config_version"):
        RunConfig.from_dict({**BEAM.to_dict(), "config_version": version})
    without = {key: value for key, value in BEAM.to_dict().items() if key != "config_version"}
    with pytest.raises(ConfigError, match="config_version"):
        RunConfig.from_dict(without)


OLD_CRITIC = {
    "weighting": "uniform",
    "num_neighbors": 3,
    "epsilon": 0.1,
    "form": "log",
    "min_probability": 0.05,
    "feature": "visible",
    "search": "auto",
    "exclude_own_chain": True,
    "sign": 1,
}
"""What configs held when there was one kind of critic."""


def test_the_nearest_neighbor_critic_is_written_and_read_as_when_it_was_the_only_one() -> None:
    """No kind is named, and what came later is at its default."""
    assert BEAM.to_dict()["critic"] == {**OLD_CRITIC, "wire": "float32", "memory": "replicated"}
    assert not {"wire", "memory"} & chosen_settings(BEAM)["critic"].keys()
    assert RunConfig.from_dict({**BEAM.to_dict(), "critic": OLD_CRITIC}) == BEAM
    assert RunConfig.from_dict({**BEAM.to_dict(), "critic": {"kind": "CriticConfig", **OLD_CRITIC}}) == BEAM
    with pytest.raises(ConfigError, match=r"unknown setting 'critic\.num_trees'"):
        RunConfig.from_dict({**BEAM.to_dict(), "critic": {"num_trees": 7}})
    with pytest.raises(
        ConfigError, match=r"critic\.kind = 'Forest': must be CriticConfig or ForestCriticConfig or Net"
    ):
        RunConfig.from_dict({**BEAM.to_dict(), "critic": {"kind": "Forest"}})


def test_the_other_critics_name_their_kind() -> None:
    assert FOREST.to_dict()["critic"]["kind"] == "ForestCriticConfig"
    assert (
        NETWORK.to_dict()["critic"] | {"kind": "NetworkCriticConfig", "hidden": [64, 16]} == NETWORK.to_dict()["critic"]
    )
    assert NETWORK.override({"critic.hidden": "[8]"}).critic == dataclasses.replace(NETWORK.critic, hidden=(8,))  # type: ignore[type-var]
    assert NETWORK.override({"critic.hidden": []}).critic == dataclasses.replace(NETWORK.critic, hidden=())  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (FOREST, "critic.num_trees", 0),
        (FOREST, "critic.max_depth", 0),
        (FOREST, "critic.min_leaf", 0),
        (FOREST, "critic.min_probability", 0.0),
        (FOREST, "critic.sign", 0),
        (NETWORK, "critic.hidden", [8, 0]),
        (NETWORK, "critic.hidden", [8, 1.5]),
        (NETWORK, "critic.hidden", 8),
        (NETWORK, "critic.learning_rate", 0.0),
        (NETWORK, "critic.updates", 0),
        (NETWORK, "critic.form", "cubic"),
    ],
)
def test_a_critic_that_cannot_be_is_refused_by_its_name(config: RunConfig, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{key}.*: must be "):
        config.override({key: value})


def test_an_rbm_needs_chains_and_an_adversary_a_critic() -> None:
    with pytest.raises(ConfigError, match="sampler"):
        RunConfig("x", sampler=None)
    with pytest.raises(ConfigError, match="critic"):
        RunConfig("x", critic=None)  # the default second phase has gamma 0.1


def test_settings_of_the_command_line() -> None:
    assert parse_settings(["a.b = 1", "c=x=y", "d="]) == {"a.b": "1", "c": "x=y", "d": ""}
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_settings(["critic.num_neighbors"])


@pytest.mark.parametrize(
    ("phase", "scale", "expected"),
    [
        (Phase(epochs=0.5), 1.0, 50),  # 50.5 to the even neighbor
        (Phase(updates=40), 1.0, 40),
        (Phase(updates=40), 0.37, 15),  # 14.8
        (Phase(updates=40), 0.33, 13),
        (Phase(epochs=2), 1e-9, 1),  # a phase that exists keeps one update
        (Phase(epochs=0), 10.0, 0),
        (Phase(updates=0), 10.0, 0),
    ],
)
def test_the_length_of_a_phase(phase: Phase, scale: float, expected: int) -> None:
    assert phase.num_updates(steps_per_epoch=101, epochs_scale=scale) == expected


def test_flatten_names_leaves_by_dotted_key() -> None:
    assert flatten({"a": 1, "b": {"c": None, "d": {"e": "x"}}, "f": {}}) == {"a": 1, "b.c": None, "b.d.e": "x"}


@EVERY_CONFIG
def test_configs_are_frozen_and_hashable(config: RunConfig) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.data.batch_size = 3  # type: ignore[misc]
    assert hash(config) == hash(RunConfig.from_dict(config.to_dict()))


def test_a_run_is_known_by_what_it_chooses():
    chosen = chosen_settings(RunConfig("a", model=RBMConfig(3, 2, initial_std=0.25)))
    assert chosen["name"] == "a" and chosen["model"] == {
        "kind": "RBMConfig",
        "num_visible": 3,
        "num_hidden": 2,
        "initial_std": 0.25,
    }
    assert chosen["data"] == {"kind": "DataConfig"}, "what is at its default does not show"
    other = RunConfig("a", model=RBMConfig(3, 2, initial_std=0.25), data=DataConfig(batch_size=7))
    assert chosen_settings(other)["data"] == {"kind": "DataConfig", "batch_size": 7}
    none = RunConfig("a", model=AutoencoderConfig(), sampler=None, critic=None)
    assert chosen_settings(none)["sampler"] is None and chosen_settings(none)["model"]["kind"] == "AutoencoderConfig"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SamplerConfig(kernel="cuda"), "sampler.kernel = 'cuda': must be 'torch' or 'fused'"),
        (
            lambda: OptimizerConfig(convention="foo"),
            "optimizer.convention = 'foo': must be 'standard' or 'paysage'",
        ),
        (lambda: SamplerConfig(num_chains=12.5), "sampler.num_chains = 12.5: must be at least 2 (a whole number)"),
        (lambda: SamplerConfig(12.0), "sampler.num_chains = 12.0: must be at least 2 (a whole number)"),
        (lambda: SamplerConfig(num_chains="12"), "sampler.num_chains = '12': must be at least 2 (a whole number)"),
        (lambda: SamplerConfig(num_chains=True), "sampler.num_chains = True: must be at least 2 (a whole number)"),
        (lambda: CriticConfig(num_neighbors=0), "critic.num_neighbors = 0: must be at least 1 (a whole number)"),
        (lambda: CriticConfig("uniform", 0), "critic.num_neighbors = 0: must be at least 1 (a whole number)"),
        (lambda: CriticConfig(sign=True), "critic.sign = True: must be a whole number"),
        (lambda: CriticConfig(sign=0), "critic.sign = 0: must be 1 or -1"),
        (lambda: PowerLaw(True), "schedules.<phase>.learning_rate.initial = True: must be above 0 (a finite number)"),
        (lambda: RBMConfig(fixed_std=math.nan), "model.fixed_std = nan: must be above 0 (a finite number) or null"),
        (lambda: RBMConfig(fixed_std=math.inf), "model.fixed_std = inf: must be above 0 (a finite number) or null"),
        (lambda: RBMConfig(center_hidden=1), "model.center_hidden = 1: must be true or false"),
        (
            lambda: NetworkCriticConfig(hidden=(8, 0)),
            "critic.hidden[1] = 0: must be at least 1 (a whole number)",
        ),
        (
            lambda: NetworkCriticConfig(hidden=8),
            "critic.hidden = 8: must be a list, each item at least 1 (a whole number)",
        ),
        (lambda: RBMConfig(num_hiden=3), "unknown setting 'model.num_hiden'; the nearest is 'model.num_hidden'"),
        (lambda: RunConfig("x", data={"batch_size": 3}), "data = {'batch_size': 3}: must be DataConfig"),
        (
            lambda: RunConfig("x", critic=SamplerConfig()),
            "critic = SamplerConfig...chains='data'): must be "
            f"{' or '.join(kind.__name__ for kind in get_args(AnyCriticConfig))} or null",
        ),
        (lambda: RunConfig(), "name = None: must be set: it has no default"),
        (lambda: DataConfig(1, "manifest", 0, 3), "DataConfig: takes at most 3 values by position"),
        (
            lambda: dataclasses.replace(DataConfig(), max_skipped_share=1),
            "data.max_skipped_share = 1: must be at least 0 and below 1 (a finite number)",
        ),
    ],
)
def test_settings_made_in_python_are_checked_as_those_of_a_file(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value) == message


def test_numbers_are_saved_as_they_were_given_and_read_as_floats() -> None:
    """Fingerprints of stages hash what is saved, where 1 and 1.0 differ; a config that was read has floats, as ever."""
    config = RunConfig("x", epochs_scale=2, schedules=Schedules(Phase(epochs=10, gamma=1)))
    leaves = flatten(json.loads(json.dumps(config.to_dict())))
    keys = ("epochs_scale", "schedules.likelihood.epochs", "schedules.likelihood.gamma", "schedules.adversarial.gamma")
    assert [repr(leaves[key]) for key in keys] == ["2", "10", "1", "0.1"]
    read = flatten(RunConfig.from_dict(config.to_dict()).to_dict())
    assert [repr(read[key]) for key in keys] == ["2.0", "10.0", "1.0", "0.1"]
    assert RunConfig.from_dict(config.to_dict()) == config


@EVERY_CONFIG
def test_a_config_survives_pickling_and_rates_are_scaled_by_a_checked_copy(config: RunConfig) -> None:
    assert pickle.loads(pickle.dumps(config)) == config
    halved = config.with_rates(0.5)
    rates = [c.schedules.likelihood.learning_rate.initial for c in (halved, config)]
    assert rates[0] == 0.5 * rates[1] and halved.with_rates(2.0) == config
    with pytest.raises(ConfigError, match=r"learning_rate\.initial = -"):
        config.with_rates(-1.0)


@pytest.mark.parametrize("value", [np.float32(0.5), np.array(0.5), Decimal("0.5"), Fraction(1, 2), np.int64(1), "0.5"])
def test_a_number_is_an_int_or_a_float(value: Any) -> None:
    """Others could not be written, or could be changed later behind the check's back."""
    with pytest.raises(ConfigError, match=r"initial = .*: must be above 0 \(a finite number\)"):
        PowerLaw(initial=value)


def test_a_float_of_numpys_own_is_kept_as_a_plain_one() -> None:
    assert type(PowerLaw(initial=np.float64(0.5)).initial) is float

"""A BEAM run is the same run on 1, 2, 3 and 4 workers: bits of parameters, chains, memory, streams, and of the reports."""

import dataclasses
import math
from collections import Counter

import pytest
import torch
from groups import run_group
from torch import Tensor

from pipeline.build import build_beam
from pipeline.comm import Comm
from pipeline.config import (
    AnyCriticConfig,
    CheckpointConfig,
    CriticConfig,
    DataConfig,
    EvaluationConfig,
    ForestCriticConfig,
    NetworkCriticConfig,
    Phase,
    PowerLaw,
    RBMConfig,
    RunConfig,
    SamplerConfig,
    Schedules,
)
from pipeline.streams import stream


def tiny(visible: str = "gaussian", **critic: object) -> RunConfig:
    """23 -> 11 units, 13 chains in 4 blocks of 4, 3, 3, 3, batches of 17 and a last one of 9; 10 + 10 updates."""
    return RunConfig(
        name="tiny",
        data=DataConfig(batch_size=17),
        model=RBMConfig(23, 11, visible, "bernoulli", center_hidden=True),  # type: ignore[arg-type]
        sampler=SamplerConfig(num_chains=13, gibbs_steps=3, num_blocks=4),
        critic=CriticConfig(**critic),  # type: ignore[arg-type]
        schedules=Schedules(
            likelihood=Phase(updates=10, learning_rate=PowerLaw(0.01, 0.2)),
            adversarial=Phase(updates=10, gamma=0.1, learning_rate=PowerLaw(0.005, 0.0)),
        ),
        evaluation=EvaluationConfig(num_rows=19, num_components=5),
        checkpoint=CheckpointConfig(),
    )


def fitted(critic: AnyCriticConfig, visible: str = "gaussian") -> RunConfig:
    """The tiny run with a critic that learns."""
    return dataclasses.replace(tiny(visible), critic=critic)


FITTED = {
    "forest": fitted(ForestCriticConfig(num_trees=5, min_leaf=2)),
    "network": fitted(NetworkCriticConfig(hidden=(9, 5), learning_rate=0.01)),
    "network-sampled-log": fitted(
        NetworkCriticConfig(hidden=(), feature="hidden_sample", form="log", updates=1), "bernoulli"
    ),
}


def rounded() -> RunConfig:
    """Sweeps with operands of bfloat16, of blocks large enough for products that round them."""
    sampler = SamplerConfig(num_chains=130, gibbs_steps=3, num_blocks=4, precision="bfloat16")
    return dataclasses.replace(tiny(search="torch"), model=RBMConfig(70, 66, center_hidden=True), sampler=sampler)


def face_sized() -> RunConfig:
    """The face recipe's sizes: 1024 -> 512 units, 128 chains, 100 sweeps."""
    return dataclasses.replace(
        tiny(search="faiss"),
        data=DataConfig(batch_size=128),
        model=RBMConfig(1024, 512, center_hidden=True),
        sampler=SamplerConfig(),
    )


def rows_for(config: RunConfig) -> Tensor:
    assert isinstance(config.model, RBMConfig)
    count = 6 * config.data.batch_size - 8
    latents = torch.randn(count, config.model.num_visible, generator=stream(0, "rows"))
    mixed = latents @ torch.randn(config.model.num_visible, config.model.num_visible, generator=stream(0, "mix"))
    rows = mixed / mixed.std(0)
    return rows if config.model.visible_units == "gaussian" else (rows > 0).float()


def run(
    config: RunConfig, start: int, stop: int, state: dict[str, Tensor] | None, evaluate: bool = True, every: int = 5
) -> dict:
    rows = rows_for(config)
    held = len(rows) // 4
    objective = build_beam(config, rows[held:], rows[:held], Comm.current())
    if state is not None:
        objective.load_state(state)
    reports = [objective.step(step, measure=step % every == every - 1) for step in range(start, stop)]
    return {
        "reports": reports,
        "evaluation": objective.evaluate(stop).metrics if evaluate else {},
        "state": objective.state(),
    }


def assert_equal(result: dict, reference: dict, who: str) -> None:
    assert result["reports"] == reference["reports"][-len(result["reports"]) :], who
    assert result["evaluation"] == reference["evaluation"], who
    assert result["state"].keys() == reference["state"].keys(), who
    different = [name for name, value in reference["state"].items() if not torch.equal(value, result["state"][name])]
    assert not different, f"{who}: {different}"


@pytest.mark.parametrize(
    "config",
    [
        tiny(search="torch"),
        tiny(search="faiss", exclude_own_chain=True),
        tiny("bernoulli", search="torch", feature="hidden_sample"),
        tiny(search="torch", feature="visible", weighting="uniform"),
        tiny(search="torch", wire="bfloat16"),
        tiny(search="faiss", memory="sharded", exclude_own_chain=True, num_neighbors=9),
        rounded(),
        dataclasses.replace(tiny(search="torch"), sampler=SamplerConfig(num_chains=13, gibbs_steps=3, num_blocks=1)),
    ],
    ids=[
        "gaussian",
        "faiss",
        "bernoulli-sampled",
        "visible-critic",
        "bfloat16-wire",
        "sharded",
        "bfloat16-sweeps",
        "one-block",
    ],
)
def test_bits_do_not_depend_on_the_number_of_workers(config: RunConfig) -> None:
    (reference,) = run_group(run, 1, config, 0, 20, None)
    assert "memory.features" in reference["state"], "the adversarial phase was reached"
    assert all(math.isfinite(v) for report in reference["reports"] for v in report.values())
    for world_size in (2, 3, 4, 5):  # the fifth has no block
        for rank, result in enumerate(run_group(run, world_size, config, 0, 20, None)):
            assert_equal(result, reference, f"rank {rank} of {world_size}")


@pytest.mark.parametrize("config", FITTED.values(), ids=FITTED)
def test_critics_that_learn_are_the_same_on_any_number_of_workers(config: RunConfig) -> None:
    """Also from a checkpoint of two workers, when there is a memory that nobody has learned from, or much was learned."""
    (reference,) = run_group(run, 1, config, 0, 20, None, True, 1)
    scores = [report["score_particles"] for report in reference["reports"] if "score_particles" in report]
    assert len(scores) == 9 and len(set(scores)) > 7, "the critic scores at each step but the first with an adversary"
    for world_size in (2, 3):
        for rank, result in enumerate(run_group(run, world_size, config, 0, 20, None, True, 1)):
            assert_equal(result, reference, f"rank {rank} of {world_size}")
    for half in (11, 15):
        state = run_group(run, 2, config, 0, half, None, False)[0]["state"]
        for rank, result in enumerate(run_group(run, 3, config, half, 20, state, True, 1)):
            assert_equal(result, reference, f"rank {rank} of 3 from step {half}")


def test_a_run_goes_on_with_another_critic_before_the_adversary_only() -> None:
    """From one checkpoint of the likelihood phase the critics are compared (Fig. 10)."""
    states = {half: run(FITTED["network"], 0, half, None, False)["state"] for half in (10, 11, 15)}
    for config in (tiny(search="torch"), FITTED["forest"]):
        run(config, 10, 20, states[10], False)
        for half in (11, 15):
            with pytest.raises(ValueError, match="the checkpoint's critic does not fit this run"):
                run(config, half, 20, states[half], False)
    state = run(tiny(search="torch"), 0, 10, None, False)["state"]
    other, own = (run(FITTED["network"], 10, 20, s, False)["state"] for s in (state, states[10]))
    assert all(torch.equal(value, other[name]) for name, value in own.items())


@pytest.mark.parametrize(
    ("visible", "settings"),
    [
        ("gaussian", {"search": "torch"}),
        ("gaussian", {"search": "faiss", "exclude_own_chain": True, "num_neighbors": 9, "weighting": "uniform"}),
        # binary features: many rows are equally far, of which faiss takes the first
        ("bernoulli", {"search": "faiss", "form": "log", "feature": "hidden_sample"}),
    ],
    ids=["distance", "own chain hidden, more neighbors than a block has rows", "ties"],
)
def test_a_sharded_memory_gives_the_bits_of_the_replicated_one(visible: str, settings: dict) -> None:
    """20 updates, every 5th measured; the checkpoints are the same too, and each goes on as the other."""
    configs = {memory: tiny(visible, memory=memory, **settings) for memory in ("replicated", "sharded")}
    reference = run(configs["replicated"], 0, 20, None)
    for world_size in (1, 3):
        for rank, result in enumerate(run_group(run, world_size, configs["sharded"], 0, 20, None)):
            assert_equal(result, reference, f"rank {rank} of {world_size}")
    for first, then in (("replicated", "sharded"), ("sharded", "replicated")):
        half = run(configs[first], 0, 15, None, False)["state"]
        assert_equal(run(configs[then], 15, 20, half), reference, f"{first}, then {then}")


def bytes_of_a_step(config: RunConfig) -> dict[str, int]:
    rows = rows_for(config)
    objective = build_beam(config, rows[20:], rows[:20], Comm.current())
    for step in range(12):
        objective.step(step, measure=False)
    before = Counter(objective.comm.traffic)
    objective.step(12, measure=False)
    return dict(objective.comm.traffic - before)


def test_bytes_per_update() -> None:
    """One sum of the parameters in float64, one of the scores, and the features; 7 + 6 chains, 9 + 8 data rows."""
    num_parameters = 23 * 11 + 2 * 23 + 11
    summed = 8 * (num_parameters + 11 + 1)  # and E[h] of the data; T
    for config, features in (
        (tiny(search="torch"), 4 * 11 * (7 + 9)),
        (tiny(search="torch", wire="bfloat16"), 2 * 11 * (7 + 9)),
        (tiny(search="torch", feature="hidden_sample"), 2 * (7 + 9)),  # 11 bits in two bytes
    ):
        for found in run_group(bytes_of_a_step, 2, config):
            assert found == {"sum": summed, "gather": features}
    for found in run_group(bytes_of_a_step, 2, tiny(search="torch", memory="sharded", num_neighbors=3)):
        # the particles' features alone; for each of 13 chains 3 candidates of two float64
        assert found == {"sum": summed, "gather": 4 * 11 * 7, "exchange": 13 * 3 * 16}
    assert run_group(bytes_of_a_step, 1, tiny(search="torch")) == [{}]


@pytest.mark.parametrize("half", [7, 15])
def test_a_checkpoint_of_four_workers_continues_on_three_and_on_one(half: int) -> None:
    config = tiny(search="torch")
    (reference,) = run_group(run, 1, config, 0, 20, None)
    state = run_group(run, 4, config, 0, half, None)[0]["state"]
    for world_size in (3, 1):
        for rank, result in enumerate(run_group(run, world_size, config, half, 20, state)):
            assert_equal(result, reference, f"rank {rank} of {world_size} from step {half}")


def test_measuring_and_evaluating_change_nothing() -> None:
    config = tiny(search="torch")
    rows = rows_for(config)
    plain = build_beam(config, rows[20:], rows[:20], Comm())
    watched = build_beam(config, rows[20:], rows[:20], Comm())
    for step in range(15):
        plain.step(step, measure=False)
        watched.step(step, measure=True)
        watched.evaluate(step)
    for (name, a), b in zip(plain.state().items(), watched.state().values()):
        assert torch.equal(a, b), name


@pytest.mark.slow
def test_bits_at_the_face_recipes_size() -> None:
    config = face_sized()
    (reference,) = run_group(run, 1, config, 0, 20, None, False, timeout=600.0)
    for world_size in (2, 3, 4):
        for rank, result in enumerate(run_group(run, world_size, config, 0, 20, None, False, timeout=600.0)):
            assert_equal(result, reference, f"rank {rank} of {world_size}")

"""GANs give the same bits on 1, 2, 3, 4 and 5 workers, batch normalization included, also when they move between them."""

import pytest
import torch
from groups import run_group
from torch import Tensor

from pipeline.comm import Comm
from pipeline.config import (
    DataConfig,
    EvaluationConfig,
    GANConfig,
    OptimizerConfig,
    Phase,
    PowerLaw,
    RunConfig,
    Schedules,
)
from pipeline.streams import stream
from pipeline.training.gan import GanObjective

NUM_STEPS = 5
DENSE = GANConfig("gan", "dense", 13, 5, (11, 7), (11, 7), critic_steps=2)
DENSE_NORM = GANConfig("wgan", "dense", 13, 5, (11, 7), (11, 7), batch_norm=True)
DIGITS = GANConfig("gan", "convolutional", 784, 7, (), (), output="sigmoid", batch_norm=True, critic_steps=2)
FACES = GANConfig("wgan", "convolutional", 12288, 7, (), (), output="sigmoid", batch_norm=True, precision="auto")


def _train(model: GANConfig, start: int, stop: int, state: dict[str, Tensor] | None) -> dict[str, object]:
    """Updates start to stop on 23 rows in batches of 9 and a last one of 5, in 4 blocks of 3, 2, 2, 2 (2, 1, 1, 1) rows."""
    config = RunConfig(
        name="tiny",
        data=DataConfig(batch_size=9),
        model=model,
        sampler=None,
        critic=None,
        optimizer=OptimizerConfig(0.5, 0.9),
        schedules=Schedules(likelihood=Phase(updates=NUM_STEPS, learning_rate=PowerLaw(1e-2, 0.0))),
        evaluation=EvaluationConfig(num_rows=11, num_components=5),
    )
    if model.num_visible == 12288:
        rows = torch.randint(256, (34, 64, 64, 3), generator=stream(0, "pixels"), dtype=torch.uint8)
    else:
        rows = torch.rand(34, model.num_visible, generator=stream(0, "rows"))
    objective = GanObjective(config, rows[:23], rows[23:], Comm.current())
    if state is not None:
        objective.load_state(state)
    reports = [objective.step(step, measure=True) for step in range(start, stop)]
    evaluation = objective.evaluate(stop)
    return {
        "reports": reports,
        "evaluation": evaluation.metrics,
        "state": {**objective.state(), "samples": evaluation.samples},
    }


def _assert_equal(result: dict, reference: dict, who: str) -> None:
    assert result["reports"] == reference["reports"][-len(result["reports"]) :], who
    assert result["evaluation"] == reference["evaluation"], who
    assert result["state"].keys() == reference["state"].keys()
    different = [name for name, value in reference["state"].items() if not torch.equal(value, result["state"][name])]
    assert not different, f"{who}: {different}"


@pytest.mark.parametrize("model", [DENSE, DENSE_NORM, DIGITS, FACES], ids=["dense", "dense-norm", "digits", "faces"])
def test_bits_do_not_depend_on_the_number_of_workers(model: GANConfig) -> None:
    (reference,) = run_group(_train, 1, model, 0, NUM_STEPS, None)
    for world_size in (3, 5) if model is FACES else (2, 3, 4, 5):  # the fifth has no block
        for rank, result in enumerate(run_group(_train, world_size, model, 0, NUM_STEPS, None)):
            _assert_equal(result, reference, f"rank {rank} of {world_size}")


@pytest.mark.parametrize("model", [DENSE, DIGITS], ids=["dense", "digits"])
def test_a_run_moves_between_numbers_of_workers(model: GANConfig) -> None:
    (reference,) = run_group(_train, 1, model, 0, NUM_STEPS, None)
    half = run_group(_train, 3, model, 0, 2, None)[0]["state"]
    del half["samples"]
    for world_size in (1, 2):
        for rank, result in enumerate(run_group(_train, world_size, model, 2, NUM_STEPS, half)):
            _assert_equal(result, reference, f"3 -> {world_size}, rank {rank}")

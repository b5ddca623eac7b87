"""The autoencoder gives the same bits on 1, 2, 3, 4 and 5 workers, and when it moves from one number to another."""

import pytest
import torch
from groups import run_group
from torch import Tensor

from pipeline.comm import Comm
from pipeline.config import AutoencoderConfig, Cosine, DataConfig, EvaluationConfig, Phase, RunConfig, Schedules
from pipeline.device.precision import choose_precision
from pipeline.streams import stream
from pipeline.training.autoencoder import AutoencoderObjective

NUM_STEPS = 5


def _train(precision: str, start: int, stop: int, state: dict[str, Tensor] | None) -> dict[str, object]:
    """Updates start to stop on 23 images in batches of 9 and a last one of 5, in 4 blocks of 3, 2, 2, 2 (2, 1, 1, 1) rows."""
    config = RunConfig(
        name="tiny",
        data=DataConfig(batch_size=9),
        model=AutoencoderConfig(precision=precision, num_blocks=4),  # type: ignore[arg-type]
        schedules=Schedules(likelihood=Phase(updates=NUM_STEPS, learning_rate=Cosine(initial=3e-3, warmup_updates=2))),
        evaluation=EvaluationConfig(num_rows=10),
    )
    pixels = torch.randint(256, (34, 64, 64, 3), generator=stream(0, "pixels"), dtype=torch.uint8)
    objective = AutoencoderObjective(config, pixels[:23], pixels[23:], Comm.current())
    if state is not None:
        objective.load_state(state)
    reports = [objective.step(step, measure=True) for step in range(start, stop)]
    return {"reports": reports, "evaluation": objective.evaluate(stop).metrics, "state": objective.state()}


def _assert_equal(result: dict, reference: dict, who: str) -> None:
    assert result["reports"] == reference["reports"][-len(result["reports"]) :], who
    assert result["evaluation"] == reference["evaluation"], who
    assert result["state"].keys() == reference["state"].keys()
    different = [name for name, value in reference["state"].items() if not torch.equal(value, result["state"][name])]
    assert not different, f"{who}: {different}"


def _skip_unless_native(precision: str) -> None:
    if precision == "bfloat16" and choose_precision("auto", "cpu") != "bfloat16":
        pytest.skip("this processor has no native bfloat16")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bits_do_not_depend_on_the_number_of_workers(precision: str) -> None:
    _skip_unless_native(precision)
    (reference,) = run_group(_train, 1, precision, 0, NUM_STEPS, None)
    for world_size in (2, 3, 4, 5):  # the fifth has no block
        for rank, result in enumerate(run_group(_train, world_size, precision, 0, NUM_STEPS, None)):
            _assert_equal(result, reference, f"rank {rank} of {world_size}")


def test_a_run_moves_between_numbers_of_workers() -> None:
    precision = choose_precision("auto", "cpu")
    (reference,) = run_group(_train, 1, precision, 0, NUM_STEPS, None)
    half = run_group(_train, 4, precision, 0, 2, None)[0]["state"]
    for world_size in (3, 1):
        for rank, result in enumerate(run_group(_train, world_size, precision, 2, NUM_STEPS, half)):
            _assert_equal(result, reference, f"4 -> {world_size}, rank {rank}")

"""Natural gradient, replica exchange and noise on the data: the same bits on any number of workers, and from a checkpoint."""

import dataclasses
import math

import pytest
from groups import run_group
from test_beam_invariance import assert_equal, run, tiny

from pipeline.config import DataNoise, NaturalGradientConfig, RBMConfig, RunConfig, SamplerConfig


def exchanging(natural: bool, **model: object) -> RunConfig:
    """The tiny run with three temperatures, 13 chains in blocks of 4, 3, 3, 3 times three replicas."""
    base = tiny(search="torch")
    return dataclasses.replace(
        base,
        model=RBMConfig(23, 11, initial_thresholds="data", **model),  # type: ignore[arg-type]
        sampler=SamplerConfig(num_chains=13, gibbs_steps=3, num_blocks=4, beta_std=0.0, num_temperatures=3),
        optimizer=NaturalGradientConfig() if natural else base.optimizer,
        schedules=dataclasses.replace(base.schedules, noise=DataNoise(hold_updates=5, fall_updates=9)),
    )


@pytest.mark.parametrize(
    "config",
    [pytest.param(exchanging(True), marks=pytest.mark.slow), exchanging(False), exchanging(True, fixed_std=0.6)],
    ids=["natural", "adam", "sigma fixed"],
)
def test_bits_do_not_depend_on_the_number_of_workers(config: RunConfig) -> None:
    (reference,) = run_group(run, 1, config, 0, 20, None)
    assert all(math.isfinite(v) for report in reference["reports"] for v in report.values())
    assert reference["reports"][4]["beta_mean"] == pytest.approx(1, abs=1e-9), "statistics are of the coldest chains"
    assert reference["state"]["chains.visible"].shape == (39, 23), "all replicas are in the checkpoint"
    for world_size in (2, 3, 5):  # the fifth has no block
        for rank, result in enumerate(run_group(run, world_size, config, 0, 20, None)):
            assert_equal(result, reference, f"rank {rank} of {world_size}")
    for half in (7, 13):
        state = run_group(run, 2, config, 0, half, None, False)[0]["state"]
        for rank, result in enumerate(run_group(run, 3, config, half, 20, state)):
            assert_equal(result, reference, f"rank {rank} of 3 from step {half}")

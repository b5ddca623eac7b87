"""Monitors of small runs: few chains, few training rows."""

import dataclasses
import math

import pytest
import torch
from test_beam_invariance import tiny

from pipeline.build import build_beam
from pipeline.comm import Comm
from pipeline.config import EvaluationConfig, SamplerConfig
from pipeline.streams import stream
from pipeline.training.monitors import Monitors


@pytest.mark.parametrize(("num_chains", "is_measured"), [(2, False), (5, False), (6, True)])
def test_too_few_chains_for_an_estimate_leave_it_out_and_the_run_goes_on(num_chains: int, is_measured: bool) -> None:
    config = dataclasses.replace(tiny(), sampler=SamplerConfig(num_chains=num_chains, gibbs_steps=1, num_blocks=1))
    rows = torch.randn(94, 23, generator=stream(0, "rows"))
    objective = build_beam(config, rows[20:], rows[:20], Comm())
    objective.step(0, measure=False)
    metrics = objective.evaluate(1).metrics
    persistent = {f"persistent_kl_{name}" for name in ("forward", "reverse", "sum")}
    assert persistent & metrics.keys() == (persistent if is_measured else set())
    assert {"kl_forward", "fresh_kl_forward", "frechet_latent"} <= metrics.keys()


@pytest.mark.parametrize(("num_train", "num_heldout", "components"), [(50, 150, 49), (500, 60, 59), (500, 150, 100)])
def test_components_are_fewer_than_the_rows_they_are_of(num_train: int, num_heldout: int, components: int) -> None:
    train, heldout = (torch.randn(n, 200, generator=stream(0, "rows", n)) for n in (num_train, num_heldout))
    monitors = Monitors(EvaluationConfig(), train, heldout)
    assert monitors.space.components.shape == (200, components)
    assert all(
        map(math.isfinite, monitors.compare(torch.randn(num_heldout, 200, generator=stream(1, "samples"))).values())
    )

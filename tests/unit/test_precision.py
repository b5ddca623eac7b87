"""Products with rounded operands: what is rounded, where it ends, and what a setting says that cannot be had."""

import dataclasses

import pytest
import torch
from test_beam_invariance import rows_for, tiny

from pipeline.comm import Comm
from pipeline.config import RBMConfig, RunConfig
from pipeline.precision import can_round_operands, rounding_operands
from pipeline.training import beam
from pipeline.training.beam import BeamObjective

NEEDS_ROUNDING = pytest.mark.skipif(
    not can_round_operands(), reason="this processor or torch has no float32 products with bfloat16 operands"
)


@NEEDS_ROUNDING
def test_operands_are_rounded_and_sums_are_float32() -> None:
    g = torch.Generator().manual_seed(0)
    x, weights, bias = (
        torch.randn(64, 300, generator=g),
        torch.randn(300, 200, generator=g),
        torch.randn(200, generator=g),
    )
    with rounding_operands("bfloat16"):
        drawn = torch.addmm(bias, x, weights)
    exact = bias.double() + x.bfloat16().double() @ weights.bfloat16().double()
    assert (drawn - exact).abs().max() < 3e-5, "rounding of the operands is all that is lost"
    assert (drawn - torch.addmm(bias, x, weights)).abs().max() > 1e-2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rounding_ends_where_it_should(precision: str) -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    before = x @ x
    with pytest.raises(KeyError), rounding_operands(precision):  # type: ignore[arg-type]
        raise KeyError
    assert torch.equal(x @ x, before)


def wants(precision: str, num_hidden: int = 64) -> RunConfig:
    config = tiny(search="torch")
    sampler = dataclasses.replace(config.sampler, precision=precision)
    return dataclasses.replace(config, model=RBMConfig(70, num_hidden), sampler=sampler)


def built(config: RunConfig) -> BeamObjective:
    rows = rows_for(config)
    return BeamObjective(config, rows[20:], rows[:20], Comm())


def test_what_cannot_be_had_is_refused_and_auto_goes_without(monkeypatch) -> None:
    monkeypatch.setattr(beam, "can_round_operands", lambda: False)
    with pytest.raises(ValueError, match=r'sampler.precision = "bfloat16" needs processors.*use "auto" or "float32"'):
        built(wants("bfloat16"))
    assert built(wants("auto")).precision == "float32"


def test_auto_is_what_the_processor_has() -> None:
    assert built(wants("auto")).precision == ("bfloat16" if can_round_operands() else "float32")
    assert built(wants("float32")).precision == "float32"
    assert built(wants("auto", num_hidden=63)).precision == "float32", "nothing is gained there"


@NEEDS_ROUNDING
def test_gradients_and_evaluation_are_float32(monkeypatch) -> None:
    """Only sweeps run with rounded operands."""
    objective = built(wants("bfloat16"))
    inside: list[str] = []

    def watch(name: str, owner: object) -> None:
        real = getattr(owner, name)

        def call(*args: object, **kwargs: object) -> object:
            inside.append(f"{name} {torch.backends.mkldnn.matmul.fp32_precision}")
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    watch("run", type(objective.sampler))
    watch("negative_energy_gradient", objective.rbm)
    watch("hidden_statistics", objective.rbm)
    objective.step(0, measure=True)
    assert {"run bf16"} < set(inside)
    assert all("bf16" not in call for call in inside if not call.startswith("run")) and len(set(inside)) >= 3

"""Products with rounded operands: what is rounded, where it ends, and when `auto` asks for it."""

import dataclasses

import pytest
import torch
from test_beam_invariance import rows_for, tiny

from pipeline import precision
from pipeline.comm import Comm
from pipeline.config import RBMConfig, RunConfig
from pipeline.precision import Precision, rounding_operands, rounds_natively
from pipeline.training import beam
from pipeline.training.beam import BeamObjective


@pytest.fixture(params=["native", "emulated"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How operands are rounded: by the processor, or before each product."""
    if request.param == "emulated":
        monkeypatch.setattr(precision, "rounds_natively", lambda: False)
    elif not rounds_natively():
        pytest.skip("this processor or torch has no float32 products with bfloat16 operands")


def lost(size: int = 64) -> float:
    """How far a product is from the one of exact operands."""
    x = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    return float((torch.addmm(torch.zeros(size), x, x).double() - x.double() @ x.double()).abs().max())


@pytest.mark.usefixtures("way")
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


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("setting", ["float32", "bfloat16"])
def test_rounding_ends_where_it_should(setting: Precision) -> None:
    with pytest.raises(KeyError), rounding_operands(setting):
        assert (lost() > 1e-3) == (setting == "bfloat16")
        raise KeyError
    assert lost() < 1e-4


def wants(setting: str, num_hidden: int = 64) -> RunConfig:
    config = tiny(search="torch")
    sampler = dataclasses.replace(config.sampler, precision=setting)
    return dataclasses.replace(config, model=RBMConfig(70, num_hidden), sampler=sampler)


def built(config: RunConfig) -> BeamObjective:
    rows = rows_for(config)
    return BeamObjective(config, rows[20:], rows[:20], Comm())


def test_auto_goes_without_where_it_is_not_native_and_a_setting_does_not(monkeypatch, caplog) -> None:
    for module in (beam, precision):
        monkeypatch.setattr(module, "rounds_natively", lambda: False)
    assert built(wants("auto")).precision == "float32" and not caplog.records
    assert built(wants("bfloat16")).precision == "bfloat16"
    assert "emulated on this processor" in caplog.text


def test_products_of_small_layers_are_never_rounded() -> None:
    """Nothing would be faster, and the modes' weights would move (docs/results.md); normal numbers are coarse there, too."""
    objective = built(wants("bfloat16", num_hidden=63))
    assert (objective.precision, objective.products) == ("bfloat16", "float32")
    assert built(wants("bfloat16")).products == "bfloat16"


def test_auto_is_what_the_processor_has() -> None:
    assert built(wants("auto")).precision == ("bfloat16" if rounds_natively() else "float32")
    assert built(wants("float32")).precision == "float32"
    assert built(wants("auto", num_hidden=63)).precision == "float32", "nothing is gained there"


@pytest.mark.usefixtures("way")
def test_gradients_and_evaluation_are_float32(monkeypatch) -> None:
    """Only sweeps run with rounded operands."""
    objective = built(wants("bfloat16"))
    inside: set[tuple[str, bool]] = set()

    def watch(name: str, owner: object) -> None:
        real = getattr(owner, name)

        def call(*args: object, **kwargs: object) -> object:
            inside.add((name, lost() > 1e-3))
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    watch("run", type(objective.sampler))
    watch("negative_energy_gradient", objective.rbm)
    watch("hidden_statistics", objective.rbm)
    objective.step(0, measure=True)
    objective.evaluate(1)
    assert inside == {
        ("run", True),  # of the chains
        ("run", False),  # of the monitors
        ("negative_energy_gradient", False),
        ("hidden_statistics", False),
    }

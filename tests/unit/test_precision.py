"""Products with rounded operands: what is rounded, where it ends, and when `auto` asks for it."""

import dataclasses

import pytest
import torch
from test_beam_invariance import rows_for, tiny

from pipeline.build import build_beam
from pipeline.comm import Comm
from pipeline.config import ConfigError, RBMConfig, RunConfig
from pipeline.device import precision
from pipeline.device.precision import Products, choose_for_sweeps, rounding_operands, rounds_natively
from pipeline.training.beam import BeamObjective
from pipeline.training.chains import TorchChains

WAYS = pytest.mark.parametrize(
    "products",
    [
        pytest.param(
            "bfloat16",
            marks=pytest.mark.skipif(not rounds_natively(), reason="this processor or torch does not round factors"),
        ),
        "emulated",
    ],
)


def lost(size: int = 64) -> float:
    """How far a product is from the one of exact operands."""
    x = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    return float((torch.addmm(torch.zeros(size), x, x).double() - x.double() @ x.double()).abs().max())


@WAYS
def test_operands_are_rounded_and_sums_are_float32(products: Products) -> None:
    g = torch.Generator().manual_seed(0)
    x, weights, bias = (
        torch.randn(64, 300, generator=g),
        torch.randn(300, 200, generator=g),
        torch.randn(200, generator=g),
    )
    exact = torch.addmm(bias.double(), x.double(), weights.double())
    with rounding_operands(products):
        drawn = torch.addmm(bias, x, weights)
        assert torch.equal(torch.addmm(bias.double(), x.double(), weights.double()), exact)
    rounded = bias.double() + x.bfloat16().double() @ weights.bfloat16().double()
    assert (drawn - rounded).abs().max() < 3e-5, "rounding of the operands is all that is lost"
    assert (drawn - torch.addmm(bias, x, weights)).abs().max() > 1e-2


@WAYS
def test_rounding_ends_where_it_should(products: Products) -> None:
    with pytest.raises(KeyError), rounding_operands(products):
        assert lost() > 1e-3
        raise KeyError
    with rounding_operands("float32"):
        assert lost() < 1e-4


def wants(setting: str, num_hidden: int = 64) -> RunConfig:
    config = tiny(search="torch")
    sampler = dataclasses.replace(config.sampler, precision=setting)
    return dataclasses.replace(config, model=RBMConfig(70, num_hidden), sampler=sampler)


def built(config: RunConfig) -> BeamObjective:
    rows = rows_for(config)
    return build_beam(config, rows[20:], rows[:20], Comm())


def of(objective: BeamObjective) -> tuple[str, str]:
    chains = objective.chains
    assert isinstance(chains, TorchChains)
    return chains.precision, chains.products


def test_where_it_is_not_native_auto_goes_without_and_a_name_is_emulated(monkeypatch, caplog) -> None:
    monkeypatch.setattr(precision, "rounds_natively", lambda: False)
    assert of(built(wants("auto"))) == ("float32", "float32") and not caplog.records
    assert of(built(wants("bfloat16"))) == ("bfloat16", "emulated")
    assert "emulated, slower" in caplog.text


def test_one_worker_without_it_decides_for_all(monkeypatch) -> None:
    """Else bits would depend on who owns which block."""
    monkeypatch.setattr(precision, "rounds_natively", lambda: True)
    monkeypatch.setattr(Comm, "gather", lambda _self, x, _rows: torch.cat([x, torch.zeros_like(x)]))
    assert of(built(wants("auto"))) == ("float32", "float32")
    assert of(built(wants("bfloat16"))) == ("bfloat16", "emulated")


def test_a_gpu_has_it_in_fused_kernels_alone() -> None:
    with pytest.raises(ValueError, match=r'"bfloat16" on a GPU needs sampler.kernel = "fused"'):
        choose_for_sweeps("bfloat16", 64, False, False, Comm(device="cuda"))


def test_replica_exchange_compares_exact_energies(monkeypatch) -> None:
    monkeypatch.setattr(precision, "rounds_natively", lambda: True)
    monkeypatch.setattr(precision, "choose_together", lambda *_: "bfloat16")
    assert of(built(wants("auto"))) == ("bfloat16", "bfloat16")
    exchange = {"num_temperatures": 3, "beta_std": 0.0}
    config = wants("auto")
    config = dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, **exchange))
    assert of(built(config)) == ("float32", "float32")
    with pytest.raises(ConfigError, match=r"sampler\.precision.*replica exchange"):
        dataclasses.replace(wants("bfloat16").sampler, **exchange)  # type: ignore[type-var]


def test_products_of_small_layers_are_never_rounded(caplog) -> None:
    """The modes' weights would move (docs/results.md); normal numbers are coarse there, too."""
    assert of(built(wants("bfloat16", num_hidden=63))) == ("bfloat16", "float32")
    assert "fewer than 64 units stay float32" in caplog.text


def test_auto_is_what_the_processor_has() -> None:
    assert of(built(wants("auto"))) == (("bfloat16",) * 2 if rounds_natively() else ("float32",) * 2)
    assert of(built(wants("float32"))) == ("float32", "float32")
    assert of(built(wants("auto", num_hidden=63))) == ("float32", "float32"), "nothing is gained there"


@WAYS
def test_gradients_and_evaluation_are_float32(products: Products, monkeypatch) -> None:
    """Only sweeps run with rounded operands."""
    objective = built(wants("bfloat16"))
    objective.chains.products = products  # type: ignore[attr-defined]
    inside: set[tuple[str, bool]] = set()

    def watch(name: str, owner: object) -> None:
        real = getattr(owner, name)

        def call(*args: object, **kwargs: object) -> object:
            inside.add((name, lost() > 1e-3))
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    watch("run", type(objective.chains.sampler))
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

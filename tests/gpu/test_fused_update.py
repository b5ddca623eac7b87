"""Fused updates against the torch path: on a CUDA device, else in Triton's interpreter (see tests/conftest.py)."""

import dataclasses
import importlib.util
from typing import Any

import pytest
import torch
from test_beam_invariance import rows_for, tiny

from pipeline.comm import Comm
from pipeline.config import CriticConfig, RBMConfig, RunConfig
from pipeline.critics.adversary import ReplicatedAdversary
from pipeline.critics.memory import FeatureEncoding, Memory
from pipeline.critics.neighbors import NeighborCritic
from pipeline.critics.search import search_torch
from pipeline.fused import sweeps as fused
from pipeline.learning.adam import Adam
from pipeline.models.rbm import RBM
from pipeline.samplers.driven import DrivenGibbs, GammaProcess
from pipeline.samplers.gibbs import ChainState
from pipeline.training.ascent import Ascent
from pipeline.training.beam import BeamObjective
from pipeline.training.block import Counts
from pipeline.training.objective import NonFinite
from pipeline.training.terms import GradientSums

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter stands for a device, and products of few units are rounded."""
    monkeypatch.setattr("pipeline.device.precision._LEAST_UNITS", 1)
    if DEVICE == "cpu":
        monkeypatch.setattr(fused, "can_fuse", lambda *_: True)


def fused_config(search: str = "torch", **sampler: Any) -> RunConfig:
    config = tiny(search=search)
    return dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, kernel="fused", **sampler))


def objective(config: RunConfig) -> BeamObjective:
    rows = rows_for(config)
    found = BeamObjective(config, rows[20:], rows[:20], Comm(device=DEVICE))
    assert found.whole is not None and found.fused is None
    return found


def model(visible: str, num_visible: int, num_hidden: int) -> RBM:
    rbm = RBM(RBMConfig(num_visible, num_hidden, visible, center_hidden=True)).to(DEVICE)
    generator = torch.Generator(device=DEVICE).manual_seed(1)
    with torch.no_grad():
        for tensor in (*rbm.parameters(), *rbm.buffers()):
            tensor.normal_(std=0.3, generator=generator)
        rbm.weights.mul_(4)
    return rbm


@pytest.mark.parametrize(
    ("visible", "feature", "critic"),
    [
        ("gaussian", "hidden_mean", {}),
        ("gaussian", "visible", {"weighting": "uniform", "exclude_own_chain": True}),
        ("bernoulli", "hidden_mean", {"form": "log", "sign": -1, "exclude_own_chain": True, "wire": "bfloat16"}),
        ("gaussian", "hidden_mean", None),
    ],
)
@torch.no_grad()
@pytest.mark.parametrize("sizes", [(37, 19, 13, 11), (64, 32, 16, 16)])
def test_terms_are_those_of_the_torch_path(visible: str, feature: str, critic: dict[str, Any] | None, sizes) -> None:
    """Hidden means, T, mean T, every gradient and the mean over data; with a memory of another number of data rows."""
    from pipeline.fused.update import FusedUpdate

    num_visible, num_hidden, num_chains, num_data = sizes
    rbm, comm = model(visible, num_visible, num_hidden), Comm(device=DEVICE)
    generator = torch.Generator(device=DEVICE).manual_seed(2)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, device=DEVICE, generator=generator)

    recall = None
    if critic is not None:
        config = CriticConfig(feature=feature, search="torch", num_neighbors=3, **critic)
        width = num_visible if feature == "visible" else num_hidden
        wire = FeatureEncoding(width, torch.float32, config.wire)
        recall = ReplicatedAdversary(NeighborCritic(config, search_torch), wire, comm, [num_chains])
        shape = num_data - 4 + num_chains, num_visible
        rows = 10 * draw(*shape) - 5 if feature == "visible" else draw(shape[0], 1) * draw(*shape)
        recall.memory = Memory(rows if feature == "visible" else rbm.hidden_mean(rows).detach(), num_data - 4)
    buffer = draw(num_data + num_chains, num_visible)
    sweeps = fused.FusedGibbs(
        rbm, DrivenGibbs(GammaProcess(0.9, 0.9), 2), num_chains, 0, 3, torch.float32, 1, buffer[num_data:], graph=False
    )
    ascent = Ascent(rbm, Adam(rbm, (0.9, 0.999), 1e-8, maximize=True))
    update = FusedUpdate(rbm, sweeps, buffer, recall, feature, ascent, graph=False)
    start = draw(num_chains, num_visible)
    update.hold([ChainState(start, draw(num_chains, num_hidden), torch.ones(num_chains, 1, device=DEVICE))])
    informative = 0
    for data_rows in (num_data, num_data - 3):
        update.data(data_rows).copy_(draw(data_rows, num_visible))
        found, largest = update.terms(4, data_rows, 0.3, recall is not None)
        block = found.blocks[0]
        sums = GradientSums(rbm, comm, [num_chains], feature, [generator], recall)
        counts = Counts(data_rows, num_chains)
        expected = sums.take([block.data], [block.particles.visible], 0.3, recall is not None, counts, None)
        reference = expected.blocks[0]
        torch.testing.assert_close(block.particles.hidden.states, reference.particles.hidden.states)
        torch.testing.assert_close(block.data_features, reference.data_features)
        if recall is not None:
            assert block.scores is not None and reference.scores is not None
            informative += float(block.scores.std()) > 0.01
            torch.testing.assert_close(block.scores, reference.scores, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.mean_score, expected.mean_score, rtol=1e-4, atol=1e-5)
        for name, value in expected.sums.items():
            torch.testing.assert_close(found.sums[name], value, rtol=1e-4, atol=1e-5)
        values = [*found.sums.values(), update.rows[num_data - data_rows :]]
        assert largest.tolist() == [float(value.abs().max()) for value in values]
        update.ascend(0.01, data_rows, recall is not None)
        if recall is not None:
            assert recall.memory is not None and recall.memory.num_data == data_rows
            features = torch.cat([block.data_features, block.particles.features])
            torch.testing.assert_close(recall.memory.features, recall.wire.unpack(recall.wire.pack(features)))
    assert recall is None or informative


@pytest.mark.parametrize("precision", ["float32", "bfloat16"] if DEVICE == "cuda" else ["float32"])
def test_a_run_resumes_and_measures_nothing_into_it(precision: str) -> None:
    """Over both phases and the smaller last batches: stopped and resumed, and measured at other steps, the same bits."""
    config = fused_config(precision=precision)
    whole, first, second = (objective(config) for _ in range(3))
    for step in range(16):
        whole.step(step, measure=False)
    for step in range(13):
        first.step(step, measure=step % 2 == 0)
    second.load_state(first.state())
    for step in range(13, 16):
        second.step(step, measure=True)
    for (name, a), b in zip(whole.state().items(), second.state().values()):
        assert torch.equal(a, b), name


def test_a_run_goes_on_from_any_state_loaded_into_it() -> None:
    """One that has made graphs, too: back to step 9, and to before the first."""
    config = fused_config()
    straight, back = objective(config), objective(config)
    start = back.state()
    for step in range(14):
        back.step(step, measure=False)
    states = {}
    for step in range(16):
        states[step] = straight.state()
        straight.step(step, measure=False)
    for first, state in ((9, states[9]), (0, start)):
        back.load_state(state)
        for step in range(first, 16):
            back.step(step, measure=False)
        for (name, a), b in zip(straight.state().items(), back.state().values(), strict=True):
            assert torch.equal(a, b), name


def test_few_rows_need_no_search() -> None:
    """Whatever search is named: all distances are there."""
    pytest.importorskip("faiss")
    if DEVICE == "cuda":
        pytest.skip("faiss for a CPU does not search there")
    by_torch, by_faiss = objective(fused_config()), objective(fused_config(search="faiss"))
    for step in range(14):
        by_torch.step(step, measure=False)
        by_faiss.step(step, measure=False)
    for (name, a), b in zip(by_torch.state().items(), by_faiss.state().values(), strict=True):
        assert name == "critic.backend" or torch.equal(a, b), name


@torch.no_grad()
def test_its_first_update_is_that_of_torch() -> None:
    """Adam, the clamp and the offsets, from the rows that the fused sweeps have left."""
    config = fused_config(statistics_sweeps=0)
    ours = objective(config)
    torchs = BeamObjective(
        dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, kernel="torch")),
        *(rows_for(config)[20:], rows_for(config)[:20]),
        Comm(device=DEVICE),
    )
    ours.step(0, measure=False)
    terms = torchs.terms.take(
        [ours.whole.data(17)],  # type: ignore[union-attr]
        [torch.cat([chains.visible for chains in ours.chains])],
        1.0, False, Counts(17, 13), None,
    )  # fmt: skip
    assert torchs.ascent is not None
    torchs.ascent.step(dict(terms.sums), torchs.learning_rate(0))
    for a, b in zip(ours.rbm.state_dict().values(), torchs.rbm.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_data_that_are_not_finite_are_found_a_step_later() -> None:
    config = fused_config()
    ours = objective(config)
    ours.checks_later = True
    done = []
    with pytest.raises(NonFinite, match="began on rank 0") as error:
        for step in range(14):
            if step == 11:
                ours.batches.rows.fill_(float("inf"))
            ours.step(step, measure=False)
            done.append(step)
    assert error.value.step == 11 and done == list(range(12))


@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device on this machine")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("statistics_sweeps", [0, 1])
def test_graphs_have_the_bits_of_their_launches(precision: str, statistics_sweeps: int) -> None:
    config = fused_config(precision=precision, statistics_sweeps=statistics_sweeps)
    captured, launched = objective(config), objective(config)
    assert captured.whole is not None and launched.whole is not None and captured.whole.graphs.graph
    launched.whole.graphs.graph = False
    for step in range(20):
        a, b = captured.step(step, measure=step % 3 == 0), launched.step(step, measure=step % 3 == 0)
        assert a == b, step
    for (name, x), y in zip(captured.state().items(), launched.state().values()):
        assert torch.equal(x, y), name


def test_a_critic_it_does_not_know_leaves_the_sweeps_alone_fused() -> None:
    config = fused_config()
    config = dataclasses.replace(config, critic=dataclasses.replace(config.critic, feature="hidden_sample"))
    rows = rows_for(config)
    found = BeamObjective(config, rows[20:], rows[:20], Comm(device=DEVICE))
    assert found.whole is None and found.fused is not None
    for step in range(13):
        assert "gamma" in found.step(step, measure=step == 12)

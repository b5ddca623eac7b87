"""Fused updates against the torch path: on a CUDA device, else in Triton's interpreter (see tests/conftest.py)."""

import dataclasses
import importlib.util
from typing import Any

import pytest
import torch
from test_beam_invariance import rows_for, tiny

from pipeline.build import build_beam
from pipeline.comm import Comm
from pipeline.config import CriticConfig, DataConfig, Phase, PowerLaw, RBMConfig, RunConfig, SamplerConfig, Schedules
from pipeline.critics.memory import Memory
from pipeline.critics.neighbors import BACKENDS
from pipeline.fused import sweeps as fused
from pipeline.fused.update import FusedBeam
from pipeline.models.rbm import RBM
from pipeline.training.objective import NonFinite

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


def by_torch(config: RunConfig) -> RunConfig:
    assert config.sampler is not None
    return dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, kernel="torch"))


def objective(config: RunConfig) -> FusedBeam:
    rows = rows_for(config)
    found = build_beam(config, rows[20:], rows[:20], Comm(device=DEVICE))
    assert isinstance(found, FusedBeam)
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
    num_visible, num_hidden, num_chains, num_data = sizes
    given = None if critic is None else CriticConfig(feature=feature, search="torch", num_neighbors=3, **critic)
    phase = Phase(updates=2, gamma=1.0 if given is None else 0.3, learning_rate=PowerLaw(initial=0.01))
    config = RunConfig(
        "terms",
        data=DataConfig(batch_size=num_data),
        model=RBMConfig(num_visible, num_hidden, visible, center_hidden=True),
        sampler=SamplerConfig(num_chains, 2, beta_std=0.9, num_blocks=1, kernel="fused"),
        critic=given,
        schedules=Schedules(likelihood=phase, adversarial=Phase(updates=0, gamma=phase.gamma)),
    )
    generator = torch.Generator(device=DEVICE).manual_seed(2)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, device=DEVICE, generator=generator)

    data = draw(2 * num_data - 3, num_visible)  # two batches, the second of three rows fewer
    ours, torchs = (build_beam(c, data, data[:9], Comm(device=DEVICE)) for c in (config, by_torch(config)))
    assert isinstance(ours, FusedBeam)
    ours.rbm.load_state_dict(model(visible, num_visible, num_hidden).state_dict())
    adversary, reference = ours.adversary, torchs.adversary
    if critic is not None:
        shape = num_data - 4 + num_chains, num_visible
        rows = 10 * draw(*shape) - 5 if feature == "visible" else draw(shape[0], 1) * draw(*shape)
        features = rows if feature == "visible" else ours.rbm.hidden_mean(rows)
        adversary.memory = Memory(features, num_data - 4)  # type: ignore[union-attr]
    informative, update = 0, ours.update
    for step, data_rows in enumerate((num_data, num_data - 3)):
        torchs.rbm.load_state_dict(ours.rbm.state_dict())
        ours.batches.batch(step, out=update.data(data_rows))
        found, largest = update.summed(step, data_rows, 0.3, adversary is not None)
        block, at = found.blocks[0], torchs.schedule.at(step)
        expected = torchs.look(step, [block.data], [block.particles.visible], torchs.rbm.couplings(), at)
        if reference is not None:
            reference.memory = Memory(adversary.memory.features.clone(), adversary.memory.num_data)  # type: ignore[union-attr]
        expected, mean_score = torchs.scored(expected, reference)
        other = expected.blocks[0]
        torch.testing.assert_close(block.particles.hidden.states, other.particles.hidden.states)
        torch.testing.assert_close(block.data_features, other.data_features)
        if adversary is not None:
            assert block.scores is not None and other.scores is not None
            informative += float(block.scores.std()) > 0.01
            torch.testing.assert_close(block.scores, other.scores, rtol=1e-4, atol=1e-4)
            assert float(update.mean_score) == pytest.approx(float(mean_score), rel=1e-4, abs=1e-5)
        for name, value in torchs.summed(expected, mean_score, 1.0 if adversary is None else 0.3).items():
            torch.testing.assert_close(update.sums[name], value.to(update.sums[name].dtype), rtol=1e-4, atol=1e-5)
        values = [*update.sums.values(), update.rows[num_data - data_rows :]]
        assert largest.tolist() == [float(value.abs().max()) for value in values]
        update.ascend(0.01, data_rows, adversary is not None)
        if adversary is not None:
            assert adversary.memory is not None and adversary.memory.num_data == data_rows
            features = torch.cat([block.data_features, block.particles.features])
            torch.testing.assert_close(adversary.memory.features, adversary.wire.unpack(adversary.wire.pack(features)))
    assert adversary is None or informative


def test_above_1024_rows_neighbors_are_torchs_whatever_a_checkpoint_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions choose the search by a stopwatch: a checkpoint may bring faiss, which a graph cannot capture."""
    monkeypatch.setattr("pipeline.fused.update._MOST_REMEMBERED", 1)
    ours = objective(fused_config())
    for step in range(12):
        ours.step(step, measure=False)
    state = ours.state()
    state["critic.backend"] = torch.tensor(list(BACKENDS).index("faiss"))

    def refuse(*_: Any) -> torch.Tensor:
        raise AssertionError("faiss was called in an update")

    monkeypatch.setitem(BACKENDS, "faiss", refuse)
    ours.load_state(state)
    assert ours.adversary.critic.search is refuse  # type: ignore[union-attr]
    ours.step(12, measure=False)


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
    torchs = build_beam(by_torch(config), rows_for(config)[20:], rows_for(config)[:20], Comm(device=DEVICE))
    ours.step(0, measure=False)
    at, visible = torchs.schedule.at(0), [torch.cat([chains.visible for chains in ours.chains.states])]
    rows = torchs.look(0, [ours.update.data(17)], visible, torchs.rbm.couplings(), at)
    torchs.learner.step(dict(torchs.summed(rows, 0.0, 1.0)), rows, at.rate)
    for a, b in zip(ours.rbm.state_dict().values(), torchs.rbm.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_data_that_are_not_finite_are_found_a_step_later() -> None:
    config = fused_config()
    ours = objective(config)
    ours.guard.later = True
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
    assert captured.update.graphs.graph
    launched.update.graphs.graph = False
    for step in range(20):
        a, b = captured.step(step, measure=step % 3 == 0), launched.step(step, measure=step % 3 == 0)
        assert a == b, step
    for (name, x), y in zip(captured.state().items(), launched.state().values()):
        assert torch.equal(x, y), name


def test_a_critic_it_does_not_know_leaves_the_sweeps_alone_fused() -> None:
    config = fused_config()
    config = dataclasses.replace(config, critic=dataclasses.replace(config.critic, feature="hidden_sample"))
    rows = rows_for(config)
    found = build_beam(config, rows[20:], rows[:20], Comm(device=DEVICE))
    assert not isinstance(found, FusedBeam) and isinstance(found.chains, fused.FusedChains)
    for step in range(13):
        assert "gamma" in found.step(step, measure=step == 12)

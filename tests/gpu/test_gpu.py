"""A CUDA device computes what the CPU computes: gradients and scores to rounding, samplers in law, a run that resumes."""

import dataclasses

import pytest
import torch
from small import PAIRINGS, small_rbm
from test_beam_invariance import rows_for, tiny

from pipeline.build import build_beam
from pipeline.comm import Comm
from pipeline.config import CriticConfig
from pipeline.critics.memory import Memory
from pipeline.critics.neighbors import NeighborCritic
from pipeline.critics.search import search_torch
from pipeline.samplers.driven import GammaProcess
from pipeline.samplers.protocols import FRESH, WideStart, draw_samples
from pipeline.streams import stream
from pipeline.training.beam import BeamObjective

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(("visible", "hidden"), PAIRINGS)
def test_gradients_agree(visible, hidden):
    cpu, gpu = small_rbm(visible, hidden), small_rbm(visible, hidden).to(CUDA)
    v = torch.rand(37, len(cpu.visible.bias), dtype=torch.float64)
    w = torch.randn(37, dtype=torch.float64)
    expected = cpu.negative_energy_gradient(v, cpu.hidden_statistics(v), w)
    found = gpu.negative_energy_gradient(v.to(CUDA), gpu.hidden_statistics(v.to(CUDA)), w.to(CUDA))
    for name in expected:
        torch.testing.assert_close(found[name].cpu(), expected[name], rtol=1e-10, atol=1e-10)


def test_scores_agree():
    features, queries = torch.rand(256, 509), torch.rand(31, 509)
    critic = NeighborCritic(CriticConfig(), search_torch)
    on_gpu = critic.score(queries.to(CUDA), Memory(features.to(CUDA), 128))
    torch.testing.assert_close(on_gpu.cpu(), critic.score(queries, Memory(features, 128)), rtol=0, atol=1e-4)


def test_the_gamma_process_has_its_law():
    process, generator = GammaProcess(0.9, 0.9), stream(0, "gpu", device=CUDA)
    beta = process.stationary(torch.ones(200_000, 1, device=CUDA), generator)
    after = beta
    for _ in range(20):
        after = process.step(after, generator)
    # standard errors: 0.9 / sqrt(2e5) = 0.002 of the mean; six of them
    assert abs(after.mean().item() - 1) < 0.012
    assert abs(after.std().item() - 0.9) < 0.02
    correlation = torch.corrcoef(torch.cat([after, process.step(after, generator)], 1).T)[0, 1].item()
    assert abs(correlation - 0.9) < 0.01


def test_samples_have_the_moments_of_the_cpus():
    cpu = small_rbm("gaussian", "bernoulli", seed=2).float()
    start = WideStart(torch.zeros(2), torch.ones(2))
    expected = draw_samples(cpu, start, FRESH, 20_000, 1).visible
    on_gpu = WideStart(start.mean.to(CUDA), start.std.to(CUDA))
    found = draw_samples(cpu.to(CUDA), on_gpu, FRESH, 20_000, 1).visible.cpu()
    error = expected.std(0) / 20_000**0.5
    assert bool(((found.mean(0) - expected.mean(0)).abs() < 6 * 2**0.5 * error).all())
    torch.testing.assert_close(found.std(0), expected.std(0), rtol=0.05, atol=0)


@pytest.mark.parametrize(("kernel", "precision"), [("torch", "float32"), ("fused", "float32"), ("fused", "bfloat16")])
def test_a_run_resumes_with_the_same_bits(kernel, precision, monkeypatch):
    monkeypatch.setattr("pipeline.device.precision._LEAST_UNITS", 1)  # else products of so few are not rounded
    config = tiny(search="torch")
    config = dataclasses.replace(
        config, sampler=dataclasses.replace(config.sampler, kernel=kernel, precision=precision)
    )
    rows = rows_for(config)

    def objective() -> BeamObjective:
        return build_beam(config, rows[20:], rows[:20], Comm(device=CUDA))

    whole, first = objective(), objective()
    for step in range(20):
        whole.step(step, measure=False)
    for step in range(15):
        first.step(step, measure=True)
    second = objective()
    second.load_state(first.state())
    for step in range(15, 20):
        second.step(step, measure=False)
    for (name, a), b in zip(whole.state().items(), second.state().values()):
        assert torch.equal(a, b), name

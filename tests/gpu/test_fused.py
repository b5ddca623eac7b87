"""The fused half sweeps against exact laws: on a CUDA device, else in Triton's interpreter (see tests/conftest.py)."""

import importlib.util

import pytest
import torch
from laws import Table, assert_follows, seeded, single
from scipy import stats
from small import small_rbm

from pipeline.config import RBMConfig
from pipeline.fused.sweeps import FusedGibbs
from pipeline.models.rbm import RBM
from pipeline.samplers.driven import DrivenGibbs, GammaProcess, plain_gibbs
from pipeline.samplers.gibbs import ChainState, gibbs_sweep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = 4000
KINDS = ["bernoulli", "gaussian"]
PRECISIONS = [
    torch.float32,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(
            DEVICE == "cpu", reason="Triton's interpreter takes the bits of bfloat16 operands for numbers"
        ),
    ),
]


def model(visible: str) -> RBM:
    return single(small_rbm(visible, "bernoulli", seed=3)).to(DEVICE)


def swept(
    rbm: RBM,
    chains: ChainState,
    sampler: DrivenGibbs,
    precision: torch.dtype = torch.float32,
    step: int = 0,
    first: int = 0,
    statistics_sweeps: int = 0,
) -> ChainState:
    """The chains after an update's sweeps; with statistics_sweeps their visible states are those for the statistics."""
    chains = ChainState(*(column.to(DEVICE) for column in chains))
    fused = FusedGibbs(rbm, sampler, len(chains.beta), first, 11, precision, statistics_sweeps, graph=DEVICE == "cuda")
    moved = fused.hold([chains])[0]
    statistics = fused.sweep(step)
    assert statistics_sweeps or torch.equal(statistics, moved.visible)
    return ChainState(*(column.cpu() for column in moved._replace(visible=statistics)))


def start(rbm: RBM, rows: int = ROWS) -> ChainState:
    num_visible, num_hidden = rbm.weights.shape
    return ChainState(torch.zeros(rows, num_visible), torch.full((rows, num_hidden), torch.nan), torch.ones(rows, 1))


@pytest.mark.parametrize("visible", KINDS)
@pytest.mark.parametrize("sweeps", [1, 3] if DEVICE == "cuda" else [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [1000, 4000] if DEVICE == "cuda" else [4000])
def test_the_law_after_some_sweeps_is_exact(visible: str, sweeps: int, precision: torch.dtype, rows: int) -> None:
    """With bfloat16 operands of weights that are exact in it: so are states of Bernoulli units, and Gaussian ones nearly."""
    rbm = model(visible)
    exact = small_rbm(visible, "bernoulli", seed=3)
    with torch.no_grad():
        for model_ in (rbm, exact):
            model_.weights.copy_(model_.weights.to(torch.bfloat16))
            if visible == "gaussian":
                model_.visible.log_variance.zero_()
    table = Table.of(exact)
    law = table.after(table.only(table.fixed_start(exact)), sweeps)
    assert_follows(exact, swept(rbm, start(rbm, rows), plain_gibbs(sweeps), precision), table, law)


@pytest.mark.parametrize("visible", KINDS)
def test_sweeps_for_the_statistics_go_on_at_one_and_leave_the_chains(visible: str) -> None:
    """Behind plain sweeps they are the next ones, to the bit; behind driven ones the chains are what they are without."""
    rbm = model(visible)
    further = swept(rbm, start(rbm, 64), plain_gibbs(1), statistics_sweeps=2)
    assert torch.equal(further.visible, swept(rbm, start(rbm, 64), plain_gibbs(3)).visible)
    driven = DrivenGibbs(GammaProcess(0.9, 0.5), 1)
    chains = ChainState(*(column.to(DEVICE) for column in start(rbm, 64)))
    moved = []
    for statistics_sweeps in (2, 0):
        fused = FusedGibbs(rbm, driven, 64, 0, 11, torch.float32, statistics_sweeps, graph=DEVICE == "cuda")
        moved.append(fused.hold([chains])[0])
        fused.sweep(0)
    for a, b in zip(*moved):
        assert torch.equal(a, b)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_odd_number_of_units_and_rows_and_a_second_model_with_the_same_buffers(precision: torch.dtype) -> None:
    rbm = RBM(RBMConfig(37, 19)).to(DEVICE)
    with torch.no_grad():
        rbm.weights.normal_(std=0.5, generator=torch.Generator(device=DEVICE).manual_seed(0))
    fused = FusedGibbs(rbm, plain_gibbs(2), 101, 0, 1, precision, graph=DEVICE == "cuda")
    chains = ChainState(*(column.to(DEVICE) for column in start(rbm, 101)))
    hidden = fused.hold([chains])[0].hidden
    fused.sweep(0)
    first = hidden.clone()
    fused.hold([chains])
    fused.sweep(0)
    assert torch.equal(first, hidden), "the same step, the same numbers"
    with torch.no_grad():
        rbm.weights.zero_()
        rbm.hidden.bias.fill_(40.0)
    fused.sweep(1)
    assert bool((hidden == 1).all()), "parameters are read again"


def test_random_numbers_belong_to_the_particle_the_sweep_and_the_step() -> None:
    rbm = model("gaussian")
    chains = start(rbm, 96)
    whole = swept(rbm, chains, plain_gibbs(2))
    half = ChainState(*(column[48:] for column in chains))
    assert torch.equal(swept(rbm, half, plain_gibbs(2), first=48).visible, whole.visible[48:])
    assert not torch.equal(swept(rbm, chains, plain_gibbs(2), step=1).visible, whole.visible)
    assert len(whole.visible[:, 0].unique()) == 96, "no two particles share their noise"
    noise = swept(rbm, start(rbm, 4096), plain_gibbs(1)).visible
    correlation = torch.corrcoef(noise.T) - torch.eye(noise.shape[1])
    assert noise.shape[1] == 1 or float(correlation.abs().max()) < 0.9


@pytest.mark.parametrize("slabs", [2, 4])
def test_the_same_chains_as_slabs_have_the_same_bits(slabs: int) -> None:
    """As several workers sweep them."""
    rbm, rows = model("gaussian"), 1024 if DEVICE == "cuda" else 64
    chains = start(rbm, rows)
    whole = swept(rbm, chains, plain_gibbs(3))
    for i, part in enumerate(zip(*(column.chunk(slabs) for column in chains))):
        first = i * rows // slabs
        found = swept(rbm, ChainState(*part), plain_gibbs(3), first=first)
        assert torch.equal(found.visible, whole.visible[first : first + rows // slabs])
        assert torch.equal(found.hidden, whole.hidden[first : first + rows // slabs])


def test_temperatures_have_the_gamma_law_and_its_memory() -> None:
    std, momentum = 0.95, 0.9
    process = GammaProcess(std, momentum)
    rbm, rows = model("bernoulli"), 20_000 if DEVICE == "cuda" else 1500
    stationary = process.stationary(torch.ones(rows, 1), seeded(0))
    chains = start(rbm, rows)._replace(beta=stationary)
    after = swept(rbm, chains, DrivenGibbs(process, 3)).beta[:, 0].double()
    error = std / rows**0.5
    assert abs(float(after.mean()) - 1) < 6 * error
    assert stats.kstest(after.numpy(), stats.gamma(std**-2, scale=std**2).cdf).pvalue > 1e-6
    correlation = float(torch.corrcoef(torch.stack([stationary[:, 0].double(), after]))[0, 1])
    assert correlation == pytest.approx(momentum**3, abs=6 * 2 / rows**0.5)
    # not only the law of one time: given beta, the mean of the next is 1 + phi (beta - 1)
    one = swept(rbm, chains, DrivenGibbs(process, 1)).beta[:, 0].double()
    high = stationary[:, 0] > 2
    expected = 1 + momentum * (stationary[high, 0].double() - 1)
    assert float((one[high] - expected).mean()) == pytest.approx(
        0, abs=6 * float((one[high] - expected).std()) / int(high.sum()) ** 0.5
    )


def test_hot_particles_have_wider_noise() -> None:
    rbm = model("gaussian")
    frozen = GammaProcess(1e-4, 0.0)  # beta near 1
    cold = swept(rbm, start(rbm), DrivenGibbs(frozen, 1))
    expected = gibbs_sweep(rbm.cpu(), rbm.couplings(), start(rbm), None, seeded(1)).visible
    error = expected.std(0) / ROWS**0.5
    assert bool(((cold.visible.mean(0) - expected.mean(0)).abs() < 6 * 2**0.5 * error).all())
    torch.testing.assert_close(cold.visible.std(0), expected.std(0), rtol=0.1, atol=0)


@pytest.mark.parametrize("visible", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [128, 2048] if DEVICE == "cuda" else [32])
def test_tiles_without_masks_draw_what_tiles_with_masks_draw(visible, precision: torch.dtype, rows: int) -> None:
    """One row more needs the masks. The numbers are the same; sums in another order seldom turn a unit."""
    rbm = RBM(RBMConfig(256, 256, visible_units=visible)).to(DEVICE)
    with torch.no_grad():
        rbm.weights.normal_(std=0.1, generator=torch.Generator(device=DEVICE).manual_seed(0))
    sampler = DrivenGibbs(GammaProcess(0.9, 0.9), 1)
    chains = start(rbm, rows + 1)
    masked = swept(rbm, chains, plain_gibbs(1), precision)
    even = swept(rbm, ChainState(*(column[:rows] for column in chains)), plain_gibbs(1), precision)
    same = (even.hidden == masked.hidden[:rows]).all(1)
    assert float(same.float().mean()) > 0.95
    torch.testing.assert_close(even.visible[same], masked.visible[:rows][same], rtol=1e-4, atol=1e-4)
    assert bool((swept(rbm, chains, sampler, precision).beta > 0).all())

"""Evaluation protocols: the same rows for a seed however many workers share the blocks; wide starts; means and draws."""

import pytest
import torch
from torch import Tensor

from pipeline.comm import Comm
from pipeline.config import RBMConfig
from pipeline.models.rbm import RBM
from pipeline.samplers.driven import DrivenGibbs, GammaProcess, plain_gibbs
from pipeline.samplers.protocols import DRIVEN, FRESH, ROWS_PER_BLOCK, Protocol, WideStart, draw_samples
from pipeline.streams import stream

SHORT = Protocol("short", (DrivenGibbs(GammaProcess(0.95, 0.9), 3), plain_gibbs(2)))
KINDS = pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "onehot"])


class LoneWorker(Comm):
    """One rank of a group whose others are not there: a gather returns its own rows."""

    def gather(self, rows: Tensor, rows_per_rank: list[int]) -> Tensor:
        assert len(rows) == rows_per_rank[self.rank]
        return rows


def some_rbm(kind: str) -> RBM:
    g = torch.Generator().manual_seed(0)
    rbm = RBM(RBMConfig(7, 5, kind, "bernoulli"))  # type: ignore[arg-type]
    with torch.no_grad():
        for p in rbm.parameters():
            p.normal_(0, 0.4, generator=g)
    return rbm


def some_start(kind: str) -> WideStart:
    mean = torch.tensor([0.9, 0.1, 0.5, 0.02, 0.7, 0.3, 0.48])
    return WideStart(mean / mean.sum() if kind == "onehot" else mean, torch.linspace(0.1, 2.0, 7))


@KINDS
def test_one_seed_gives_the_same_rows_and_another_seed_others(kind: str) -> None:
    rbm, start = some_rbm(kind), some_start(kind)
    first, again, other = (draw_samples(rbm, start, SHORT, 70, seed) for seed in (3, 3, 4))
    assert first.visible.shape == first.visible_mean.shape == (70, 7)
    assert torch.equal(first.visible, again.visible) and torch.equal(first.visible_mean, again.visible_mean)
    assert not torch.equal(first.visible, other.visible)


@KINDS
@pytest.mark.parametrize("world_size", [1, 3])
def test_no_rows_are_an_empty_result(kind: str, world_size: int) -> None:
    for rank in range(world_size):
        out = draw_samples(some_rbm(kind), some_start(kind), SHORT, 0, 5, LoneWorker(rank, world_size))
        assert out.visible.shape == out.visible_mean.shape == (0, 7)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("num_rows", [1, 31, 32, 33, 101])  # 101 rows are 4 blocks: the fifth worker has none
def test_workers_draw_the_rows_that_one_worker_draws(world_size: int, num_rows: int) -> None:
    rbm, start = some_rbm("gaussian"), some_start("gaussian")
    alone = draw_samples(rbm, start, SHORT, num_rows, 5)
    shares = [draw_samples(rbm, start, SHORT, num_rows, 5, LoneWorker(r, world_size)) for r in range(world_size)]
    assert torch.equal(torch.cat([s.visible for s in shares]), alone.visible)
    assert torch.equal(torch.cat([s.visible_mean for s in shares]), alone.visible_mean)


def test_a_block_depends_on_its_number_and_the_seed_alone() -> None:
    """Whole blocks of 32: more rows only add blocks."""
    rbm, start = some_rbm("bernoulli"), some_start("bernoulli")
    few, many = (draw_samples(rbm, start, SHORT, n * ROWS_PER_BLOCK, 6).visible for n in (2, 5))
    assert torch.equal(few, many[: len(few)])
    assert not torch.equal(many[:32], many[32:64])  # blocks have streams of their own


def test_protocols_have_streams_of_their_own() -> None:
    rbm, start = some_rbm("gaussian"), some_start("gaussian")
    other = SHORT._replace(name="another")
    assert not torch.equal(draw_samples(rbm, start, SHORT, 8, 7).visible, draw_samples(rbm, start, other, 8, 7).visible)


def test_the_protocols_are_those_of_the_reports() -> None:
    assert ROWS_PER_BLOCK == 32  # which generator draws which row
    assert FRESH == Protocol("fresh", (DrivenGibbs(GammaProcess(0.0, 0.0), 100),))
    assert DRIVEN.stages[0] == DrivenGibbs(GammaProcess(0.95, 0.9), 100, min_beta=1e-3)
    assert DRIVEN.stages[1] == DrivenGibbs(GammaProcess(0.0, 0.0), 5)


@KINDS
def test_wide_starts_have_the_moments_of_the_data(kind: str) -> None:
    rbm, start, rows = some_rbm(kind), some_start(kind), 40_000
    chains = start.draw(rbm, rows, stream(0, "test"))
    v = chains.visible.double()
    std = start.std if kind == "gaussian" else (start.mean * (1 - start.mean)).sqrt()
    assert ((v.mean(0) - start.mean).abs() < 6 * std / rows**0.5).all()  # 6 standard errors: 1e-8 over all
    if kind == "gaussian":
        assert ((v.std(0) - std).abs() < 6 * std / (2 * rows) ** 0.5).all()
    else:
        assert ((v == 0) | (v == 1)).all()
    if kind == "onehot":
        assert (v.sum(1) == 1).all()
    assert chains.hidden.shape == (rows, 5)
    assert (chains.beta == 1).all()


def test_the_start_is_the_moments_of_the_rows() -> None:
    rows = torch.randn(101, 7, generator=torch.Generator().manual_seed(1)) * 3 + 5
    start = WideStart.of(rows)
    torch.testing.assert_close(start.mean, rows.mean(0))
    torch.testing.assert_close(start.std, rows.std(0))
    assert start.mean.dtype == start.std.dtype == torch.float32


def test_the_mean_belongs_to_the_hidden_state_from_which_v_was_drawn() -> None:
    """Then v - E[v | h] is the visible noise alone: mean 0, variance s, uncorrelated with E[v | h]."""
    rbm = some_rbm("gaussian")
    out = draw_samples(rbm, some_start("gaussian"), SHORT, 8000, 8)
    noise = (out.visible - out.visible_mean).double()
    s = rbm.visible.variance().detach().double()
    assert (noise.mean(0).abs() < 6 * (s / 8000).sqrt()).all()
    assert ((noise.var(0) - s).abs() < 6 * s * (2 / 8000) ** 0.5).all()
    centered = out.visible_mean.double() - out.visible_mean.double().mean(0)
    assert ((noise * centered).mean(0).abs() < 6 * (noise * centered).std(0) / 8000**0.5).all()

"""Driven Gibbs on a CUDA device as few launches: all sweeps of an update are one graph of Triton kernels (sweep_kernels.py).

Temperatures are Algorithm 1 in another exact form: with nu = 1 / Var and c = (1 - phi) Var, z ~ Poisson(beta phi / c) and
beta' ~ Gamma(nu + z, c) say that 2 beta' / c is noncentral chi-squared with 2 nu degrees of freedom and noncentrality
2 beta phi / c, that is

    beta' = c / 2 [(n + sqrt(2 beta phi / c))^2 + 2 g],    n ~ N(0, 1),  g ~ Gamma(nu - 1/2, 1),

so all draws of an update are made at once, whatever beta does. The torch path (gibbs.py, driven.py) is the reference; the two
agree in law, not in bits.
"""

import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.comm import Comm
from pipeline.config import SamplerConfig
from pipeline.device.graphs import Graphs
from pipeline.models.rbm import RBM, Couplings
from pipeline.models.units import Bernoulli, Gaussian
from pipeline.samplers.driven import DrivenGibbs
from pipeline.samplers.gibbs import ChainState
from pipeline.streams import stream_seed
from pipeline.training.chains import Chains, Start

if importlib.util.find_spec("triton"):
    import triton

    from pipeline.fused import sweep_kernels as kernels


Last = tuple[Tensor | None, Tensor | None]
"""Places in float32 for the hidden and visible states of an update's last Gibbs step."""


@dataclass(frozen=True)
class Tile:
    """The part of a product that a program computes: rows x cols sums, `depth` terms at a time; warps, and loads in flight."""

    rows: int
    cols: int
    depth: int
    warps: int
    stages: int

    def fits(self, rows: int, cols: int, depth: int) -> bool:
        """True when the sizes are multiples of the tile's, so that no masks are needed."""
        return rows % self.rows == 0 and cols % self.cols == 0 and depth % self.depth == 0


def choose_tile(num_rows: int, precision: torch.dtype) -> Tile:
    """The fastest at 1024-512 on an H100, of those in benchmarks/gpu_tiles.py."""
    if num_rows <= 1024:
        return Tile(16, 32, 256, 4, 3) if precision == torch.bfloat16 else Tile(16, 32, 128, 4, 3)
    return Tile(64, 128, 64, 4, 4) if precision == torch.bfloat16 else Tile(128, 64, 32, 4, 3)


def can_fuse(rbm: RBM, device: torch.device | str) -> bool:
    """True on a CUDA device with triton, for float32, Bernoulli hidden and Bernoulli or Gaussian visible units."""
    there = torch.device(device).type == "cuda" and importlib.util.find_spec("triton") is not None
    kinds = isinstance(rbm.hidden, Bernoulli) and isinstance(rbm.visible, Bernoulli | Gaussian)
    return there and kinds and rbm.weights.dtype == torch.float32


class FusedGibbs:
    """`sampler`'s sweeps of M particles that stay in buffers of this object; see the module's docstring."""

    def __init__(
        self,
        rbm: RBM,
        sampler: DrivenGibbs,
        num_rows: int,
        first_particle: int,
        seed: int,
        precision: torch.dtype = torch.float32,
        statistics_sweeps: int = 0,
        statistics: Tensor | None = None,
        graph: bool = True,
        tile: Tile | None = None,
    ):
        """Make the buffers.

        Args:
            rbm: the model; its parameters are read again, where they lie, in every update.
            sampler: process and number of sweeps.
            num_rows: M, particles of this worker.
            first_particle: global index of the first.
            seed: key of all random numbers, in [0, 2^63).
            precision: of the products' operands, float32 or bfloat16; they are added up in float32. A float32 product is three
                of tensor cores' tf32, which together keep float32's digits.
            statistics_sweeps: sweeps at beta = 1 of a copy of the chains after those.
            statistics: where the visible states that enter the statistics go [M, V], float32; default: a buffer of its own.
            graph: `sweep` captures the launches and replays them; needs a CUDA device.
            tile: of a launch; default: choose_tile.
        """
        self.rbm, self.sampler, self.first, self.seed = rbm, sampler, first_particle, seed
        self.graphs = Graphs(graph)
        self.precision, self.statistics_sweeps = precision, statistics_sweeps
        (num_visible, num_hidden), device = rbm.weights.shape, rbm.weights.device

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.visible = buffer(num_rows, num_visible, dtype=precision)
        self.hidden = buffer(num_rows, num_hidden, dtype=precision)
        self.statistics = buffer(num_rows, num_visible) if statistics is None else statistics
        self.betas = torch.ones(sampler.num_sweeps + 1, num_rows, device=device)
        """Those before the first sweep, then those of each."""
        self.chains = ChainState(
            buffer(num_rows, num_visible) if statistics_sweeps else self.statistics,
            buffer(num_rows, num_hidden),
            self.betas[0][:, None],
        )
        """The present chains, views of the buffers."""
        self.copies = [buffer(num_rows, n, dtype=precision) for n in (num_visible, num_hidden) if statistics_sweeps]
        self.draws = [buffer(sampler.num_sweeps, num_rows) for _ in range(2)]
        self.ones = torch.ones(num_rows, device=device)
        self.to_hidden = buffer(num_hidden, num_visible, dtype=precision)
        self.to_visible = buffer(num_visible, num_hidden, dtype=precision)
        self.hidden_bias, self.visible_bias, self.std = buffer(num_hidden), buffer(num_visible), buffer(num_visible)
        rounded = precision != torch.float32
        self.exact_to_hidden = buffer(num_hidden, num_visible) if rounded else self.to_hidden
        self.exact_hidden_bias = buffer(num_hidden) if rounded else self.hidden_bias
        self.step = buffer(1, dtype=torch.int32)
        self.tile = tile or choose_tile(num_rows, precision)

    @torch.no_grad()
    def hold(self, chains: list[ChainState]) -> list[ChainState]:
        """Move the chains of all blocks into the buffers; returns views of these, which every update moves."""
        together = ChainState(*(torch.cat(columns) for columns in zip(*chains)))
        self.visible.copy_(together.visible)
        for mine, given in zip(self.chains, together):
            mine.copy_(given)
        rows = [len(block.beta) for block in chains]
        return [ChainState(*parts) for parts in zip(*(column.split(rows) for column in self.chains))]

    @torch.no_grad()
    def sweep(self, step: int) -> Tensor:
        """Make the sweeps of update `step`; returns the visible states [M, V] for the statistics, valid until the next."""
        self.step.fill_(step)
        self.graphs("sweeps", self.launch)
        return self.statistics

    @torch.no_grad()
    def launch(self) -> None:
        """Read the parameters, move `chains` by the sweeps of the update in `step`, and fill `statistics`."""
        self._fold()
        process, sweeps, rows = self.sampler.process, self.sampler.num_sweeps, len(self.visible)
        if process.std:
            shape = process.std**-2 - 0.5
            kernels.temperature_draws[(triton.cdiv(rows, 128), sweeps)](
                *self.draws, self.step, rows, self.first, self.seed, shape, BOOST=shape < 1, B=128
            )
        for sweep in range(sweeps):
            last: Last = (self.chains.hidden, self.chains.visible) if sweep == sweeps - 1 else (None, None)
            self._sweep(sweep, self.visible, self.visible, self.hidden, process.std > 0, last)
        if process.std:
            self.betas[0].copy_(self.betas[sweeps])
        visible = self.visible
        for sweep in range(self.statistics_sweeps):
            last = (None, self.statistics if sweep == self.statistics_sweeps - 1 else None)
            visible_copy, hidden_copy = self.copies
            self._sweep(sweeps + sweep, visible, visible_copy, hidden_copy, False, last)
            visible = visible_copy

    def _fold(self) -> None:
        rbm, size = self.rbm, 16
        v, h = rbm.visible, rbm.hidden
        (num_visible, num_hidden), gaussian = rbm.weights.shape, isinstance(v, Gaussian)
        programs = [triton.cdiv(n, size) for n in (num_hidden, num_visible)]
        kernels.fold[(sum(programs),)](
            rbm.weights, v.log_variance if gaussian else v.bias, v.offset, h.offset, v.bias, h.bias,
            self.to_hidden, self.to_visible, self.hidden_bias, self.visible_bias, self.std,
            self.exact_to_hidden, self.exact_hidden_bias, num_visible, num_hidden, programs[0],
            GAUSSIAN=gaussian, ROUNDED=self.precision != torch.float32, BN=size, BK=128, num_warps=4,
        )  # fmt: skip

    def _sweep(
        self,
        sweep: int,
        source: Tensor,
        visible: Tensor,
        hidden: Tensor,
        drift: bool,
        last: Last,
    ) -> None:
        """Draw h from `source`, then v, which may be `source`; each in float32, too, where `last` names a place.

        At beta = 1 unless temperatures drift.
        """
        k = self.sampler.num_sweeps
        before, after = (self.betas[sweep], self.betas[sweep + 1]) if drift else (self.ones, self.ones)
        draws = [draw[min(sweep, k - 1)] for draw in self.draws]
        to_hidden, to_visible = (self.to_hidden, self.hidden_bias), (self.to_visible, self.visible_bias)
        self._half(2 * sweep, source, *to_hidden, hidden, last[0], [before, *draws, after], drift)
        self._half(2 * sweep + 1, hidden, *to_visible, visible, last[1], [after, *draws, after], False)

    def _half(
        self,
        half: int,
        x: Tensor,
        weights: Tensor,
        bias: Tensor,
        out: Tensor,
        last: Tensor | None,
        temperatures: list[Tensor],
        drift: bool,
    ) -> None:
        (rows, depth), cols, tile = x.shape, len(weights), self.tile
        process = self.sampler.process
        c = (1 - process.momentum) * process.std**2
        kernels.half_sweep[(triton.cdiv(rows, tile.rows), triton.cdiv(cols, tile.cols))](
            x, weights, bias, self.std, *temperatures, out, out if last is None else last, self.step,
            rows, cols, depth, self.first, half, self.seed, self.sampler.min_beta,
            c / 2, 2 * process.momentum / c if c else 0.0,
            GAUSSIAN=bool(half % 2) and isinstance(self.rbm.visible, Gaussian), DRIFT=drift, LAST=last is not None,
            PRECISION=operand_form(x.dtype), EVEN=tile.fits(rows, cols, depth), APPROXIMATE=x.device.type == "cuda",
            BM=tile.rows, BN=tile.cols, BK=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip


class FusedChains(Chains):
    """Chains that stay in the buffers of a FusedGibbs; a worker has at least one."""

    def __init__(
        self,
        rbm: RBM,
        sampler: DrivenGibbs,
        config: SamplerConfig,
        start: Start,
        seed: int,
        comm: Comm,
        operands: torch.dtype,
        data_rows: int = 0,
    ):
        """See Chains.

        Args:
            rbm: see Chains, as all others not named here.
            sampler: see Chains.
            config: see Chains.
            start: see Chains.
            seed: see Chains.
            comm: see Chains.
            operands: of the products, float32 or bfloat16.
            data_rows: B, for which `rows` has room before the M visible states that enter the statistics.
        """
        super().__init__(rbm, sampler, config, start, seed, comm)
        num_chains, first = (sum(self.block_rows[b] for b in blocks) for blocks in (self.blocks, range(self.blocks[0])))
        self.rows = rbm.weights.new_zeros(data_rows + num_chains, rbm.config.num_visible)
        """[B + M, V]"""
        self.gibbs = FusedGibbs(
            rbm, sampler, num_chains, first, stream_seed(seed, "fused sweeps"), operands, config.statistics_sweeps,
            statistics=self.rows[data_rows:], graph=comm.device.type == "cuda",
        )  # fmt: skip
        self.states = self.gibbs.hold(self.states)

    def advance(self, step: int, couplings: Couplings) -> list[Tensor]:
        """See Chains; the kernels fold the couplings themselves."""
        # copies: the buffer is the next step's
        return [part.clone() for part in self.gibbs.sweep(step).split([len(state.beta) for state in self.states])]

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See Chains. All graphs are made anew: a checkpoint brings new tensors of the optimizer, too."""
        super().load_state(state)
        self.gibbs.graphs.forget()
        self.states = self.gibbs.hold(self.states)


def operand_form(precision: torch.dtype) -> str:
    """Triton's precision of a product with operands of this type."""
    return "ieee" if precision == torch.bfloat16 else "tf32x3"

"""Driven Gibbs on a CUDA device as few launches: all sweeps of an update are one graph of Triton kernels (fused_kernels.py).

Temperatures are Algorithm 1 in another exact form: with nu = 1 / Var and c = (1 - phi) Var, z ~ Poisson(beta phi / c) and
beta' ~ Gamma(nu + z, c) say that 2 beta' / c is noncentral chi-squared with 2 nu degrees of freedom and noncentrality
2 beta phi / c, that is

    beta' = c / 2 [(n + sqrt(2 beta phi / c))^2 + 2 g],    n ~ N(0, 1),  g ~ Gamma(nu - 1/2, 1),

so all draws of an update are made at once, whatever beta does. The torch path (gibbs.py, driven.py) is the reference; the two
agree in law, not in bits.
"""

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.models.rbm import RBM
from pipeline.models.units import Bernoulli, Gaussian
from pipeline.samplers.driven import DrivenGibbs
from pipeline.samplers.gibbs import ChainState
from pipeline.streams import Random, normal_, standard_gamma

if importlib.util.find_spec("triton"):
    import triton

    from pipeline.samplers import fused_kernels as kernels


@dataclass(frozen=True)
class Tile:
    """What one program of `half_sweep` computes: rows x cols sums, `depth` terms at a time; warps, and loads in flight."""

    rows: int
    cols: int
    depth: int
    warps: int
    stages: int


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
        graph: bool = True,
        tile: Tile | None = None,
    ):
        """Make the buffers.

        Args:
            rbm: the model; its parameters are read again, where they lie, at every `run`.
            sampler: process and number of sweeps.
            num_rows: M, particles of this worker.
            first_particle: global index of the first.
            seed: key of all random numbers but the temperatures', in [0, 2^63).
            precision: of the products' operands, float32 or bfloat16; they are added up in float32. A float32 product is three
                of tensor cores' tf32, which together keep float32's digits.
            graph: capture the launches once and replay them; needs a CUDA device.
            tile: of a launch; default: choose_tile.
        """
        self.rbm, self.sampler, self.first, self.seed, self.graph = rbm, sampler, first_particle, seed, graph
        (num_visible, num_hidden), device = rbm.weights.shape, rbm.weights.device

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.visible = buffer(num_rows, num_visible, dtype=precision)
        self.hidden = buffer(num_rows, num_hidden, dtype=precision)
        self.last = buffer(num_rows, num_visible)
        """The visible states after the last sweep, in float32."""
        self.beta = torch.ones(num_rows, device=device)
        self.betas = torch.ones(sampler.num_sweeps, num_rows, device=device)
        self.draws = [buffer(num_rows, sampler.num_sweeps) for _ in range(2)]
        self.shape = torch.full_like(self.draws[1], sampler.process.std**-2 - 0.5 if sampler.process.std else 1.0)
        self.to_hidden = buffer(num_hidden, num_visible, dtype=precision)
        self.to_visible = buffer(num_visible, num_hidden, dtype=precision)
        self.hidden_bias, self.visible_bias, self.std = buffer(num_hidden), buffer(num_visible), buffer(num_visible)
        self.step = buffer(1, dtype=torch.int32)
        self.tile = tile or choose_tile(num_rows, precision)
        self._captured: Any = None

    @torch.no_grad()
    def run(self, chains: ChainState, random: Random, step: int) -> ChainState:
        """The chains after the sweeps of update `step`; `random` draws what the temperatures need. Returns copies."""
        self.visible.copy_(chains.visible)
        self.step.fill_(step)
        process = self.sampler.process
        if process.std:
            self.beta.copy_(chains.beta[:, 0])
            normal_(self.draws[0], random)
            self.draws[1].copy_(standard_gamma(self.shape, random))
        if not self.graph:
            self._launch()
        elif self._captured is None:
            self._capture()
        else:
            self._captured.replay()
        beta = self.betas[-1][:, None].clone() if process.std else chains.beta.clone()
        return ChainState(self.last.clone(), self.hidden.to(torch.float32, copy=True), beta)

    def _capture(self) -> None:
        """Run once, which compiles the kernels, and once more into a graph, from the same states."""
        start = self.visible.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._launch()
        torch.cuda.current_stream().wait_stream(side)
        self.visible.copy_(start)
        self._captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._captured, capture_error_mode="thread_local"):  # nccl's threads may be at work
            self._launch()
        self._captured.replay()

    def _read_parameters(self) -> None:
        couplings = self.rbm.couplings()
        self.to_hidden.copy_(couplings.to_hidden.T)
        self.to_visible.copy_(couplings.to_visible.T)
        self.hidden_bias.copy_(couplings.hidden_bias)
        self.visible_bias.copy_(couplings.visible_bias)
        if self.to_hidden.dtype != torch.float32:  # offsets fold in with the weights that the products use
            self.hidden_bias.add_(self.rbm.visible.offset @ (couplings.to_hidden - self.to_hidden.float().T))
            self.visible_bias.add_(self.rbm.hidden.offset @ (couplings.to_visible - self.to_visible.float().T))
        variance = self.rbm.visible.variance()
        if variance is not None:
            self.std.copy_(variance.sqrt())

    def _launch(self) -> None:
        self._read_parameters()
        process, sweeps, rows = self.sampler.process, self.sampler.num_sweeps, len(self.visible)
        if process.std:
            c = (1 - process.momentum) * process.std**2
            pull = 2 * process.momentum / c
            kernels.drift[(triton.cdiv(rows, 128),)](
                self.beta, *self.draws, self.betas, rows, sweeps, c / 2, pull, B=128
            )
        for sweep in range(sweeps):
            towards_hidden = (self.visible, self.to_hidden, self.hidden_bias, self.hidden, self.hidden)
            self._launch_half(*towards_hidden, 2 * sweep, False, False)
            towards_visible = (self.hidden, self.to_visible, self.visible_bias, self.visible, self.last)
            gaussian = isinstance(self.rbm.visible, Gaussian)
            self._launch_half(*towards_visible, 2 * sweep + 1, gaussian, sweep == sweeps - 1)

    def _launch_half(
        self,
        x: Tensor,
        weights: Tensor,
        bias: Tensor,
        out: Tensor,
        last: Tensor,
        half: int,
        gaussian: bool,
        is_last: bool,
    ) -> None:
        (rows, depth), cols, tile = x.shape, len(weights), self.tile
        even = rows % tile.rows == 0 and cols % tile.cols == 0 and depth % tile.depth == 0
        kernels.half_sweep[(triton.cdiv(rows, tile.rows), triton.cdiv(cols, tile.cols))](
            x, weights, bias, self.std, self.betas[half // 2], out, last, self.step, rows, cols, depth,
            self.first, half, self.seed, self.sampler.min_beta,
            GAUSSIAN=gaussian, LAST=is_last, PRECISION="ieee" if x.dtype == torch.bfloat16 else "tf32x3", EVEN=even,
            APPROXIMATE=self.graph,
            BM=tile.rows, BN=tile.cols, BK=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

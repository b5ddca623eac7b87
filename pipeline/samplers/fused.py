"""Driven Gibbs on a CUDA device as few launches: each half sweep is one Triton kernel, the k sweeps of an update one graph.

A half sweep is product, bias, beta, sigmoid or noise, comparison, in one kernel. Its random numbers are Philox of (seed; unit,
particle, half sweep, step): they belong to the particle, wherever it lies, and need no state. Temperatures are Algorithm 1 in
another exact form: with nu = 1 / Var and c = (1 - phi) Var, z ~ Poisson(beta phi / c) and beta' ~ Gamma(nu + z, c) say that
2 beta' / c is noncentral chi-squared with 2 nu degrees of freedom and noncentrality 2 beta phi / c, that is

    beta' = c / 2 [(n + sqrt(2 beta phi / c))^2 + 2 g],    n ~ N(0, 1),  g ~ Gamma(nu - 1/2, 1),

so all draws of an update are made at once, whatever beta does. The torch path (gibbs.py, driven.py) is the reference; the two
agree in law, not in bits. Only this file imports triton.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from pipeline.models.rbm import RBM, Couplings
from pipeline.models.units import Bernoulli, Gaussian
from pipeline.samplers.driven import DrivenGibbs
from pipeline.samplers.gibbs import ChainState
from pipeline.streams import Random, normal_, standard_gamma

if importlib.util.find_spec("triton"):
    import triton
    import triton.language as tl

    @triton.jit
    def _half_sweep(
        x, w, bias, scale, beta, out, step, M, N, K, stride_k, stride_n, first, half, seed, min_beta,
        GAUSSIAN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        """`out` [M, N] ~ p(. | x) of one layer for states x [M, K]; total = bias + x @ w."""
        rows = tl.program_id(0) * BM + tl.arange(0, BM)
        cols = tl.program_id(1) * BN + tl.arange(0, BN)
        total = tl.zeros((BM, BN), tl.float32)
        for start in range(0, K, BK):
            inner = start + tl.arange(0, BK)
            a = tl.load(
                x + rows[:, None] * K + inner[None, :], mask=(rows[:, None] < M) & (inner[None, :] < K), other=0.0
            )
            b = tl.load(
                w + inner[:, None] * stride_k + cols[None, :] * stride_n,
                mask=(inner[:, None] < K) & (cols[None, :] < N),
                other=0.0,
            )
            total = tl.dot(a.to(b.dtype), b, total, input_precision="ieee")
        total += tl.load(bias + cols, mask=cols < N, other=0.0)[None, :]
        used = tl.maximum(tl.load(beta + rows, mask=rows < M, other=1.0), min_beta)[:, None]
        zero = tl.zeros((BM, BN), tl.int32)
        unit, particle = zero + cols[None, :], zero + rows[:, None] + first
        r0, r1, _, _ = tl.philox(seed, unit, particle, zero + half, zero + tl.load(step))
        u = tl.uint_to_uniform_float(r0)
        if GAUSSIAN:
            radius = tl.sqrt(-2.0 * tl.log(tl.maximum(u, 1e-10)))
            noise = radius * tl.cos(6.283185307179586 * tl.uint_to_uniform_float(r1))
            drawn = total + noise * tl.load(scale + cols, mask=cols < N, other=0.0)[None, :] / tl.sqrt(used)
        else:
            drawn = (u < tl.sigmoid(total * used)).to(tl.float32)
        tl.store(out + rows[:, None] * N + cols[None, :], drawn, mask=(rows[:, None] < M) & (cols[None, :] < N))

    @triton.jit
    def _drift(beta, normal, gamma, out, M, sweeps, half_c, pull, B: tl.constexpr):
        """`out` [sweeps, M]: the temperatures of each sweep, from beta [M] and draws [sweeps, M]."""
        rows = tl.program_id(0) * B + tl.arange(0, B)
        inside = rows < M
        value = tl.load(beta + rows, mask=inside, other=1.0)
        for sweep in range(sweeps):
            n = tl.load(normal + sweep * M + rows, mask=inside, other=0.0) + tl.sqrt(pull * value)
            value = half_c * (n * n + 2.0 * tl.load(gamma + sweep * M + rows, mask=inside, other=0.0))
            tl.store(out + sweep * M + rows, value, mask=inside)


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
    ):
        """Make the buffers.

        Args:
            rbm: the model; its parameters are read again at every `run`.
            sampler: process and number of sweeps.
            num_rows: M, particles of this worker.
            first_particle: global index of the first.
            seed: key of all random numbers but the temperatures', in [0, 2^63).
            precision: of the products' operands, float32 or bfloat16; they are added up in float32.
            graph: capture the launches once and replay them; needs a CUDA device.
        """
        self.rbm, self.sampler, self.first, self.seed, self.graph = rbm, sampler, first_particle, seed, graph
        (num_visible, num_hidden), device = rbm.weights.shape, rbm.weights.device

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.visible, self.hidden = buffer(num_rows, num_visible), buffer(num_rows, num_hidden)
        self.beta = torch.ones(num_rows, device=device)
        self.betas = torch.ones(sampler.num_sweeps, num_rows, device=device)
        self.draws = [buffer(sampler.num_sweeps, num_rows) for _ in range(2)]
        self.to_hidden = buffer(num_visible, num_hidden, dtype=precision)
        self.to_visible = buffer(num_visible, num_hidden, dtype=precision)
        """W / s_h [V, H]; read along its other side."""
        self.hidden_bias, self.visible_bias, self.std = buffer(num_hidden), buffer(num_visible), buffer(num_visible)
        self.step = buffer(1, dtype=torch.int32)
        self._captured: Any = None

    @torch.no_grad()
    def run(self, chains: ChainState, random: Random, couplings: Couplings, step: int) -> ChainState:
        """The chains after the sweeps of update `step`; `random` draws what the temperatures need. Returns copies."""
        self.visible.copy_(chains.visible)
        self.to_hidden.copy_(couplings.to_hidden)
        self.to_visible.copy_(couplings.to_visible.T)
        self.hidden_bias.copy_(couplings.hidden_bias)
        self.visible_bias.copy_(couplings.visible_bias)
        if self.to_hidden.dtype != torch.float32:  # offsets fold in with the weights that the products use
            self.hidden_bias.add_(self.rbm.visible.offset @ (couplings.to_hidden - self.to_hidden.float()))
            self.visible_bias.add_(self.rbm.hidden.offset @ (couplings.to_visible - self.to_visible.float().T))
        variance = self.rbm.visible.variance()
        if variance is not None:
            self.std.copy_(variance.sqrt())
        self.step.fill_(step)
        process = self.sampler.process
        if process.std:
            self.beta.copy_(chains.beta[:, 0])
            # rows of particles, since random numbers belong to blocks of them
            shape = torch.full(
                (len(self.beta), self.sampler.num_sweeps), process.std**-2 - 0.5, device=self.beta.device
            )
            self.draws[0].copy_(normal_(torch.empty_like(shape), random).T)
            self.draws[1].copy_(standard_gamma(shape, random).T)
        if not self.graph:
            self._launch()
        elif self._captured is None:
            self._capture()
        else:
            self._captured.replay()
        beta = self.betas[-1][:, None].clone() if process.std else chains.beta.clone()
        return ChainState(self.visible.clone(), self.hidden.clone(), beta)

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

    def _launch(self) -> None:
        rows, (num_visible, num_hidden) = len(self.visible), self.rbm.weights.shape
        process = self.sampler.process
        if process.std:
            c = (1 - process.momentum) * process.std**2
            _drift[(triton.cdiv(rows, 128),)](
                self.beta,
                *self.draws,
                self.betas,
                rows,
                self.sampler.num_sweeps,
                c / 2,
                2 * process.momentum / c,
                B=128,
            )
        gaussian = isinstance(self.rbm.visible, Gaussian)
        tile = (
            {"BM": 16, "BN": 32, "BK": 64} if rows <= 1024 else {"BM": 64, "BN": 64, "BK": 32}
        )  # not tuned on a GPU yet
        for sweep in range(self.sampler.num_sweeps):
            rest = (self.seed, self.sampler.min_beta)
            first, half = self.first, 2 * sweep
            _half_sweep[(triton.cdiv(rows, tile["BM"]), triton.cdiv(num_hidden, tile["BN"]))](
                self.visible, self.to_hidden, self.hidden_bias, self.std, self.betas[sweep], self.hidden, self.step,
                rows, num_hidden, num_visible, num_hidden, 1, first, half, *rest, GAUSSIAN=False, **tile,
            )  # fmt: skip
            _half_sweep[(triton.cdiv(rows, tile["BM"]), triton.cdiv(num_visible, tile["BN"]))](
                self.hidden, self.to_visible, self.visible_bias, self.std, self.betas[sweep], self.visible, self.step,
                rows, num_visible, num_hidden, 1, num_hidden, first, half + 1, *rest, GAUSSIAN=gaussian, **tile,
            )  # fmt: skip

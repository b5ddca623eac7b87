"""The cost model's rates and links on this machine, measured: kernels of a sweep and an update, and gloo's collectives.

No update of training enters. Kernels run in all workers of a group at once, so that they share caches and memory as the
workers of a run do; they are timed by the processor's clock, which on a core of one's own is the wall's. Collectives wait
for others and are timed by the wall's.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.cost_model import BLOCK_BYTES, Rates
from benchmarks.links import Link
from pipeline.comm import Comm, snap_to_grid
from pipeline.models.units import Bernoulli, Gaussian
from pipeline.samplers.driven import GammaProcess

PRODUCT_ROWS = (32, 128, 512)
"""Rows of the products from which the rate and the time of a call are fitted."""
ROWS, OUTER_ROWS, MEMORY_ROWS = 128, 64, 512
SUM_SIZES = (2**12, 2**16, 2**19, 2**22, 2**23)
GATHER_SIZES = (2**8, 2**12, 2**16, 2**18, 2**20)
"""Bytes that each worker puts into a collective."""


@functools.cache
def kernels(visible: int, hidden: int) -> dict[str, tuple[Callable[[], Any], float]]:
    """Name -> (a call, how many units of work it does); the names are those of Rates, and `product ROWS`."""
    generator = torch.Generator().manual_seed(0)
    v, h = torch.randn(max(PRODUCT_ROWS), visible), torch.rand(max(PRODUCT_ROWS), hidden)
    weights, a, b = torch.randn(visible, hidden), torch.zeros(visible), torch.zeros(hidden)
    gaussian, bernoulli = Gaussian(visible).requires_grad_(False), Bernoulli(hidden).requires_grad_(False)
    beta, field_v, field_h = torch.ones(ROWS, 1), torch.zeros(ROWS, visible), torch.zeros(ROWS, hidden)
    total, partial = torch.zeros(visible, hidden, dtype=torch.float64), torch.zeros(visible, hidden)
    distances = torch.rand(ROWS, MEMORY_ROWS)
    process = GammaProcess(0.95, 0.9)

    def both_products(rows: int) -> None:
        torch.addmm(b, v[:rows], weights)
        torch.addmm(a, h[:rows], weights.T)

    return {
        **{
            f"product {rows}": (functools.partial(both_products, rows), 4.0 * rows * visible * hidden)
            for rows in PRODUCT_ROWS
        },
        "visible_draws": (lambda: gaussian.sample_(field_v, beta, generator), ROWS * visible),
        "hidden_draws": (lambda: bernoulli.sample_(field_h, beta, generator), ROWS * hidden),
        "beta_draws": (lambda: process.step(beta, generator), ROWS),
        "outer_flops": (lambda: v[:OUTER_ROWS].T @ h[:OUTER_ROWS], 2.0 * OUTER_ROWS * visible * hidden),
        "bytes": (lambda: total.add_(snap_to_grid(partial)), float(BLOCK_BYTES * partial.numel())),
        "selected": (lambda: distances.topk(5, dim=1, largest=False), distances.numel()),
    }


def time_kernels(visible: int, hidden: int, least: float) -> dict[str, float]:
    """Seconds of processor time per call of each kernel on this worker while the others of its group do the same."""
    comm = Comm.current()
    found = {}
    for name, (call, _) in kernels(visible, hidden).items():
        call()
        comm.from_first(0)  # begin together
        start, calls = time.process_time(), 0
        while calls < 3 or time.process_time() - start < least:
            call()
            calls += 1
        found[name] = (time.process_time() - start) / calls
    return found


def time_collectives(least: float) -> dict[str, dict[int, float]]:
    """Seconds of an all-reduce and of an all-gather that is awaited at once, by the bytes that each worker puts in."""
    comm, shares = Comm.current(), [1] * Comm.current().world_size
    calls: dict[tuple[str, int], Callable[[], Any]] = {}
    for size in SUM_SIZES:
        calls["sum", size] = functools.partial(comm.sum_, torch.zeros(size // 8, dtype=torch.float64))
    for size in GATHER_SIZES:
        calls["gather", size] = functools.partial(comm.gather, torch.zeros(1, size, dtype=torch.uint8), shares)
    found: dict[str, dict[int, float]] = {"sum": {}, "gather": {}}
    for (kind, size), call in calls.items():
        call()
        start = time.perf_counter()
        call()
        count = comm.from_first(max(3, round(least / (time.perf_counter() - start))))  # as many on every worker
        start = time.perf_counter()
        for _ in range(count):
            call()
        found[kind][size] = (time.perf_counter() - start) / count
    return found


def rates_of(seconds: dict[str, float], visible: int, hidden: int) -> Rates:
    """Rates from seconds per call of `kernels(visible, hidden)`."""
    work = {name: units for name, (_, units) in kernels(visible, hidden).items()}
    products = [name for name in work if name.startswith("product")]
    pair, per_flop = fit_line([(1.0, work[n]) for n in products], [seconds[n] for n in products])
    others = {n: work[n] / seconds[n] for n in work if n not in products}
    return Rates(flops=1 / per_flop, call=pair / 2, **others)


def link_of(points: Sequence[tuple[float, float, float]]) -> Link:
    """A link from (steps, bytes over a link in all steps, seconds) of collectives."""
    latency, per_byte = fit_line([(steps, size) for steps, size, _ in points], [seconds for *_, seconds in points])
    return Link(latency, 1 / per_byte)


def fit_line(factors: Sequence[tuple[float, float]], seconds: Sequence[float]) -> tuple[float, float]:
    """x, y >= 0 that minimize the sum of squared *relative* errors of x f_0 + y f_1 against `seconds`."""
    scaled = [(f[0] / t, f[1] / t) for f, t in zip(factors, seconds)]
    aa, ab, bb = (sum(f[i] * f[j] for f in scaled) for i, j in ((0, 0), (0, 1), (1, 1)))
    a1, b1 = (sum(f[i] for f in scaled) for i in (0, 1))
    determinant = aa * bb - ab * ab
    x, y = (bb * a1 - ab * b1) / determinant, (aa * b1 - ab * a1) / determinant
    if x < 0:  # the least squares on the boundary
        x, y = 0.0, b1 / bb
    elif y < 0:
        x, y = a1 / aa, 0.0
    return x, y

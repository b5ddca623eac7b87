"""The cost model on 1 to 1024 GPUs, with ASSUMED rates: data-sheet numbers, shares of them, latencies. Nothing is measured.

Data sheets (H100 and H200 SXM): 67 Tflop/s float32, 989 Tflop/s bfloat16 dense, 3.35 and 4.8 TB/s of memory, 80 and 141 GB,
NVLink 900 GB/s in both directions together. A node has 8 GPUs and a 400 Gb/s adapter for each, or one for all. Assumed
beyond them: half of the peak is reached, a kernel starts every 4 us, 2e11 draws and 1e11 distances selected per second,
0.1 ms of an update besides; steps of 1 us within a node and 5 us between nodes; adapters and NVLink at full rate.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.cost_model import Job, Machine, Parts, Rates, critic_bytes, update_seconds
from benchmarks.links import Link

WORKERS = (*range(1, 8), *range(8, 1025, 8))
"""Part of one node, or whole nodes."""
NODE = 8
_REACHED = 0.5
_NVLINK = Link(1e-6, 450e9)
"""One direction."""
_ADAPTER = 50e9
H100_BYTES, H200_BYTES = 80e9, 141e9
WORTH = 1.05
"""A difference that is called one."""


def gpus(peak_flops: float = 67e12, memory_rate: float = 3.35e12, adapters: int = NODE) -> Machine:
    """GPUs in nodes of 8 with `adapters` adapters of 400 Gb/s each: a ring with a channel for each uses all at once."""
    rates = Rates(
        flops=_REACHED * peak_flops,
        outer_flops=_REACHED * peak_flops,
        call=4e-6,
        visible_draws=2e11,
        hidden_draws=2e11,
        beta_draws=1e10,
        bytes=_REACHED * memory_rate,
        selected=1e11,
        fixed=1e-4,
    )
    far = Link(5e-6, adapters * _ADAPTER)
    return Machine(rates, _NVLINK, _NVLINK, far, NODE, overlap=1.0, trees=True, memory_bytes=H100_BYTES)


MACHINES = {
    "float32": gpus(),
    "float32, one adapter per node": gpus(adapters=1),
    "bfloat16 operands": gpus(peak_flops=989e12),
}
ONE_GPU = Job(num_blocks=1)
"""The share of a GPU in weak scaling: 128 chains and data rows, k = 100."""
JOBS = {
    "128 chains per GPU, k = 100": ONE_GPU,
    "128 chains per GPU, k = 10": dataclasses.replace(ONE_GPU, sweeps=10),
    "4 096 chains per GPU, k = 100": dataclasses.replace(ONE_GPU, chains=4096, batch=4096),
}
STRONG = dataclasses.replace(ONE_GPU, chains=65_536, batch=65_536)
"""A fixed global run, one block for each GPU."""


class Turns(NamedTuple):
    """The first number of GPUs at which something happens under weak scaling; None: not up to 1024."""

    exposed: int | None
    """The sweeps no longer hide the gather of a replicated memory."""
    search: int | None
    """The search of a replicated memory takes longer than the sweeps."""
    half: int | None
    """An update with a replicated memory takes twice its time on one GPU."""
    sharded: int | None
    """From here on a sharded memory, its candidates sent to who asked, is faster by WORTH."""
    full: int | None
    """A replicated memory and its search exceed the GPU's memory."""


def curve(job: Job, machine: Machine, workers: tuple[int, ...] = WORKERS) -> dict[int, Parts]:
    """Parts of an update's time under weak scaling; `job` is the share of one."""
    return {n: update_seconds(job.weak(n), n, machine) for n in workers}


def strong_curve(job: Job, machine: Machine, workers: tuple[int, ...] = WORKERS) -> dict[int, Parts]:
    """Parts of an update's time under strong scaling; `job` is global."""
    return {n: update_seconds(dataclasses.replace(job, num_blocks=n), n, machine) for n in workers}


def turning_points(job: Job, machine: Machine) -> Turns:
    """Where a replicated memory stops scaling and what takes over."""
    replicated = curve(job, machine)
    sharded = curve(dataclasses.replace(job, memory="sharded"), machine)
    behind = max(n for n in WORKERS if n == 1 or sum(sharded[n]) * WORTH > sum(replicated[n]))
    alone = sum(replicated[1])
    return Turns(
        exposed=_first(n for n in WORKERS if replicated[n].gather > 0),
        search=_first(n for n in WORKERS if replicated[n].search > replicated[n].sweeps),
        half=_first(n for n in WORKERS if sum(replicated[n]) > 2 * alone),
        sharded=_first(n for n in WORKERS if n > behind),
        full=_first(n for n in WORKERS if critic_bytes(job.weak(n), n).peak > machine.memory_bytes),
    )


def rows_where_search_equals_sweeps(job: Job) -> float:
    """B + M at which a replicated search has as many operations as the sweeps: 2 m n F = 4 k m V H, so n = 2 k V H / F."""
    return 2 * job.sweeps * job.visible  # F = H


def _first(found: Iterator[int]) -> int | None:
    return next(found, None)

"""How long one BEAM update takes on W workers: counted work over rates, counted bytes over links. Nothing is measured here.

M particles and B data rows are global, and the worker that holds most has m and b of them, in `blocks` blocks. V visible, H
hidden units, F features, P parameters, n = B + M rows of the critic's memory. Collectives are in links.py.

The critic's memory is replicated (every worker gathers all n rows, during the next sweeps, and searches its m queries among
them) or sharded (every worker keeps its b + m rows; all M queries are gathered when the sweeps are over, each worker searches
them in its part, and neighbors candidates of each come back and are merged).
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from benchmarks.links import Link, exchange_seconds, gather_seconds, sum_seconds

CANDIDATE_BYTES = 16
"""Of one neighbor that a sharded search reports: its distance and its place in the memory, in float64."""
SCORE_BYTES = 8
"""Of the sum of the particles' scores, in float64."""

# bytes read and written, by what the code does with a number
_PER_PARAMETER = (
    28 + 12 + 8 + 8
)  # Adam; the sum as the gradient; the check of the totals; variances folded into the weights
_FIRST_BLOCK = 28  # a parameter's part of the exact sum, of the first block
BLOCK_BYTES = 68
"""The same of each further block: rounding to the grid and adding."""
_ROW = 4 * 24  # a visible unit of a row of data or particles, in the gradient
_REMEMBER = 4 * 4  # a feature of gathered rows, when they are put together
_SEARCH = 4 * 8  # a feature of the memory in a search, which orders, centers and squares the rows, for each block anew
_NEIGHBOR = 4 * 8  # a feature of a neighbor that was found: its distance is computed from the difference


@dataclass(frozen=True)
class Job:
    """The sizes of a run that decide its speed; all global. Gaussian visible and Bernoulli hidden units."""

    chains: int = 128
    batch: int = 128
    sweeps: int = 100
    """Per update, those for the statistics included."""
    num_blocks: int = 4
    adversary: bool = True
    memory: Literal["replicated", "sharded"] = "replicated"
    candidates: Literal["all-to-all", "all-gather"] = "all-to-all"
    """How a sharded search's candidates travel: each to the worker that asked, or all of them to everybody."""
    wire: Literal["float32", "bfloat16", "bits"] = "float32"
    """Of features between workers."""
    neighbors: int = 5
    visible: int = 1024
    hidden: int = 512

    @property
    def parameters(self) -> int:
        """Weights, both biases, the visible units' log variances."""
        return self.visible * self.hidden + 2 * self.visible + self.hidden

    @property
    def row_bytes(self) -> int:
        """One row of features on the wire; features are hidden activations."""
        return {"float32": 4 * self.hidden, "bfloat16": 2 * self.hidden, "bits": -(-self.hidden // 8)}[self.wire]

    def weak(self, workers: int) -> "Job":
        """The global job of which each of `workers` workers has this one as its share."""
        sizes = {name: workers * getattr(self, name) for name in ("chains", "batch", "num_blocks")}
        return dataclasses.replace(self, **sizes)


class Share(NamedTuple):
    """What the worker with the most work holds."""

    particles: int
    data: int
    blocks: int


def largest_share(job: Job, workers: int) -> Share:
    """The first worker's share: blocks are dealt in order, larger ones first."""
    blocks = -(-job.num_blocks // workers)
    particles, data = (
        blocks * (rows // job.num_blocks) + min(blocks, rows % job.num_blocks) for rows in (job.chains, job.batch)
    )
    return Share(particles, data, blocks)


@dataclass(frozen=True)
class Rates:
    """What one worker does per second, or the seconds that a call takes before it does anything."""

    flops: float
    """Of a product, two per multiplication and addition."""
    outer_flops: float
    """Of the gradient's product, which adds up over rows and whose result is as large as the weights."""
    call: float
    """Seconds of a product besides its operations."""
    visible_draws: float
    """Gaussian units drawn per second from their fields, all passes over them included."""
    hidden_draws: float
    """Bernoulli units, likewise."""
    beta_draws: float
    """Steps of inverse temperatures."""
    bytes: float
    """Read and written in passes over large tensors."""
    selected: float
    """Distances among which the nearest are selected."""
    fixed: float = 0.0
    """Seconds of an update that depend on no size."""


@dataclass(frozen=True)
class Machine:
    """A cluster of equal workers."""

    rates: Rates
    sum_link: Link
    """Of all-reduces within a node."""
    gather_link: Link
    """Of all other collectives within a node."""
    far_link: Link | None = None
    """Between nodes, for both; None: there is one node."""
    node_workers: int = 2**30
    cores: int = 2**30
    """Workers beyond this number take turns: everything takes workers / cores times as long."""
    overlap: float = 1.0
    """Share of the sweeps' time during which gathers go on without slowing them; 0 where the same cores do both."""
    trees: bool = False
    """Whether all-reduces may run along trees."""
    memory_bytes: float = math.inf
    """Of one worker."""

    def link(self, near: Link, workers: int) -> Link:
        """A ring's mean step and its narrowest link: it leaves each node once."""
        if self.far_link is None or workers <= self.node_workers:
            return near
        nodes = math.ceil(workers / self.node_workers)
        latency = (nodes * self.far_link.latency + (workers - nodes) * near.latency) / workers
        return Link(latency, min(near.bandwidth, self.far_link.bandwidth))

    def sum_seconds(self, num_bytes: float, workers: int) -> float:
        """An all-reduce of `num_bytes`."""
        tree = self.sum_link
        if self.far_link is not None and workers > self.node_workers:
            tree = self.far_link
        return sum_seconds(num_bytes, workers, self.link(self.sum_link, workers), tree if self.trees else None)


def bytes_per_update(job: Job, workers: int) -> dict[str, int]:
    """Bytes that a worker puts into each kind of collective, as Comm.traffic counts them; none with one worker.

    A sharded memory's queries are a gather, its candidates an exchange.
    """
    if workers == 1:
        return {}
    share = largest_share(job, workers)
    summed = 8 * job.parameters
    if not job.adversary:
        return {"sum": summed}
    found = {"sum": summed + SCORE_BYTES}
    if job.memory == "replicated":
        return {**found, "gather": job.row_bytes * (share.data + share.particles)}
    queries, reported = job.row_bytes * share.particles, candidate_bytes(job)
    if job.candidates == "all-gather":
        return {**found, "gather": queries + reported}
    return {**found, "gather": queries, "exchange": reported}


def candidate_bytes(job: Job) -> int:
    """What one worker of a sharded search finds: its nearest rows to each of all queries."""
    return CANDIDATE_BYTES * job.neighbors * job.chains


class Parts(NamedTuple):
    """Seconds of one update, in the order of a step; `gather` is what the sweeps do not hide of it."""

    sweeps: float
    gather: float
    gradient: float
    queries: float
    search: float
    scores: float
    sum: float
    parameters: float

    @property
    def critic(self) -> float:
        """What the critic adds."""
        return self.gather + self.queries + self.search + self.scores

    @property
    def own(self) -> float:
        """What a worker spends on its own, with nobody to talk to."""
        return self.sweeps + self.gradient + self.search + self.parameters


def update_seconds(job: Job, workers: int, machine: Machine) -> Parts:
    """Seconds of one update, by part; their sum is the update's."""
    share, rates = largest_share(job, workers), machine.rates
    turns = max(1.0, workers / machine.cores)
    link = machine.link(machine.gather_link, workers)
    product = 2 * job.visible * job.hidden
    drawn = job.visible / rates.visible_draws + job.hidden / rates.hidden_draws + 1 / rates.beta_draws
    sweep = 2 * rates.call + share.particles * (2 * product / rates.flops + drawn)
    sweeps = turns * job.sweeps * sweep
    rows = share.particles + share.data
    # hidden means, W h for the variances' gradient, and the gradient itself
    gradient = 3 * share.blocks * rates.call + product * rows * (2 / rates.flops + 1 / rates.outer_flops)
    passes = job.visible * rows * _ROW + job.parameters * (_FIRST_BLOCK + BLOCK_BYTES * (share.blocks - 1))
    gradient += passes / rates.bytes
    summed = machine.sum_seconds(8 * job.parameters, workers)
    gather = queries = search = scores = 0.0
    if job.adversary:
        scores = machine.sum_seconds(SCORE_BYTES, workers)
        search = search_seconds(job, workers, rates)
        if job.memory == "replicated":
            # data and particles are two gathers
            whole = gather_seconds(job.row_bytes * rows, workers, link) + (workers - 1) * link.latency
            gather = max(0.0, turns * whole - machine.overlap * sweeps) / turns
        else:
            queries = gather_seconds(job.row_bytes * share.particles, workers, link)
            to_all = gather_seconds if job.candidates == "all-gather" else exchange_seconds
            queries += to_all(candidate_bytes(job), workers, link)
    parameters = job.parameters * _PER_PARAMETER / rates.bytes + rates.fixed
    rest = (gather, gradient, queries, search, scores, summed, parameters)
    return Parts(sweeps, *(turns * seconds for seconds in rest))


def search_seconds(job: Job, workers: int, rates: Rates) -> float:
    """Products, passes and selection of one worker's search, and putting a replicated memory together."""
    share, features = largest_share(job, workers), job.hidden
    if job.memory == "replicated":
        queries, rows, searches = share.particles, job.chains + job.batch, share.blocks
        touched = rows * (searches * _SEARCH + _REMEMBER)
        merged = 0
    else:
        queries, rows, searches = job.chains, share.particles + share.data, 1
        touched = rows * _SEARCH + queries * _REMEMBER  # the queries are put together instead
        merged = share.particles * workers * job.neighbors
    touched += share.particles * job.neighbors * _NEIGHBOR
    seconds = searches * rates.call + 2 * queries * rows * features / rates.flops
    return seconds + features * touched / rates.bytes + (queries * rows + merged) / rates.selected


class MemoryBytes(NamedTuple):
    """What the critic takes of a worker's memory."""

    held: float
    """Between updates."""
    peak: float
    """In a search: also copies of the rows, queries of others, and distances."""


def critic_bytes(job: Job, workers: int) -> MemoryBytes:
    """Bytes of one worker's memory that the critic takes; the rest of a run does not grow with the workers."""
    share, row = largest_share(job, workers), 4 * job.hidden
    own = share.particles + share.data
    if job.memory == "replicated":
        rows = job.chains + job.batch
        held = rows * (row + job.row_bytes)  # the memory, and the gather of the next one
        distances = 4 * math.ceil(share.particles / share.blocks) * rows
        return MemoryBytes(held, held + 2 * rows * row + distances)
    held = own * row
    return MemoryBytes(held, held + 2 * own * row + job.chains * (row + job.row_bytes) + 4 * job.chains * own)

"""Nearest-neighbor critics (Eq. 15, 16): how much more often the neighbors of a particle are data than model."""

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.comm import Comm
from pipeline.config import CriticConfig
from pipeline.critics.critic import score_of
from pipeline.critics.faiss_search import MissingFaiss, search_faiss
from pipeline.critics.memory import Memory, class_shares
from pipeline.critics.search import search_torch

Search = Callable[[Tensor, Tensor, int], Tensor]
BACKENDS: dict[str, Search] = {"torch": search_torch, "faiss": search_faiss}

_log = logging.getLogger(__name__)


def _require_rows(config: CriticConfig, rows: int, hide: bool) -> None:
    """Raise ValueError when k neighbors, and one more to hide, are not among `rows` rows."""
    k = config.num_neighbors
    if k + hide > rows:
        own = " besides the chain's own (critic.exclude_own_chain)" if hide else ""
        raise ValueError(f"critic.num_neighbors = {k}{own}, but the memory holds {rows} rows; lower it")


def choose_backend(config: CriticConfig, queries: int, rows: int, features: int, comm: Comm) -> str:
    """Name of the backend for searches of this shape, the same on all workers; `auto` times both on random rows.

    A named backend is tried once, so that a missing faiss is an error at the start (MissingFaiss), not in mid-run.

    Raises:
        ValueError: when a memory of `rows` rows has too few for the neighbors that are asked for.
    """
    _require_rows(config, rows, config.exclude_own_chain)
    generator = torch.Generator(device=comm.device).manual_seed(0)
    x = torch.rand(queries, features, device=comm.device, generator=generator)
    y = torch.rand(rows, features, device=comm.device, generator=generator)
    if config.search != "auto":
        BACKENDS[config.search](x, y, config.num_neighbors)
        return config.search
    seconds = {}
    for name, search in BACKENDS.items():
        try:
            times = []
            for _ in range(7):
                start = time.perf_counter()
                search(x, y, config.num_neighbors).cpu()
                times.append(time.perf_counter() - start)
            seconds[name] = sorted(times)[len(times) // 2]
        except MissingFaiss:
            continue
    names = list(BACKENDS)
    chosen = names[comm.from_first(names.index(min(seconds, key=lambda name: seconds[name])))]
    measured = ", ".join(f"{name} {1e3 * s:.2f} ms" for name, s in seconds.items())
    if comm.is_first:
        _log.info(
            "critic.search = auto: %s (%d queries, %d rows, %d features: %s)", chosen, queries, rows, features, measured
        )
    return chosen


@functools.lru_cache(maxsize=16)
def mixed_order(num_data: int, num_particles: int, device: torch.device) -> Tensor:
    """A fixed order [n] of the memory's rows in which every stretch holds both classes in their proportion.

    Features that are samples of discrete units tie in masses, and a search (faiss always) takes the first rows among
    equals. In the memory's own order these are data: T of two equal distributions came out at +0.2 to +1.
    """
    generator = torch.Generator().manual_seed(0)
    places = [
        (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
        for n in (num_data, num_particles)
    ]
    return torch.cat(places).argsort().to(device)


@functools.lru_cache(maxsize=16)
def mixed_ranks(num_data: int, num_particles: int, device: torch.device) -> Tensor:
    """Place [n] of each row of the memory in the mixed order."""
    order = mixed_order(num_data, num_particles, device)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=device)
    return ranks


def score_neighbors(shares: Tensor, distances: Tensor, config: CriticConfig) -> Tensor:
    """T [q] of the class weights [q, k] (see class_shares) and distances [q, k] of each query's k neighbors.

    p = sum of w_i / n_class(i) over the data neighbors / the same sum over all k neighbors, with w_i = 1 (Eq. 15) or
    1 / (d_i + epsilon) (Eq. 16) and n_class the class's number of rows in the memory; T = 2p - 1, or log 2 + log p.
    """
    if config.weighting == "distance":
        shares = shares / (distances + config.epsilon)
    return score_of(shares.clamp(min=0).sum(1) / shares.abs().sum(1), config)


def distances_to(queries: Tensor, rows: Tensor, which: Tensor) -> Tensor:
    """Euclidean distances [q, k] of queries [q, F] to rows[which], which [q, k].

    From differences: the expansion of the square that searches use is off by more than epsilon for a chain that hardly
    moved.
    """
    return (rows[which] - queries[:, None, :]).square().sum(2).sqrt()


@dataclass
class NeighborCritic:
    """T at query features against a memory, in [-1, 1] (linear form). T is a constant of the gradient: detached."""

    config: CriticConfig
    search: Search
    """One of BACKENDS."""

    def observe(self, memory: Memory, step: int) -> None:
        """Does nothing: the memory is all that is known."""

    @torch.no_grad()
    def score(self, queries: Tensor, memory: Memory, first_particle: int | None = None) -> Tensor:
        """T [q] of each query [q, F]; see score_neighbors. The backend only names the neighbors.

        Args:
            queries: features of particles (or any points).
            memory: of the previous step.
            first_particle: global index of the first query's chain; with `exclude_own_chain`, hides each chain's own
                previous row.

        Raises:
            ValueError: when the memory has fewer rows than neighbors are asked for.
        """
        k, hide = self.config.num_neighbors, self.config.exclude_own_chain and first_particle is not None
        _require_rows(self.config, len(memory.features), hide)
        if len(queries) == 0:
            return queries.new_zeros(0)
        order = mixed_order(memory.num_data, memory.num_particles, memory.features.device)
        rows = order[self.search(queries, memory.features[order], k + hide)]
        if hide:
            assert first_particle is not None
            own = memory.num_data + first_particle + torch.arange(len(queries), device=rows.device)
            # where it stands among the neighbors; not among them: at the farthest's place
            place = torch.where((rows == own[:, None]).any(1), (rows == own[:, None]).int().argmax(1), k)
            columns = torch.arange(k, device=rows.device)
            rows = rows.gather(1, columns + (columns >= place[:, None]))
        shares = class_shares(rows, memory.num_data, memory.num_particles, queries.dtype)
        return score_neighbors(shares, distances_to(queries, memory.features, rows), self.config)

    def state(self) -> dict[str, Tensor]:
        """The search backend, since two of them may break ties differently."""
        return {"backend": torch.tensor(list(BACKENDS.values()).index(self.search))}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Search as before."""
        if "backend" in state:
            self.search = list(BACKENDS.values())[int(state["backend"])]

"""A nearest-neighbor critic whose memory is spread over workers: each searches its own rows for the particles of all.

The k nearest of all rows are among the k nearest of each part, so merging the parts' candidates is exact. Compared with the
replicated memory a worker holds, and gathers, its share alone; but its queries are this step's particles, so nothing of it can
run beside the sweeps, and the number of distances is the same.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.comm import Comm, split_rows
from pipeline.config import CriticConfig
from pipeline.critics.adversary import CRITIC_DOES_NOT_FIT, memory_state, saved_memory
from pipeline.critics.memory import FeatureEncoding, Memory, class_shares
from pipeline.critics.neighbors import BACKENDS, Search, distances_to, mixed_ranks, score_neighbors

_CHUNK = 4096
"""Queries whose differences to their candidates are held at a time."""


class Part(NamedTuple):
    """The rows of one block, in the mixed order."""

    features: Tensor
    """[n, F]"""
    rows: Tensor
    """Place of each in the replicated memory [n]: data row i at i, particle j at num_data + j."""


class ShardedAdversary:
    """Searches are per block, of the same shapes for any number of workers, and so are their bits.

    Scores equal those of the replicated memory, but where float32 cannot tell which of two rows is nearer. Of equally far rows
    the first in the mixed order is taken, as with faiss; torch's search names any of them.
    """

    def __init__(
        self, config: CriticConfig, search: Search, wire: FeatureEncoding, comm: Comm, block_chains: list[int]
    ):
        """Nothing is remembered yet; `block_chains` are the particles of all blocks."""
        self.config, self.search, self.wire, self.comm, self.block_chains = config, search, wire, comm, block_chains
        self.blocks = comm.my_blocks(len(block_chains))
        self.parts: list[Part] | None = None
        self.data_rows: list[int] = []

    def ready(self, step: int) -> bool:
        """See Adversary."""
        return self.parts is not None

    @torch.no_grad()
    def score(self, queries: list[Tensor], block_rows: list[int], own: bool) -> list[Tensor]:
        """See Adversary."""
        k, num_data = self.config.num_neighbors, sum(self.data_rows)
        per_rank = self.comm.rows_per_rank(block_rows)
        mine = torch.cat(queries) if queries else self._no_rows()
        everyone = self.wire.unpack(self.comm.gather(self.wire.pack(mine), per_rank))
        hidden = num_data + torch.arange(len(everyone), device=self.comm.device)
        candidates = self._candidates(everyone, hidden if own and self.config.exclude_own_chain else None)
        received = self.comm.exchange(candidates, per_rank).transpose(0, 1).flatten(1, 2)
        nearest = self._nearest(received, k)
        distances, rows = nearest[..., 0].to(mine.dtype), nearest[..., 1].long()
        shares = class_shares(rows, num_data, sum(self.block_chains), mine.dtype)
        scores = score_neighbors(shares, distances, self.config)
        return list(scores.split([block_rows[b] for b in self.blocks])) if queries else []

    def _candidates(self, queries: Tensor, hidden: Tensor | None) -> Tensor:
        """(distance, row) [q, k, 2] of this worker's rows nearest to each query; row hidden[i] is not seen by query i.

        Float64, which holds both exactly. Places for which this worker has no row are infinitely far.
        """
        assert self.parts is not None
        k = self.config.num_neighbors
        best = queries.new_full((len(queries), k, 2), torch.inf, dtype=torch.float64)
        best[..., 1] = 0
        for features, rows in self.parts:
            found = self.search(queries, features, min(k + (hidden is not None), len(features)))
            far = [distances_to(q, features, f) for q, f in zip(queries.split(_CHUNK), found.split(_CHUNK))]
            distances, places = torch.cat(far).double(), rows[found]
            if hidden is not None:
                distances = distances.masked_fill(places == hidden[:, None], torch.inf)
            best = self._nearest(torch.cat([best, torch.stack([distances, places.double()], 2)], 1), k)
        return best

    def _nearest(self, candidates: Tensor, k: int) -> Tensor:
        """The k nearest [q, k, 2] of candidates [q, n, 2]; the first in the mixed order among equals."""
        ranks = mixed_ranks(sum(self.data_rows), sum(self.block_chains), self.comm.device)
        in_order = _take(candidates, ranks[candidates[..., 1].long()].argsort(1))
        return _take(in_order, in_order[..., 0].argsort(dim=1, stable=True)[:, :k])

    def remember(self, data: list[Tensor], particles: list[Tensor], data_rows: list[int]) -> None:
        """See Adversary."""
        self.data_rows = data_rows
        self.parts = [self._part(block, *rows) for block, rows in zip(self.blocks, zip(data, particles))]

    def _part(self, block: int, data: Tensor, particles: Tensor) -> Part:
        num_data = sum(self.data_rows)
        first_data, first_particle = sum(self.data_rows[:block]), num_data + sum(self.block_chains[:block])
        rows = torch.cat(
            [torch.arange(first, first + len(own)) for first, own in ((first_data, data), (first_particle, particles))]
        ).to(self.comm.device)
        order = mixed_ranks(num_data, sum(self.block_chains), self.comm.device)[rows].argsort()
        return Part(torch.cat([data, particles])[order], rows[order])

    def _whole(self) -> Memory | None:
        """The replicated memory, for a checkpoint."""
        if self.parts is None:
            return None
        in_order = [(part.features[part.rows.argsort()], self.data_rows[b]) for b, part in zip(self.blocks, self.parts)]
        columns = []
        for mine, block_rows in (
            ([rows[:num_data] for rows, num_data in in_order], self.data_rows),
            ([rows[num_data:] for rows, num_data in in_order], self.block_chains),
        ):
            columns.append(self.comm.gather(torch.cat(mine or [self._no_rows()]), self.comm.rows_per_rank(block_rows)))
        return Memory(torch.cat(columns), sum(self.data_rows))

    def state(self) -> dict[str, Tensor]:
        """See Adversary."""
        backend = list(BACKENDS.values()).index(self.search)
        return memory_state(self._whole(), {"backend": torch.tensor(backend)})

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See Adversary."""
        if "critic.backend" in state:
            self.search = list(BACKENDS.values())[int(state["critic.backend"])]
        elif "memory.features" in state:
            raise ValueError(CRITIC_DOES_NOT_FIT)
        memory = saved_memory(state, self.comm.device)
        self.parts = None
        if memory is not None:
            data_rows = split_rows(memory.num_data, len(self.block_chains))
            data = memory.features[: memory.num_data].split(data_rows)
            particles = memory.features[memory.num_data :].split(self.block_chains)
            self.remember([data[b] for b in self.blocks], [particles[b] for b in self.blocks], data_rows)

    def _no_rows(self) -> Tensor:
        return torch.zeros(0, self.wire.num_features, dtype=self.wire.dtype, device=self.comm.device)


def _take(candidates: Tensor, which: Tensor) -> Tensor:
    """Candidates [q, k, 2] at places `which` [q, k] of [q, n, 2]."""
    return candidates.gather(1, which[..., None].expand(-1, -1, 2))

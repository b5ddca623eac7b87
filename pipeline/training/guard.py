"""Guards against diverged updates: all workers stop together, before the parameters change."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.comm import Comm, ExactSum
from pipeline.device.graphs import PendingCopy
from pipeline.training.objective import NonFinite


class Bad(NamedTuple):
    """A quantity that is not finite, or too large."""

    quantity: str
    ranks: Sequence[int] = ()
    """The workers whose own rows were bad."""


class _Watched(NamedTuple):
    step: int
    values: Sequence[Tensor]
    found: PendingCopy


class Guard:
    """Watches every update: checked at once on a CPU; on a GPU, where the host would wait, during the next update."""

    def __init__(self, comm: Comm):
        """Watch nothing yet."""
        self.comm, self.later = comm, comm.device.type != "cpu"
        self._watched: _Watched | None = None

    def watch(self, step: int, values: Sequence[Tensor] = (), now: bool = False) -> None:
        """Check update `step` at once, or with the next `check`.

        Args:
            step: number of the update.
            values: tensors that `look` and `bad` read; kept until the check.
            now: check at once on any device.
        """
        self._watched = _Watched(step, values, PendingCopy(self.look(values)))
        if now or not self.later:
            self.check()

    def check(self) -> None:
        """Raise NonFinite, on all workers together, when the watched update was bad."""
        watched, self._watched = self._watched, None
        if watched is not None and (bad := self.bad(watched.found.get(), watched.values)) is not None:
            raise NonFinite(bad.quantity, watched.step, bad.ranks)

    def look(self, values: Sequence[Tensor]) -> Tensor:
        """The numbers, on the device, from which `bad` decides."""
        raise NotImplementedError

    def bad(self, found: Tensor, values: Sequence[Tensor]) -> Bad | None:
        """The first bad quantity, if there is one, the same on all workers; `found` is on the host."""
        raise NotImplementedError


class SumGuard(Guard):
    """Checks the reduced sums of an update; the watched values are this worker's rows, which tell where it began."""

    def __init__(self, sums: ExactSum, comm: Comm, gradients: Sequence[str], owner: str = ""):
        """Watch `sums`.

        Args:
            sums: of every update.
            comm: this worker's group.
            gradients: names of the sums that are gradients.
            owner: a network's name for the message, with a blank, for objectives of several networks.
        """
        super().__init__(comm)
        self.sums, self.gradients, self.owner = sums, frozenset(gradients), owner

    def look(self, values: Sequence[Tensor]) -> Tensor:
        """See Guard."""
        return self.sums.within_limit()

    def bad(self, found: Tensor, values: Sequence[Tensor]) -> Bad | None:
        """See Guard."""
        name = None if bool(found) else self.sums.first_bad()
        if name is None:
            return None
        finite = all(bool(torch.isfinite(part).all()) for part in values)
        flags = self.comm.gather(torch.tensor([not finite], device=self.comm.device), [1] * self.comm.world_size)
        gradient = "the gradient of " if name in self.gradients else ""
        return Bad(f"{gradient}{self.owner}{name}", flags.nonzero()[:, 0].tolist())

"""How many workers a cluster can hold, machine by machine, and how long it may have room for too few.

Ray waits for machines without a word and without end. Here a wait is told and has a limit. It is a wait of Ray's own all the
same: a cluster that grows on demand starts machines only when somebody asks it for them.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.runs.job import TrainingFailed

WAIT_SECONDS = float(os.environ.get("ELASTIC_WAIT_SECONDS", "3600"))
"""Longest wait for the fewest workers; then the command ends, and the same one goes on from the last checkpoint."""
SAY_SECONDS = 300.0
"""Between two words about a wait."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Need:
    """What a group of workers takes."""

    workers: int
    min_workers: int
    threads: int
    """CPUs of one worker."""
    use_gpu: bool
    """Whether each takes a GPU, too."""

    def __str__(self) -> str:
        return f"{self.threads} CPU{'s' * (self.threads > 1)}{' and a GPU' if self.use_gpu else ''} each"


def count_room(machines: Sequence[dict[str, Any]], threads: int, use_gpu: bool) -> int:
    """Workers that fit on `machines` (as ray.nodes() tells them), busy or not: none is spread over two of them."""
    room = 0
    for machine in machines:
        if machine["Alive"]:
            resources = machine["Resources"]
            fit = int(resources.get("CPU", 0) // threads)
            room += min(fit, int(resources.get("GPU", 0))) if use_gpu else fit
    return room


def room_now(need: Need) -> int:
    """Workers that fit on the connected cluster."""
    import ray

    return count_room(ray.nodes(), need.threads, need.use_gpu)


class RoomWatch:
    """Looks, as often as it is asked, whether the fewest workers have room; says when not, and raises after too long."""

    def __init__(self, need: Need, room: Callable[[], int] | None = None, clock: Callable[[], float] = time.monotonic):
        """`room`: what counts the workers that fit; the connected cluster's unless given."""
        self.need, self.clock = need, clock
        self.room = room or (lambda: room_now(need))
        self.asked = False
        self.since: float | None = None
        """When the present wait began; None: there is room."""
        self.said = 0.0

    def has_room(self) -> bool:
        """Count the machines anew.

        Raises:
            TrainingFailed: the fewest workers have had no room for WAIT_SECONDS.
        """
        room, now, need = self.room(), self.clock(), self.need
        first, self.asked = not self.asked, True
        there = f"the cluster has room for {room} of {need.workers} workers ({need})"
        if room >= need.min_workers:
            if first and room < need.workers:
                _log.warning("%s: training begins with %d, and takes more when they come", there, room)
            elif self.since is not None:
                _log.warning("%s again", there)
            self.since = None
            return True
        new = self.since is None
        since = self.since = now if self.since is None else self.since
        waited = now - since
        if waited >= WAIT_SECONDS:
            raise TrainingFailed(
                f"{there}, and had none for {need.min_workers} in {waited:.0f} s; start more nodes, or ask for fewer "
                "(--workers, --min-workers), and give the same command: it goes on from the last checkpoint"
            )
        if new or now - self.said >= SAY_SECONDS:
            self.said = now
            _log.warning(
                "%s: waiting for %d, for %.0f s at most; start more nodes, or ask for fewer workers (Ctrl-C ends it)",
                *(there, need.min_workers, WAIT_SECONDS - waited),
            )
        return False

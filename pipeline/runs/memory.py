"""Peak memory of this process and all that it started, such as Ray's local servers and workers, while a block runs."""

import threading
from types import TracebackType

import psutil

SAMPLE_SECONDS = 0.5


def resident_bytes() -> int:
    """Resident bytes now, summed over this process and its descendants: what they share, as libraries, counts for each."""
    total, own = 0, psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.Error:  # it has just ended
            continue
    return total


class PeakMemory:
    """`with PeakMemory() as memory: ...`, then `memory.bytes`: the largest of `resident_bytes`, sampled twice a second.

    On a cluster the workers are other machines' processes, and only this process's share is seen.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> "PeakMemory":
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look a last time and end."""
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        self._look()
        while not self._stop.wait(SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        self.bytes = max(self.bytes, resident_bytes())

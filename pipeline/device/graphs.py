"""CUDA graphs of many small kernels, and copies to the host for which it need not wait at once."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class _Held(NamedTuple):
    graph: torch.cuda.CUDAGraph
    result: Any


class Graphs:
    """Computations as graphs, one per key: the first call of a key launches, the second captures, later ones replay.

    A computation with the same key makes the same launches on the same tensors, which it may change, never waits for the device
    and draws no random numbers from generators. The tensors of a result are valid until the next call.
    """

    def __init__(self, graph: bool = True) -> None:
        """With `graph`, which needs a CUDA device; without, every call launches."""
        self.graph = graph
        self._launched: set[Hashable] = set()
        self._held: dict[Hashable, _Held] = {}
        self._pool: Any = None

    def __call__(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Do what `compute` does, and its result."""
        if not self.graph or key not in self._launched:
            # libraries and kernels set themselves up at their first call, which cannot be captured
            self._launched.add(key)
            return compute()
        if key not in self._held:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # nccl's threads may be at work
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = compute()
            self._held[key] = _Held(graph, result)
        held = self._held[key]
        held.graph.replay()
        return held.result

    def forget(self) -> None:
        """Begin anew: tensors that the graphs name have been replaced."""
        self._launched.clear()
        self._held.clear()
        self._pool = None  # one that has lost its graphs cannot be captured into again


class PendingCopy:
    """An asynchronous copy from a device to the host; `get()` waits for it."""

    def __init__(self, value: Tensor):
        self._host, self._arrived = value, None
        if value.device.type == "cuda":
            self._host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._host.copy_(value, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def get(self) -> Tensor:
        """The value, on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host

"""What keeps a CUDA device busy: many small kernels as one graph, and answers for which the host need not wait at once."""

from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class _Captured(NamedTuple):
    inputs: list[Tensor]
    graph: torch.cuda.CUDAGraph
    result: Any


class Captured(Generic[T]):
    """`compute(inputs)` as one graph per key; it may change tensors beside the inputs, the same ones in every call.

    A computation with the same key has inputs of the same shapes, makes the same launches, never waits for the device and draws
    no random numbers. The tensors of a result are valid until the next call.
    """

    def __init__(self) -> None:
        self._held: dict[Hashable, _Captured] = {}
        self._pool: Any = None

    def __call__(self, key: Hashable, compute: Callable[[list[Tensor]], T], inputs: list[Tensor]) -> T:
        """The result of `compute` for copies of `inputs`; the first call with a key computes twice."""
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = self._capture(compute, [x.clone() for x in inputs])
        else:
            torch._foreach_copy_(held.inputs, inputs)
        held.graph.replay()
        return held.result

    def _capture(self, compute: Callable[[list[Tensor]], T], inputs: list[Tensor]) -> _Captured:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            compute(inputs)  # libraries set themselves up at their first call, which cannot be captured
        torch.cuda.current_stream().wait_stream(side)
        self._pool = self._pool or torch.cuda.graph_pool_handle()  # one for all: no result outlives the next call
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, capture_error_mode="thread_local"
        ):  # nccl's threads may be at work
            result = compute(inputs)
        return _Captured(inputs, graph, result)


class Later:
    """A value that is on its way from a device to the host, while more is launched."""

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

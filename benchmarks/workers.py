"""Groups of processes on this machine that stay alive, so that groups of several sizes can take turns in one benchmark.

A worker has one thread for its products and waits on a pipe between calls, where it takes no processor time. What a function
keeps between calls (`functools.cache`) stays in the worker.
"""

import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

_context = multiprocessing.get_context("forkserver")


class WorkerFailure(RuntimeError):
    """A worker raised, died or did not answer in time; the message holds what it said."""


class Group:
    """`world_size` worker processes in one group; a context manager that ends them. Also a group of one is a real one.

    On `device` "cpu" they speak over gloo, on "cuda" over nccl, worker r on the machine's r-th GPU.
    """

    def __init__(self, world_size: int, timeout: float = 300.0, device: str = "cpu"):
        self.world_size, self.timeout = world_size, timeout
        # for the first group of a process; every optimizer imports torch._dynamo, which takes seconds
        _context.set_forkserver_preload(["torch", "torch.distributed", "torch._dynamo"])
        self._folder = tempfile.TemporaryDirectory(prefix="gloo-")
        self._processes, self._pipes = [], []
        for rank in range(world_size):
            ours, theirs = _context.Pipe()
            process = _context.Process(
                target=_serve, args=(rank, world_size, self._folder.name, timeout, device, theirs), daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()  # a worker that waits sees the end of the pipe and leaves
        for process in self._processes:
            process.join(2.0)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()

    def call(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """`function(*args)` on every worker at once; the results in order of rank.

        Inside, `Comm.current()` is the group. `function` must be a module's, and all must pickle.

        Raises:
            WorkerFailure: with the traceback of the first worker that has one.
        """
        for pipe in self._pipes:
            pipe.send((function, args))
        return [self._answer(rank, pipe) for rank, pipe in enumerate(self._pipes)]

    def _answer(self, rank: int, pipe: Connection) -> Any:
        who = f"worker {rank} of {self.world_size}"
        try:
            if not pipe.poll(self.timeout):
                raise WorkerFailure(f"{who} did not answer for {self.timeout:.0f} s")
            ok, answer = pipe.recv()
        except EOFError:
            raise WorkerFailure(f"{who} died without a word (killed, or a crash in native code)") from None
        if not ok:
            raise WorkerFailure(f"{who}: {answer}")
        return answer


def _serve(rank: int, world_size: int, folder: str, timeout: float, device: str, pipe: Connection) -> None:
    """Join the group, then answer calls until the pipe closes."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout),
    )
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            answer = (True, function(*args))
        except Exception:
            answer = (False, traceback.format_exc())
        pipe.send(answer)

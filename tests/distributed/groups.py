"""Gloo groups of processes on this machine, for tests that compare a run on N workers with a run on one.

Each rank is a fresh process with one thread, started from a server process that has imported torch and this project once
and computed nothing (`forkserver`): a start costs a tenth of a second instead of several, and no thread pool is inherited.
A rank that fails, dies or hangs ends the whole group and becomes a GroupFailure here, with the tracebacks of the ranks.
"""

import faulthandler
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

GRACE_SECONDS = 2.0
"""After a first failure, how long the other ranks may take to report theirs (the first seen need not be the cause)."""

_context = multiprocessing.get_context("forkserver")
# what ranks would import one by one: torch._dynamo takes seconds, and torch's optimizers import it
_context.set_forkserver_preload(["torch._dynamo", "sklearn.ensemble", "faiss", "pytest", "jobs.train_job"])


class GroupFailure(AssertionError):
    """A rank raised, died or did not finish; the message holds what each rank said."""


def run_group(fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """Run `fn(*args)` on every rank of a gloo group of `world_size` processes; the results in order of rank.

    Inside, `Comm.current()` is the group (also a group of one is a real one). `fn` must be a module's function, and its
    arguments and results must pickle; tensors travel as bytes.

    Raises:
        GroupFailure: a rank raised (its traceback is in the message), died, or was not done after `timeout` seconds.
    """
    payload = pickle.dumps((fn, args))
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryDirectory(prefix="gloo-") as folder:
        processes, pipes = [], []
        for rank in range(world_size):
            ours, theirs = _context.Pipe(duplex=False)
            process = _context.Process(
                target=_run_rank, args=(payload, rank, world_size, folder, timeout, theirs, list(sys.path)), daemon=True
            )
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        patience = 0.0
        try:
            reports = _collect(pipes, deadline)
            patience = GRACE_SECONDS if all(ok for ok, _ in reports) else 0.1
        finally:
            for process in processes:
                process.join(patience)
                if process.is_alive():
                    process.kill()
                    process.join()
    failures = [f"rank {rank} of {world_size}: {text}" for rank, (ok, text) in enumerate(reports) if not ok]
    if failures:
        codes = [process.exitcode for process in processes]
        raise GroupFailure("\n".join([*failures, f"exit codes by rank: {codes}"]))
    return [pickle.loads(result) for _, result in reports]


def _collect(pipes: list[Connection], deadline: float) -> list[tuple[bool, Any]]:
    """(True, pickled result) or (False, what went wrong) of each rank; gives up soon after a first failure."""
    reports: list[tuple[bool, Any]] = [(False, "was not done in time, or another rank failed first")] * len(pipes)
    waiting = dict(zip(pipes, range(len(pipes))))
    while waiting and (left := deadline - time.monotonic()) > 0:
        for pipe in wait(list(waiting), timeout=left):
            assert isinstance(pipe, Connection)
            rank = waiting.pop(pipe)
            try:
                reports[rank] = pickle.loads(pipe.recv_bytes())
            except EOFError:  # the process is gone and has said nothing
                reports[rank] = (False, "died without a word (killed, or a crash in native code)")
            if not reports[rank][0]:
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    return reports


def _run_rank(
    payload: bytes, rank: int, world_size: int, folder: str, timeout: float, pipe: Connection, path: list[str]
) -> None:
    faulthandler.dump_traceback_later(timeout, exit=True)  # a hang leaves its stack on stderr, and no process behind
    sys.path[:] = path
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        fn, args = pickle.loads(payload)
        report = (True, pickle.dumps(fn(*args)))
        dist.barrier()  # nobody leaves while another still talks
    except BaseException:
        report = (False, traceback.format_exc())
    pipe.send_bytes(pickle.dumps(report))
    pipe.close()
    faulthandler.cancel_dump_traceback_later()
    if dist.is_initialized():
        dist.destroy_process_group()

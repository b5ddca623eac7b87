"""Following a job of a cluster from here: its log as it grows, over lost connections, until it ends.

Ray's log stream has no positions and always begins at the log's start, so what was written before is counted in characters
and skipped: no line is lost or doubled.
"""

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

SILENT_SECONDS = 120.0
"""A stream that says nothing for so long is opened again: a connection may be dead without an error."""
LONGEST_WAIT = 30.0
_LOST = (OSError, RuntimeError, aiohttp.ClientError, asyncio.TimeoutError)  # of requests: OSError


class UnknownJob(ValueError):
    """The cluster has no such job."""


class LostContact(ValueError):
    """The cluster did not answer for too long; the job may well go on."""


class Client(JobSubmissionClient):
    """Ray's client, with an end to every request: its own waits for ever for a server that took the connection."""

    timeout = (10.0, 60.0)
    """Seconds for the connection, and for each answer."""

    def _do_request(self, *arguments: Any, **options: Any) -> requests.Response:
        return super()._do_request(*arguments, **{"timeout": self.timeout, **options})


def job_info(client: JobSubmissionClient, job: str) -> JobDetails:
    """Status and command of a job.

    Raises:
        UnknownJob: there is none of that id.
    """
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "404" in str(error):
            raise UnknownJob(
                f"the cluster knows no job {job}: look with --list; jobs are forgotten when the cluster's head starts "
                "anew, and then the same command goes on from the run's last checkpoint"
            ) from None
        raise


@dataclass
class Follower:
    """Where the reading of a job's log stands.

    Fields:
        job: its id.
        write: called with each new piece of the log, newlines in it.
        written: characters of the log that were written.
        patience: seconds without an answer after which it gives up.
    """

    client: JobSubmissionClient
    job: str
    write: Callable[[str], object]
    written: int = 0
    patience: float = 1800.0

    def run(self) -> JobDetails:
        """Follow to the job's end; a KeyboardInterrupt leaves a state from which `run` goes on.

        Raises:
            UnknownJob: there is no such job.
            LostContact: no answer for `patience` seconds.
            AuthenticationError: the cluster's token was changed.
        """
        wait, lost_since = 1.0, None
        while True:
            before = self.written
            try:
                info = job_info(self.client, self.job)
                if info.status.is_terminal():
                    self.rest()
                    return info
                if lost_since is not None:
                    print("connected again", file=sys.stderr, flush=True)
                    lost_since = None
                asyncio.run(self._tail())
                time.sleep(1.0)  # waiting to start, or ended in this moment
                wait = 1.0
                continue
            except AuthenticationError:
                raise
            except _LOST as error:
                now = time.monotonic()
                if lost_since is None or self.written > before:
                    if not isinstance(error, asyncio.TimeoutError):
                        print(f"connection lost ({_line(error)}); trying again", file=sys.stderr, flush=True)
                        lost_since = now
                    wait = 1.0
                elif now - lost_since > self.patience:
                    raise LostContact(f"no answer for {now - lost_since:.0f} s ({_line(error)})") from error
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def rest(self) -> None:
        """Write what the log has beyond what was written; for a job that has ended."""
        self._take(self.client.get_job_logs(self.job), 0)

    async def _tail(self) -> None:
        received = 0  # of this stream, which begins at the log's start
        stream = self.client.tail_job_logs(self.job)
        try:
            while True:
                try:
                    chunk = await asyncio.wait_for(anext(stream), SILENT_SECONDS)
                except StopAsyncIteration:
                    return
                self._take(chunk, received)
                received += len(chunk)
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    def _take(self, text: str, position: int) -> None:
        """Write the part of `text`, which stands at character `position` of the log, that is new."""
        new = text[max(0, self.written - position) :]
        if new:
            self.write(new)
            self.written += len(new)


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__

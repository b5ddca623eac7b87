"""A real Ray cluster on this machine for tests: `ray start` in processes of our own, with a token and a job server."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Head:
    """A running cluster: its job server's address, its own address, the file with its token, its log."""

    jobs: str
    gcs: str
    token: Path
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """For a process outside the cluster that sends jobs there."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        return {
            **kept,
            "RAY_ADDRESS": self.jobs,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
        }


def free_ports(count: int) -> list[int]:
    """Ports of this machine on which nobody listens."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def start_node(
    arguments: list[str], environment: dict[str, str], log: Path, hidden: Path | None = None
) -> subprocess.Popen[bytes]:
    """A node in the foreground of a process group of its own; it sees an empty disk of its own at `hidden` (needs root)."""
    ray = str(Path(sys.executable).parent / "ray")
    agent, grpc = free_ports(2)
    command = [ray, "start", "--block", f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}"]
    command += ["--object-store-memory=134217728", *arguments]
    if hidden:
        script = 'mount -t tmpfs none "$0" && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, str(hidden), *command]
    with log.open("ab") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


def end_node(process: subprocess.Popen[bytes]) -> None:
    """End a node and all that it started."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def ray_head(num_cpus: int = 2, more_nodes: int = 0, hidden: Path | None = None) -> Iterator[Head]:
    """A cluster of a head and `more_nodes` others (see start_node), `num_cpus` logical CPUs each, until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="rh"))  # short: Ray makes sockets below it
    port, dashboard, client = free_ports(3)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    head = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", token, folder / "log")
    environment = {**head.environment, "RAY_TMPDIR": str(folder)}
    del environment["RAY_ADDRESS"], environment["PYTHONPATH"]  # the code is what jobs bring
    nodes = []
    try:
        nodes.append(
            start_node(
                [
                    "--head",
                    "--node-ip-address=127.0.0.1",
                    f"--port={port}",
                    f"--dashboard-port={dashboard}",
                    f"--ray-client-server-port={client}",
                    f"--temp-dir={folder}",
                    f"--num-cpus={num_cpus}",
                ],
                environment,
                head.log,
            )
        )
        wait_for(("127.0.0.1", dashboard), nodes[0], head.log)
        for number in range(more_nodes):  # a node removes a job's code from its folder when it has done its part
            arguments = [f"--address={head.gcs}", f"--num-cpus={num_cpus}", f"--temp-dir={folder}/{number}"]
            nodes.append(start_node(arguments, environment, head.log, hidden))
        yield head
    finally:
        for node in reversed(nodes):
            end_node(node)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(address: tuple[str, int], process: subprocess.Popen[bytes], log: Path, seconds: float = 90.0) -> None:
    """Until somebody listens; fails with the log when the process ends, or after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        with suppress(OSError), socket.create_connection(address, timeout=1):
            return
        time.sleep(0.5)
    raise AssertionError(f"nobody listens at {address}: {log.read_text()}")

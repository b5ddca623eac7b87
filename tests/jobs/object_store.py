"""An S3 store on loopback: moto's server in a process of its own, which can be killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


class ObjectStore:
    """One server with a bucket `beam`; what it holds is gone when it is stopped."""

    def __init__(self, folder: Path):
        """Nothing is started yet; `folder` gets the server's log."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = folder / "s3.log"
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
                time.sleep(0.1)
        from pyarrow.fs import S3FileSystem

        S3FileSystem(
            endpoint_override=self.url,
            region="us-east-1",
            access_key="test",
            secret_key="test-secret",
            allow_bucket_creation=True,
        ).create_dir("beam")

    def away(self, yes: bool) -> None:
        """The server does not answer (SIGSTOP) or does again (SIGCONT); what it holds stays."""
        os.kill(self.process.pid, signal.SIGSTOP if yes else signal.SIGCONT)

    def stop(self) -> None:
        """End it."""
        os.kill(self.process.pid, signal.SIGCONT)
        self.process.kill()
        self.process.wait()

"""A PostgreSQL of a test's own (the system's programs), that can be stopped as by a crash and started again."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from mlflow_server import free_port


def programs() -> Path | None:
    """The folder of initdb and pg_ctl; None where it is not installed, or root has no user to run it."""
    known = [Path(found).parent] if (found := shutil.which("initdb")) else []
    folders = [*known, *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    usable = os.geteuid() != 0 or any(user.pw_name == "postgres" for user in pwd.getpwall())
    return next((folder for folder in folders if (folder / "pg_ctl").exists()), None) if usable else None


class Database:
    """A cluster with an empty database `postgres` on loopback; it refuses to run as root, so then its own user runs it."""

    def __init__(self) -> None:
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="pg-")), free_port()
        self.uri = f"postgresql+psycopg2://mlflow@127.0.0.1:{self.port}/postgres"
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres")
        self._run("initdb", "-U", "mlflow", "--auth=trust", "--no-sync")
        settings = f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = ''\n"
        with (self.folder / "data" / "postgresql.conf").open("a") as file:
            file.write(settings)

    def start(self) -> None:
        self._run("pg_ctl", "-l", str(self.folder / "log"), "-w", "start")

    def crash(self) -> None:
        """All connections are cut in the middle of what they do."""
        self._run("pg_ctl", "-m", "immediate", "stop")

    def remove(self) -> None:
        if (self.folder / "data" / "postmaster.pid").exists():
            self.crash()
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: str) -> None:
        folder = programs()
        assert folder is not None
        user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*user, str(folder / program), "-D", str(self.folder / "data"), *arguments]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/", text=True)
        assert done.returncode == 0, done.stderr

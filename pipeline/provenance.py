"""Which code ran: the project's folder, git commit, versions. Never names of machines or users, and no secrets."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

_PACKAGES = ("torch", "ray", "mlflow", "faiss-cpu", "faiss-gpu")
_TREE = Path(__file__).resolve().parents[1]
_IN_TREE = (_TREE / "pyproject.toml").is_file()  # false when the package is installed into site-packages


def project_root() -> Path:
    """The folder of pyproject.toml when the package runs from its source tree, else the current folder."""
    return _TREE if _IN_TREE else Path.cwd()


def environment_tags() -> dict[str, str]:
    """Tags of a run: git commit, whether tracked files differed from it, versions of Python and of the main packages.

    A job on a cluster has the code without its repository; who sent it says the commit in BEAM_GIT_COMMIT, BEAM_GIT_DIRTY.
    """
    tags = {"version.python": platform.python_version()}
    for package in _PACKAGES:
        try:
            tags[f"version.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _git("rev-parse", "HEAD")
    if commit:
        changed = _git("status", "--porcelain", "--untracked-files=no")
        tags |= {"mlflow.source.git.commit": commit, "git.dirty": "unknown" if changed is None else str(bool(changed))}
    elif told := os.environ.get("BEAM_GIT_COMMIT"):
        tags |= {"mlflow.source.git.commit": told, "git.dirty": os.environ.get("BEAM_GIT_DIRTY", "unknown")}
    return tags


def without_secrets(text: str) -> str:
    """`text` with the user and password of every URL in it replaced, for messages."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def _git(*arguments: str) -> str | None:
    """Return what git prints in the source tree, or None where there is no tree, no git, no repository or no answer."""
    if not _IN_TREE:
        return None
    command = ["git", "--no-optional-locks", "-C", str(_TREE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

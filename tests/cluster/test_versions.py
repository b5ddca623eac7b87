"""Versions in the files of cluster/ are the pins, and nothing in them looks like a secret."""

import re
import tomllib
from pathlib import Path

import pytest
from cluster_files import CLUSTER, FILES, ROOT, documents, pins, secret_literals

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_versions() -> None:
    """Ray's, Python's, the project's; torch and MLflow come into the image through constraints.txt alone."""
    for name in ("cluster", "cluster-cpu", "job"):
        (document,) = documents(CLUSTER / "kuberay" / f"{name}.yaml")
        spec = document["spec"].get("rayClusterSpec", document["spec"])
        assert spec["rayVersion"] == pins()["ray"]
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    (python,) = set(re.findall(r"python:(\d+\.\d+)\.\d+", dockerfile))
    assert python == PROJECT["tool"]["mypy"]["python_version"]
    assert PROJECT["project"]["requires-python"] == f">={python}"
    assert PROJECT["project"]["version"] == "0.1.0"  # the tags' (cluster_files.image_problems)
    assert not re.findall(r"(?:torch|ray|mlflow|faiss-\w+)(?:==|~=|>=)\d", dockerfile)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_versions_in_words(path: Path) -> None:
    """Where a file says a version of ours in full, it is the pin."""
    said = re.findall(r"(?i)\b(ray|mlflow|torch|faiss-cpu|faiss-gpu)[ =:]+v?(\d+\.\d+\.\d+)", path.read_text())
    assert [(name, version) for name, version in said if pins()[name.lower()] != version] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_no_secrets(path: Path) -> None:
    """Nothing looks like one."""
    assert secret_literals(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "password: hunter2hunter2",
        "  POSTGRES_PASSWORD=correct-horse",
        'MLFLOW_AUTH_ADMIN_PASSWORD: "swordfish99"',
        "aws_access_key_id = AKIA" + "ABCDEFGHIJKLMNOP",
        "postgresql+psycopg2://mlflow:pass@database:5432/mlflow",
        "token: " + "0123456789abcdef" * 4,
        "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    ],
)
def test_secrets_are_caught(line: str) -> None:
    """Each kind of literal."""
    assert secret_literals(f"first: line\n{line}\n") != []

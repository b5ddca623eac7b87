"""The compose file and the files of `ray up`, and the complaints about faults in them."""

import copy
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster_files import (
    CLUSTER,
    COMPOSE_FILE,
    RAY_UP_FILES,
    compose_problems,
    documents,
    ray_up_problems,
    server_problems,
)
from test_kubernetes import unshared


def test_compose_file() -> None:
    """The services that are to be there; only the server is published, and only it reaches the outside."""
    (document,) = documents(COMPOSE_FILE)
    assert compose_problems(document) == []
    services = document["services"]
    assert set(services) == {"database", "bucket", "objects", "mlflow"}
    assert [name for name, service in services.items() if "ports" in service] == ["mlflow"]
    assert document["networks"]["inside"] == {"internal": True}
    assert [name for name, service in services.items() if service["networks"] != ["inside"]] == ["mlflow"]
    assert server_problems(services["mlflow"]["command"]) == []


COMPOSE_FAULTS: dict[str, Callable[[Any], Any]] = {
    "mlflow: entrypont: not a key we use": lambda s: s["mlflow"].update(entrypont="x"),
    "limits.memory is not set": lambda s: s["database"]["deploy"]["resources"]["limits"].pop("memory"),
    "it is to be on 127.0.0.1": lambda s: s["mlflow"].update(ports=["5000:5000"]),
    "port 0.0.0.0:5000:5000": lambda s: s["mlflow"].update(ports=["0.0.0.0:5000:5000"]),
    "POSTGRES_PASSWORD: a secret comes as": lambda s: s["database"]["environment"].update(POSTGRES_PASSWORD="x"),
    "PGPASSWORD: a secret comes as": lambda s: s["mlflow"]["environment"].update(PGPASSWORD="${POSTGRES_PASSWORD:-x}"),
    "another user than root": lambda s: s["objects"].pop("user"),
    "all capabilities are to be dropped": lambda s: s["mlflow"].pop("cap_drop"),
    "a tag with a version is needed": lambda s: s["database"].update(image="postgres:latest"),
    "depends_on databse": lambda s: s["mlflow"]["depends_on"].update(databse={}),
    "volume object is not declared": lambda s: s["objects"].update(volumes=["object:/data"]),
    "there is no such file": lambda s: s["mlflow"].update(volumes=["./other.ini:/etc/mlflow/auth.ini:ro"]),
}


@pytest.mark.parametrize("complaint", COMPOSE_FAULTS)
def test_fault_in_the_compose_file_is_caught(complaint: str) -> None:
    """One fault at a time."""
    document = unshared(documents(COMPOSE_FILE)[0])
    COMPOSE_FAULTS[complaint](document["services"])
    assert any(complaint in problem for problem in compose_problems(document)), compose_problems(document)


def test_login_of_the_server() -> None:
    """MLflow reads the file as meant, and finds no password in it."""
    code = (
        "from mlflow.server.auth.config import read_auth_config as r; c = r(); print(c.database_uri, c.admin_password)"
    )
    # as a process: it reads the environment, and mlflow stays out of this one
    environment = {**os.environ, "MLFLOW_AUTH_CONFIG_PATH": str(CLUSTER / "mlflow" / "auth.ini")}
    environment.pop("MLFLOW_AUTH_ADMIN_PASSWORD", None)
    pytest.importorskip("flask_wtf", reason='the login needs pip install "beam-pipeline[server]"')
    import sys

    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["postgresql+psycopg2://mlflow@database:5432/mlflow", "None"]


@pytest.mark.parametrize("path", RAY_UP_FILES, ids=lambda path: path.name)
def test_ray_up_files(path: Path) -> None:
    """Ray's own schema, and ours."""
    (config,) = documents(path)
    assert ray_up_problems(config) == []
    assert config["cluster_name"] == "beam"


RAY_UP_FAULTS: dict[str, Callable[[Any], Any]] = {
    "'max_worker' was unexpected": lambda c: c.update(max_worker=2),
    "'two' is not of type 'integer'": lambda c: c.update(max_workers="two"),
    "'provider' is a required property": lambda c: c.pop("provider"),
    "the token is to be on every node": lambda c: c.pop("file_mounts"),
    "--env=RAY_AUTH_MODE=token is missing": lambda c: c["docker"]["run_options"].remove("--env=RAY_AUTH_MODE=token"),
    "the dashboard is to be on loopback": lambda c: c.update(
        head_start_ray_commands=["ray start --head --dashboard-host=0.0.0.0"]
    ),
    "no new privileges": lambda c: c["docker"]["run_options"].append("--privileged"),
    "a tag with a version is needed": lambda c: c["docker"].update(image="registry.example.com/beam"),
}


@pytest.mark.parametrize("complaint", RAY_UP_FAULTS)
@pytest.mark.parametrize("path", RAY_UP_FILES, ids=lambda path: path.name)
def test_fault_in_a_ray_up_file_is_caught(path: Path, complaint: str) -> None:
    """One fault at a time."""
    config = copy.deepcopy(documents(path)[0])
    RAY_UP_FAULTS[complaint](config)
    assert any(complaint in problem for problem in ray_up_problems(config)), ray_up_problems(config)

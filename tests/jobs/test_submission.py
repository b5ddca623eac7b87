"""What is sent to a cluster, told without one: addresses, ids, arguments, environment, code; a log read in pieces."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.follow import Follower, LostContact, UnknownJob
from jobs.ray_address import AddressError, address_kind
from jobs.ray_session import ray_session
from jobs.submission import (
    EXCLUDES,
    Job,
    SubmissionError,
    base_id,
    choose,
    complete,
    entrypoint_of,
    environment,
    names_this_machine,
    run_name,
    runtime_env,
)
from jobs.submit import main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://ray.example.com", "http://[::1]:8265/"])
def test_a_job_server(address: str) -> None:
    assert address_kind(address) == "jobs"


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "head:20001"])
def test_a_cluster_to_join(address: str) -> None:
    assert address_kind(address) == "driver"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ray://head:10001", "http://HOST:8265"),
        ("head", "HOST:6379"),
        ("head:http", "HOST:6379"),
        ("ftp://head", "unknown scheme 'ftp'"),
        ("http://", "no host"),
        ("http://me:hunter2@head:8265", "no user or password"),
    ],
)
def test_no_address(address: str, reason: str) -> None:
    with pytest.raises(AddressError, match=reason) as error:
        address_kind(address)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_a_driver_does_not_join_a_job_server(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(AddressError, match="8265"), ray_session(tmp_path, 1):
        pass


def test_the_run_names_the_job() -> None:
    """As the main job names its folder."""
    main_job = "jobs.celeba_train"
    assert run_name(main_job, ["--workers", "8"]) == "synthetic-faces-faces_quick"
    assert run_name(main_job, ["--quick"]) == "synthetic-faces-faces_toy"
    assert run_name(main_job, ["--celeba", "/shared/celeba"]) == "celeba-celeba_beam"
    assert run_name(main_job, ["--celeba=/c", "--recipe=celeba_beam_paper"]) == "celeba-celeba_beam_paper"
    assert run_name("jobs.tune", ["--recipe", "x", "--name", "k"]) == "k"
    with pytest.raises(SubmissionError, match="--id"):
        run_name("jobs.tune", [])


def test_ids() -> None:
    assert base_id("faces k=10/é") == "faces-k-10"
    with pytest.raises(SubmissionError):
        base_id("é/..")


def test_one_job_at_a_time_for_a_run() -> None:
    """A free id, the running job of the same command, a refusal; never an id that was used."""
    assert choose("first", "a", []) == ("first", True)
    others = [Job("first-2", "RUNNING", "b"), Job("firsts", "RUNNING", "b"), Job("first.x", "RUNNING", "b")]
    assert choose("first", "a", others) == ("first", True)
    ended = [Job("first", "FAILED", "a"), Job("first.10", "STOPPED", "a"), Job("first.2", "SUCCEEDED", "a")]
    assert choose("first", "a", [*others, *ended]) == ("first.11", True)
    for status in ("PENDING", "RUNNING"):
        running = [Job("first", "FAILED", "a"), Job("first.2", status, "a")]
        assert choose("first", "a", running) == ("first.2", False)
        with pytest.raises(SubmissionError, match=r"--follow first\.2.*--stop first\.2"):
            choose("first", "b", running)


def test_places_on_the_cluster() -> None:
    assert complete("jobs.celeba_train", ["--workers", "8"])[2:] == [
        "--runs",
        "/shared/runs",
        "--cache",
        "/shared/cache",
    ]
    given = ["--runs=s3://bucket/runs", "--cache", "/c"]
    assert complete("jobs.celeba_train", given) == given
    assert complete("jobs.models", ["list"]) == ["list"]
    for flag in ("--celeba", "--runs", "--data"):
        with pytest.raises(SubmissionError, match=f"{flag} data/x: .*/shared/x"):
            complete("jobs.train", [flag, "data/x"])
    with pytest.raises(SubmissionError, match="--local"):
        complete("jobs.celeba_train", ["--local"])


def test_the_command_in_a_shell(tmp_path: Path) -> None:
    """Run by a real shell: arguments arrive whole, MLflow keeps its address or gets one in the runs' folder."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.py").write_text(
        "import os, sys; print(sys.argv[1:], os.environ['MLFLOW_TRACKING_URI'])"
    )
    arguments = ["--set", "a=$(x) 'y'", "--runs", "/shared/my runs"]
    command = entrypoint_of("jobs.train", arguments)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for uri, expected in (("", "sqlite:////shared/my runs/mlflow.db"), ("http://m:5000", "http://m:5000")):
        printed = subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path,
            env={"PATH": path, "MLFLOW_TRACKING_URI": uri},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert printed == f"{arguments} {expected}\n"


def test_no_secret_is_sent() -> None:
    here = {
        "MLFLOW_TRACKING_URI": "http://m:5000",
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": "hunter2",
        "MLFLOW_TRACKING_TOKEN": "hunter3",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
        "MLFLOW_EXPERIMENT_NAME": "",
        "AWS_SECRET_ACCESS_KEY": "hunter4",
        "AWS_REGION": "r",
        "HOME": "/root",
    }
    found = environment(here, ["AWS_REGION"])
    assert found.passed == {
        "MLFLOW_TRACKING_URI": "http://m:5000",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
        "AWS_REGION": "r",
    }
    assert set(found.withheld) == {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"}
    for name, reason in (("AWS_SECRET_ACCESS_KEY", "secret"), ("NOT_SET", "not set")):
        with pytest.raises(SubmissionError, match=reason) as error:
            environment(here, [name])
        assert "hunter" not in str(error.value)
    with pytest.raises(SubmissionError, match="MLFLOW_TRACKING_URI") as error:
        environment({"MLFLOW_TRACKING_URI": "http://me:hunter5@m"})
    assert "hunter5" not in str(error.value)


def test_addresses_of_this_machine() -> None:
    assert names_this_machine("http://localhost:5000") and names_this_machine("http://127.0.0.1:5000")
    assert not names_this_machine("http://mlflow:5000") and not names_this_machine("sqlite:////localhost/x")


def test_only_code_travels(tmp_path: Path) -> None:
    """With Ray's own packer: the code of this project and nothing else of its folder."""
    from ray._private.runtime_env.packaging import create_package

    for name in ("jobs/a.py", "jobs/__pycache__/a.pyc", "pipeline/models/b.py", "pyproject.toml", "runs/x", ".venv/y"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_text("x")
    for name in ("celeba.zip", ".ray_auth_token", "mlflow.db", "my.env", "shared/z"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_text("x")
    create_package(str(tmp_path / "p"), tmp_path / "p.zip", include_gitignore=True, excludes=list(EXCLUDES))
    import zipfile

    files = {name for name in zipfile.ZipFile(tmp_path / "p.zip").namelist() if not name.endswith("/")}
    assert files == {"jobs/a.py", "pipeline/models/b.py", "pyproject.toml"}


def test_a_stopped_job_gets_time() -> None:
    variables = runtime_env("/project", {"A": "1"})["env_vars"]
    assert isinstance(variables, dict)
    assert variables["A"] == "1" and int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


class Broken:
    """A client whose stream breaks after some characters each time; its log grows."""

    def __init__(self, log: str, cuts: list[int], status: str = "SUCCEEDED"):
        self.log, self.cuts, self.status = log, cuts, status

    def get_job_info(self, job: str) -> SimpleNamespace:
        ended = not self.cuts
        return SimpleNamespace(
            submission_id=job,
            status=SimpleNamespace(value=self.status, is_terminal=lambda: ended),
        )

    def get_job_logs(self, job: str) -> str:
        return self.log

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        cut = self.cuts.pop(0)
        for start in range(0, cut, 7):
            yield self.log[start : min(start + 7, cut)]
        raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


def test_lines_are_neither_lost_nor_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream breaks in the middle of lines, sooner than before, at once; the end comes after it broke."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    log = "".join(f"line {i} é\n" for i in range(50))
    pieces: list[str] = []
    follower = Follower(Broken(log, [33, 10, 0, 200, 199, 201]), "j", pieces.append)  # type: ignore[arg-type]
    assert follower.run().status.value == "SUCCEEDED"
    assert "".join(pieces) == log and all(pieces)


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)

    class Away(Broken):
        def get_job_info(self, job: str) -> SimpleNamespace:
            raise ConnectionError("no route")

    with pytest.raises(LostContact, match="no route"):
        Follower(Away("", []), "j", print, patience=0.0).run()  # type: ignore[arg-type]


def test_a_forgotten_job(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(Broken):
        def get_job_info(self, job: str) -> SimpleNamespace:
            raise RuntimeError("Request failed with status code 404: Job j does not exist.")

    with pytest.raises(UnknownJob, match="--list"):
        Follower(Forgetful("", []), "j", print).run()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--list"], "no cluster given"),
        (["--address", "ray://h:10001", "--list"], "ray://"),
        (["--address", "auto", "--list"], "job server"),
        (["--address", "http://h:8265", "--", "jobs.celeba_train", "--celeba", "data"], "relative path"),
        (["--address", "http://h:8265", "--", "jobs.celeba_train", "--set", "critic.neighbours=3"], "critic"),
        (["--address", "http://h:8265", "--", "jobs.celeba_train", "--workers", "0"], "at least 1"),
    ],
)
def test_refused_before_anything_is_sent(
    arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "runs"),
    [
        ([], "-m jobs.celeba_train --workers 3 --runs /r"),
        (["RAY_ADDRESS=auto"], "-m jobs.celeba_train --workers 3 --runs /r"),
        (["RAY_ADDRESS=http://h:8265"], "-m jobs.submit -- jobs.celeba_train --workers 3 --runs /r"),
        (
            ["RAY_ADDRESS=https://h", "CELEBA=/my photos"],
            "jobs.submit -- jobs.celeba_train --workers 3 --celeba /my photos",
        ),
    ],
)
def test_make(variables: list[str], runs: str) -> None:
    # make takes its variables from the environment too: CI sets CELEBA
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CELEBA", "RAY_ADDRESS", "CACHE", "MIN_WORKERS")
    }
    made = subprocess.run(
        ["make", "-n", "PY=python", "celeba-train", "WORKERS=3", "RUNS=/r", *variables],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert runs in " ".join(made.replace("\\\n", " ").replace('"', "").split())

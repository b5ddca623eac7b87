"""Jobs on a real cluster with a token: the submitter is killed, the log is followed again, statuses come back."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_head import ROOT, Head, ray_head

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COUNTING = """
import os, signal, sys, time
lines, seconds, status = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
def stop(*_):
    time.sleep(4)  # longer than Ray waits by default
    print("a checkpoint was written", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
print("server", os.environ.get("MLFLOW_TRACKING_URI"), "password", os.environ.get("MLFLOW_TRACKING_PASSWORD"), flush=True)
print("here", sorted(os.listdir(".")), flush=True)
for i in range(lines):
    print(f"line {i:04d}", flush=True)
    time.sleep(seconds / lines)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as cluster:
        yield cluster


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with code, data and a secret in it."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "counting.py").write_text(COUNTING)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "big.bin").write_bytes(bytes(2**20))
    (tmp_path / "data.env").write_text("SECRET=1")
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jobs.submit", *arguments]


def run(head: Head, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
    environment = {**head.environment, **changed}
    return subprocess.run(
        command(*arguments),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"^line (\d+)$", text, re.MULTILINE)]


def test_a_killed_submitter_does_not_matter(head: Head, project: Path, tmp_path: Path) -> None:
    """Killed in the middle; the same command and --follow both find the job; all lines once; the job's status."""
    arguments = ["--folder", str(project), "--id", "count", "--", "jobs.counting", "80", "16", "7"]
    secrets = {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "MLFLOW_TRACKING_PASSWORD": "not this"}
    log = tmp_path / "first.log"
    with log.open("w") as file:
        first = subprocess.Popen(
            command(*arguments), env={**head.environment, **secrets}, cwd=ROOT, stdout=file, stderr=file
        )
    while len(numbers(log.read_text())) < 5:
        assert first.poll() is None, log.read_text()
        time.sleep(0.2)
    first.kill()
    assert first.wait() == -signal.SIGKILL

    other = run(head, *arguments[:-1], "8")
    assert other.returncode == 2 and "--stop count" in other.stderr and "another command" in other.stderr
    again = run(head, *arguments)
    assert "job count runs this command already" in again.stdout
    assert again.returncode == 7, again.stderr
    assert numbers(again.stdout) == list(range(80))
    followed = run(head, "--follow", "count")
    assert followed.returncode == 7 and numbers(followed.stdout) == list(range(80))
    assert "server http://mlflow:5000 password None" in followed.stdout
    assert re.search(r"^here \['jobs'\]$", followed.stdout, re.MULTILINE), followed.stdout
    assert "not sent: MLFLOW_TRACKING_PASSWORD" in log.read_text()

    second = run(head, "--folder", str(project), "--id", "count", "--", "jobs.counting", "3", "0.1", "0")
    assert second.returncode == 0 and "job count.2 is on the cluster" in second.stdout
    listed = run(head, "--list").stdout
    assert re.search(r"^count +FAILED", listed, re.MULTILINE) and re.search(
        r"^count\.2 +SUCCEEDED", listed, re.MULTILINE
    )


def test_a_stopped_job_has_time_for_its_checkpoint(head: Head, project: Path) -> None:
    sent = run(
        head, "--no-follow", "--folder", str(project), "--id", "stopped", "--", "jobs.counting", "600", "600", "0"
    )
    assert sent.returncode == 75
    follower = subprocess.Popen(
        command("--follow", "stopped"), env=head.environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert follower.stdout is not None
    for line in follower.stdout:
        if line.startswith("line"):
            break
    assert run(head, "--stop", "stopped").returncode == 0
    assert "a checkpoint was written" in follower.stdout.read()
    assert follower.wait(60) == 130
    assert "has ended already: STOPPED" in run(head, "--stop", "stopped").stdout


def test_ctrl_c_without_a_terminal_leaves_the_job(head: Head, project: Path) -> None:
    arguments = ["--folder", str(project), "--id", "left", "--", "jobs.counting", "40", "8", "0"]
    first = subprocess.Popen(
        command(*arguments),
        env=head.environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert first.stdout is not None and first.stderr is not None
    for line in first.stdout:
        if line.startswith("line"):
            break
    first.send_signal(signal.SIGINT)
    said = first.stderr.read()
    assert first.wait(30) == 75 and "--follow left" in said
    assert run(head, "--follow", "left").returncode == 0


def test_ctrl_c_at_a_terminal_asks(head: Head, project: Path) -> None:
    """No: it goes on, and no line is lost or doubled; yes: it is stopped."""
    arguments = ["--folder", str(project), "--id", "asked", "--", "jobs.counting", "400", "80", "0"]
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        command(*arguments), env=head.environment, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True
    )
    os.close(theirs)
    text = ""

    def read_until(words: str) -> None:
        nonlocal text
        while words not in text:
            text += os.read(ours, 4096).decode()

    read_until("line 0005")
    process.send_signal(signal.SIGINT)
    read_until("[y/N]")
    os.write(ours, b"n\n")
    read_until("it goes on")
    read_until("line 0030")
    process.send_signal(signal.SIGINT)
    while text.count("[y/N]") < 2:
        text += os.read(ours, 4096).decode()
    os.write(ours, b"y\n")
    read_until("a checkpoint was written")
    read_until("job asked: STOPPED")
    assert process.wait(60) == 130
    os.close(ours)
    seen = [int(n) for n in re.findall(r"line (\d{4})", text)]
    assert seen == list(range(len(seen)))


def test_wrong_token(head: Head, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    refused = run(head, "--list", RAY_AUTH_TOKEN_PATH=str(wrong))
    assert refused.returncode == 2 and str(wrong) in refused.stderr and refused.stderr.count("\n") == 1
    missing = run(head, "--list", RAY_AUTH_TOKEN_PATH=str(tmp_path / "none"))
    assert missing.returncode == 2 and "Traceback" not in missing.stderr and "none" in missing.stderr


def test_unknown_job(head: Head) -> None:
    missing = run(head, "--follow", "nobody")
    assert missing.returncode == 2 and "knows no job nobody" in missing.stderr


def test_nobody_there(head: Head) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        refused = run(head, "--list", RAY_ADDRESS=f"http://127.0.0.1:{probe.getsockname()[1]}")
    assert (
        refused.returncode == 2 and "no Ray job server answers" in refused.stderr and "Traceback" not in refused.stderr
    )


def test_no_job_server(head: Head) -> None:
    """The cluster's own port speaks no HTTP."""
    wrong = run(head, "--list", RAY_ADDRESS=f"http://{head.gcs}")
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr, wrong.stderr

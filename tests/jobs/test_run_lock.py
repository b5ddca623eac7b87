"""One command at a time in a folder: the second is told who is there; a killed holder's folder is free at once."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from latents import write_latents

from jobs import celeba_train, train
from pipeline.runs.lock import FolderInUse, locked

HOLDER = """
import sys, time
from pathlib import Path
from pipeline.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_second_is_told_who_is_there_until_the_first_is_dead(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as holder:
        for _ in range(2):  # a failed try takes nothing
            with pytest.raises(FolderInUse, match=f"{tmp_path} is in use by process {holder.pid} on .*another name"):
                locked(tmp_path).__enter__()
    with locked(tmp_path):
        assert (tmp_path / ".lock-holder").read_text().startswith(f"process {os.getpid()} on ")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with locked(tmp_path):
        pass


def test_an_error_inside_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path):
        pass


def test_one_that_waits_goes_on_when_the_other_is_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entered = threading.Event()

    def wait() -> None:
        with locked(tmp_path, wait=True):
            entered.set()

    with caplog.at_level(logging.WARNING), held_by_another(tmp_path) as holder:
        thread = threading.Thread(target=wait)
        thread.start()
        assert not entered.wait(0.5)
    assert entered.wait(30)
    thread.join()
    assert f"waiting for process {holder.pid}" in caplog.text


def test_commands_leave_a_run_in_use_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_latents(tmp_path / "data", 23)
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"), "--name", "busy", "--local"]
    with held_by_another(tmp_path / "runs" / "busy"):
        for main, arguments in (
            (train.main, ["faces_toy", "--data", str(tmp_path / "data"), "--no-tracking", *places]),
            (celeba_train.main, ["--quick", *places]),
        ):
            assert main(arguments) == 2
            assert "busy is in use by process" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "runs" / "busy").iterdir()) == [".lock", ".lock-holder"]

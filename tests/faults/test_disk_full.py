"""A full disk: one line with path and need, nothing damaged, and the run goes on when there is space (a real tmpfs)."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from latents import write_latents
from small_runs import ENVIRONMENT, assert_same_bits, final, job_in, run_job, small

from pipeline.data.shards import write_shard
from pipeline.files import DiskFull, file_hash
from pipeline.training.checkpoint import load_latest, save_checkpoint


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True
        ).returncode
    ):
        pytest.skip("a tmpfs of its own needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all space there is."""
    file = folder / "filler"
    with file.open("wb", buffering=0) as out:
        try:
            while out.write(bytes(4096)):
                pass
        except OSError:
            pass
    return file


def test_a_checkpoint_that_does_not_fit_names_path_and_need_and_leaves_the_old_one(little_disk: Path) -> None:
    save_checkpoint(little_disk / "c", 1, {"x": torch.arange(10)}, {}, keep=2)
    with pytest.raises(DiskFull, match=r"step_00000002: No space left on device; needs \d{6} bytes; .*make space"):
        save_checkpoint(little_disk / "c", 2, {"x": torch.zeros(100_000)}, {}, keep=2)
    assert [p.name for p in (little_disk / "c").iterdir()] == ["step_00000001"]
    found = load_latest(little_disk / "c")
    assert found is not None and found.step == 1


def test_a_shard_that_does_not_fit_leaves_the_old_one(little_disk: Path) -> None:
    shard = little_disk / "train-00000.tar"
    before = write_shard(shard, np.zeros((10, 8), np.float32))
    with pytest.raises(DiskFull, match=r"train-00000\.tar"):
        write_shard(shard, np.zeros((100_000, 8), np.float32))
    assert file_hash(shard) == before.sha256
    assert [p.name for p in little_disk.iterdir()] == [shard.name]


def test_a_run_goes_on_after_space_is_made(little_disk: Path, tmp_path: Path) -> None:
    data = tmp_path / "latents"
    data_hash = write_latents(data).hash
    run_job(job_in(tmp_path / "undisturbed", data, data_hash, small()))
    folder = little_disk / "run"
    job = job_in(folder, data, data_hash, small())
    run_job(job_in(folder, data, data_hash, small(), until=9))
    filler = fill(little_disk)
    with pytest.raises(DiskFull, match="cannot write"):
        run_job(job)
    filler.unlink()
    assert run_job(job) == 40
    assert_same_bits(final(folder), final(tmp_path / "undisturbed"))


def test_the_command_says_it_in_one_line(little_disk: Path, tmp_path: Path) -> None:
    data = tmp_path / "latents"
    write_latents(data)
    settings = ["model.num_visible=23", "model.num_hidden=11", "sampler.num_chains=13", "data.batch_size=17"]
    settings += ["evaluation.num_rows=19", "evaluation.num_components=5", "critic.search=torch"]
    settings += ["schedules.likelihood.updates=20", "schedules.adversarial.updates=20", "checkpoint.every_updates=5"]
    extra = [item for setting in settings for item in ("--set", setting)]
    where = ["--data", str(data), "--runs", str(little_disk), "--name", "r", "--cache", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "jobs.train", "celeba_beam", "--local", "--no-tracking", *where, *extra]
    (little_disk / "r" / "checkpoints").mkdir(parents=True)
    (little_disk / "taken").write_bytes(bytes(shutil.disk_usage(little_disk).free - 5 * 4096))
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and len(errors) == 1 and "make space" in errors[0], done.stderr
    assert "Traceback" not in done.stderr

"""Damaged checkpoints: told by their hash, passed over loudly for the one before; with none whole, all stays."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from latents import write_latents
from small_runs import ENVIRONMENT, assert_same_bits, final, job_in, run_job, run_until, small

from pipeline.training.checkpoint import CheckpointError, load_checkpoint

TENSORS, META = "state.safetensors", "meta.json"


def damage(checkpoint: Path, how: str, rng: random.Random) -> None:
    name = META if how.endswith("of meta") else TENSORS
    file = checkpoint / name
    content = bytearray(file.read_bytes())
    if how.startswith("flip"):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
    elif how.startswith("cut"):
        file.write_bytes(content[: rng.randrange(len(content))])
    elif how.startswith("loss"):
        file.unlink()
    else:
        shutil.rmtree(checkpoint)
        checkpoint.mkdir()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run ended after update 13 with checkpoints after 12 and 13, the same run undisturbed, and their data."""
    place = tmp_path_factory.mktemp("stopped")
    data_hash = write_latents(place / "d").hash
    run_until(job_in(place / "run", place / "d", data_hash, small(20)), 13)
    run_job(job_in(place / "undisturbed", place / "d", data_hash, small(20)))
    (place / "hash").write_text(data_hash)
    return place


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("how", ["flip", "cut", "loss", "flip of meta", "cut of meta", "loss of meta", "empty"])
def test_the_one_before_a_damaged_one_is_used_loudly(stopped, tmp_path, caplog, how, number):
    shutil.copytree(stopped / "run", tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step_00000013"
    damage(newest, how, random.Random(number))
    with pytest.raises(CheckpointError, match="step_00000013"):
        load_checkpoint(newest)
    job = job_in(tmp_path / "run", stopped / "d", (stopped / "hash").read_text(), small(20))
    assert run_job(job) == 40
    assert "step_00000013" in caplog.text and "going back to the checkpoint before it" in caplog.text
    assert_same_bits(final(tmp_path / "run"), final(stopped / "undisturbed"))


def test_without_a_whole_one_the_command_stops_in_one_line_and_leaves_all(stopped, tmp_path):
    shutil.copytree(stopped / "run", tmp_path / "runs" / "r")
    for path in (tmp_path / "runs" / "r" / "checkpoints").iterdir():
        damage(path, "flip", random.Random(0))
    before = {p: p.read_bytes() for p in (tmp_path / "runs" / "r" / "checkpoints").rglob("*") if p.is_file()}
    history = (tmp_path / "runs" / "r" / "metrics.jsonl").read_bytes()
    where = ["--data", str(stopped / "d"), "--runs", str(tmp_path / "runs"), "--name", "r"]
    command = [sys.executable, "-m", "jobs.train", "celeba_beam", "--local", "--no-tracking", *where]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr
    assert "no checkpoint in" in errors[0] and "is damaged: sha256" in errors[0] and "start over" in errors[0]
    assert before == {p: p.read_bytes() for p in before}
    assert (tmp_path / "runs" / "r" / "metrics.jsonl").read_bytes() == history

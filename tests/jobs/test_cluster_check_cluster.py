"""The preflight on a real cluster of two nodes, sent there as a job; one node with a folder that the other does not see."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray_head import ROOT, Head, ray_head

from data_prep.synthetic_faces import draw_dataset

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def can_mount() -> bool:
    done = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return done.returncode == 0


def check(head: Head, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    name = f"check-{time.monotonic_ns()}"
    return subprocess.run(
        [sys.executable, "-m", "jobs.submit", "--id", name, "--", "jobs.cluster_check", *arguments],
        env={**head.environment, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
    )


def lines(output: str, check: str) -> list[str]:
    return re.findall(rf"^(?:ok|FAILED) +{check} +\S+ .*$", output, re.MULTILINE)


@pytest.mark.long
@pytest.mark.skipif(
    os.name != "posix" or not can_mount(), reason="no right to mount: a disk cannot be hidden from a node"
)
def test_two_nodes(tmp_path: Path) -> None:
    """All is well; then a folder of one node alone, photographs that only one has, too many workers, no MLflow."""
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    shared.mkdir()
    alone.mkdir()
    draw_dataset(shared / "faces", 11, seed=0)
    with ray_head(more_nodes=1, hidden=alone) as head:
        places = ["--runs", str(shared / "runs"), "--cache", str(shared / "cache")]
        end = time.monotonic() + 60
        good = check(head, *places, "--celeba", str(shared / "faces"), "--workers", "4")
        while "4 workers; 1 nodes" in good.stdout and time.monotonic() < end:  # the second node is not up yet
            good = check(head, *places, "--celeba", str(shared / "faces"), "--workers", "4")
        assert good.returncode == 0, good.stdout + good.stderr
        for name, count in {"versions": 2, "GPUs": 2, "storage runs": 2, "data": 2, "clock": 2, "MLflow": 1}.items():
            assert len(lines(good.stdout, name)) == count, good.stdout
        assert "11 photographs" in good.stdout and "sqlite:///" + str(shared / "runs") in good.stdout
        assert [p.name for p in (shared / "cache").iterdir()] == [], "the check cleans up"

        draw_dataset(alone / "faces", 11, seed=0)
        bad = check(
            head,
            *("--runs", str(alone), "--cache", "/proc/none", "--celeba", str(alone / "faces"), "--workers", "5"),
            MLFLOW_TRACKING_URI="http://127.0.0.1:9",
        )
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert bad.stdout.count("are not seen") == 2 and "all nodes share" in bad.stdout
    assert len(re.findall(r"^FAILED +storage cache", bad.stdout, re.MULTILINE)) == 2
    assert len(re.findall(r"^FAILED +data", bad.stdout, re.MULTILINE)) == 1
    assert "give at most 4 workers" in bad.stdout
    assert re.search(r"^FAILED +MLflow", bad.stdout, re.MULTILINE) and "MLFLOW_TRACKING_URI" in bad.stdout
    assert not list(alone.glob(".cluster-check*"))

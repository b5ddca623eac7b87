"""SIGKILL while a model is registered: each version that is there is whole, and the same registration ends the work."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from registering import BEAM, register, start_run

from pipeline.packages.models import PackagedBeam, load_package
from pipeline.registry.fetch import verify_model
from pipeline.registry.versions import list_versions

WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from registering import register
from pipeline.packages.models import load_package
beam = load_package(Path({package!r}))
print("ready", flush=True)
for i in range(int(sys.argv[1]), 10**6):
    register(beam, {run_id!r}, score=float(i), tracking={tracking!r})
    print(i, flush=True)
"""


@pytest.mark.slow
def test_a_killed_registration_leaves_whole_versions_and_is_finished_by_the_next(
    packaged_beam: PackagedBeam, tracking: str, tmp_path: Path
) -> None:
    """Five kills, each at another random moment of a registration."""
    rng = random.Random(int(os.environ.get("FAULT_SEED", "0")))
    package = tmp_path / "package"
    packaged_beam.save(package)
    run_id, done = start_run(tracking), 0
    code = WRITER.format(tests=str(Path(__file__).parent), package=str(package), run_id=run_id, tracking=tracking)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, str(done + 1)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        said = [process.stdout.readline()]  # one whole registration, then a kill within the next ones
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        said += process.stdout.readlines()
        process.wait()
        done = int([line for line in said if line.endswith("\n")][-1])
        for version in list_versions(BEAM, tracking=tracking):
            verify_model(f"models:/{BEAM}/{version.version}", tracking=tracking)
    beam = load_package(package)
    assert isinstance(beam, PackagedBeam)
    for score in range(1, done + 2):  # what was registered is found again, what was cut is registered now
        register(beam, run_id, score=float(score), tracking=tracking)
    assert len(list_versions(BEAM, tracking=tracking)) == done + 1

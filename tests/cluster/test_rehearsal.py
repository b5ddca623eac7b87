"""The deployment for real on this machine: cluster/rehearse.sh, where its tools are there."""

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "rehearse.sh"
MISSING = [
    *(tool for tool in ("ip", "setsid", "slurmctld", "slurmd", "sbatch", "munged") if shutil.which(tool) is None),
    *([] if list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) else ["PostgreSQL"]),
    *(module for module in ("moto", "psycopg2", "flask_wtf") if find_spec(module) is None),
    *([] if os.geteuid() == 0 else ["root's rights"]),
]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.ray
@pytest.mark.skipif(bool(MISSING), reason=f"the rehearsal misses {', '.join(MISSING)}")
@pytest.mark.parametrize("part", ["ray", "slurm"])
def test_rehearsal(part: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    done = subprocess.run([str(SCRIPT), part], env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert "FAILED" not in done.stdout and "ok      its model is found by name" in done.stdout
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert "beam-" not in left

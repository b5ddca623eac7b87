"""The batch script with stand-ins for srun, scontrol, ray and the job: order, token, SIGTERM, requeue, teardown.

No Slurm and no Ray: each stand-in writes what it was called with into one log.
"""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster_files import FILES
from test_image import tool

SCRIPT = next(path for path in FILES if path.name == "train.sbatch")
STUBS = {
    "scontrol": 'echo "scontrol $*" >> "$LOG"; [ "$1" = requeue ] || printf "n1\\nn2\\n"',
    "srun": """nodes=?; while [[ "$1" == --* ]]; do [[ "$1" == --nodelist=* ]] && nodes=${1#*=}
[[ "$1" == --nodelist ]] && shift && nodes=$1; shift; done
echo "on $nodes: $*" >> "$LOG"; [ "$1" != ray ] || exec "$@" """,
    "ray": 'trap "echo ray ends >> $LOG; exit 0" TERM; touch "$READY/ray.$$"; while true; do sleep 0.05; done',
    "python": """if [ "$1" = -c ]; then exec "$REAL" "$@"; fi
if [ "$1" = - ]; then
  cat > /dev/null
  while [ "$(find "$READY" -name "ray.*" | wc -l)" -lt 2 ]; do sleep 0.05; done # as the script's own wait for all nodes
  exit 0
fi
echo "job $*, address $RAY_ADDRESS, token $(stat -c %a "$RAY_AUTH_TOKEN_PATH")" >> "$LOG"
trap 'echo "job stops" >> "$LOG"; sleep 0.2; echo "job has a checkpoint" >> "$LOG"; exit $ON_TERM' TERM
[ -z "$STATUS" ] || exit "$STATUS"
touch running; while true; do sleep 0.05; done""",
}


@pytest.fixture
def start(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Starts the script as Slurm would, in the folder `submit`; returns the process."""
    submit, tools = tmp_path / "submit", tmp_path / "tools"
    submit.mkdir()
    tools.mkdir()
    for name, body in STUBS.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tools / name).chmod(0o755)

    def run(**environment: str) -> subprocess.Popen[str]:
        values = {
            **{"SLURM_SUBMIT_DIR": str(submit), "SLURM_JOB_ID": "41007", "SLURM_JOB_NODELIST": "n[1-2]"},
            **{"SLURM_CPUS_PER_TASK": "8", "LOG": str(submit / "log"), "REAL": sys.executable, "STATUS": ""},
            **{
                "PY": str(tools / "python"),
                "PATH": f"{tools}:{os.environ['PATH']}",
                "ON_TERM": "130",
                "READY": str(tools),
            },
        }
        command = ["bash", str(SCRIPT), "--celeba", "some where"]
        return subprocess.Popen(
            command, env=values | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return run, submit


def log(submit: Path) -> list[str]:
    """What was called, in order."""
    return (submit / "log").read_text().splitlines()


def terminate_when_running(process: "subprocess.Popen[str]", submit: Path) -> None:
    """SIGTERM to the script alone, as --signal=B:TERM@60 does, once the job runs."""
    end = time.monotonic() + 20
    while not (submit / "running").exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)


def test_a_run(start) -> None:  # type: ignore[no-untyped-def]
    """Head on the first node, a worker on the other, the job with its arguments, teardown; no requeue."""
    run, submit = start
    process = run(STATUS="0")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    lines = log(submit)
    token = submit / ".ray_auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and len(token.read_text()) == 64
    assert any(line.startswith("on n1: ray start --head --block --port=21007") for line in lines)
    assert any(line.startswith("on n2: ray start --block --address=n1:21007") for line in lines)
    assert "job -m jobs.celeba_train --celeba some where, address n1:21007, token 600" in lines
    assert lines.count("ray ends") == 2 and lines[-1] == "on n[1-2]: rm -rf -- /tmp/ray-41007"
    assert not any("requeue" in line for line in lines)
    assert token.read_text() not in "\n".join(lines)  # on no command line
    assert sorted(path.name for path in submit.iterdir()) == [".ray_auth_token", "log"]


def test_preemption(start) -> None:  # type: ignore[no-untyped-def]
    """SIGTERM reaches the job, which ends with a checkpoint; then Ray ends; then the job is queued again."""
    run, submit = start
    process = run()
    terminate_when_running(process, submit)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    lines = log(submit)
    order = ["job stops", "job has a checkpoint", "ray ends", "scontrol requeue 41007"]
    assert [line for line in dict.fromkeys(lines) if line in order] == order
    assert lines[-1] == order[-1]


def test_a_job_that_finishes_at_the_last_moment_is_not_queued_again(start) -> None:  # type: ignore[no-untyped-def]
    """Only a job that was stopped goes on."""
    run, submit = start
    process = run(ON_TERM="0")
    terminate_when_running(process, submit)
    process.communicate(timeout=30)
    assert process.returncode == 0 and not any("requeue" in line for line in log(submit))


def test_a_job_that_fails_is_not_queued_again(start) -> None:  # type: ignore[no-untyped-def]
    """Its exit status is the script's."""
    run, submit = start
    process = run(STATUS="2")
    process.communicate(timeout=30)
    assert process.returncode == 2
    assert log(submit)[-1].endswith("rm -rf -- /tmp/ray-41007") and not any("requeue" in line for line in log(submit))


def test_a_token_that_others_may_read_is_refused(start) -> None:  # type: ignore[no-untyped-def]
    """Before anything is started."""
    run, submit = start
    (submit / ".ray_auth_token").write_text("known")
    (submit / ".ray_auth_token").chmod(0o644)
    process = run()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 2 and "has mode 644" in output and not (submit / "log").exists()


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.read_text().startswith("#!")], ids=lambda path: path.name
)
def test_shellcheck(path: Path) -> None:
    """No complaint about any shell script, and one about a fault."""
    shellcheck = tool("shellcheck")
    done = subprocess.run([shellcheck, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    wrong = path.read_text() + "\ncp $1 $2\n"
    assert subprocess.run([shellcheck, "-"], input=wrong, capture_output=True, text=True).returncode == 1

"""What `jobs.train` imports, and when: questions are answered without torch, a run needs no compiler and no unused package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from latents import write_latents

HEAVY = ("torch", "numpy", "mlflow", "ray", "sklearn", "matplotlib", "pandas", "scipy")
"""Packages that take more than a tenth of a second to import."""
TINY = {
    "model.num_visible": 23,
    "model.num_hidden": 11,
    "sampler.num_chains": 13,
    "sampler.gibbs_steps": 2,
    "data.batch_size": 17,
    "evaluation.num_rows": 19,
    "evaluation.num_components": 5,
    "critic.search": "torch",
    "schedules.likelihood.updates": 2,
    "schedules.adversarial.updates": 2,
}


def imported_by(code: str, names: tuple[str, ...]) -> set[str]:
    """Those of `names` that a new process has imported after `code`, whose own output is not read."""
    report = f"import json, sys\n{code}\nprint('\\n' + json.dumps([n for n in {names!r} if n in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [["--list"], ["celeba_beam", "--show"], ["celeba_bean"], ["celeba_beam"], ["celeba_beam", "--set", "no.key=1"]],
)
def test_questions_and_wrong_names_are_answered_before_anything_heavy_is_imported(arguments):
    assert imported_by(f"from jobs.train import main\nmain({arguments!r})", HEAVY) == set()


def test_the_check_sees_an_import():
    assert imported_by("import numpy", ("numpy", "mlflow")) == {"numpy"}


def test_a_local_run_without_tracking_imports_only_what_it_uses(tmp_path: Path):
    """torch._dynamo, torch's compiler, alone takes longer than the rest of the way to the first update."""
    data = tmp_path / "latents"
    write_latents(data)
    settings = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    where = ["--data", str(data), "--runs", str(tmp_path), "--cache", str(tmp_path / "cache")]
    arguments = ["celeba_beam", *where, "--local", "--no-tracking", *settings]
    unused = ("ray", "mlflow", "pandas", "scipy", "sklearn", "matplotlib", "triton", "torch._dynamo", "sympy")
    assert imported_by(f"from jobs.train import main\nassert main({arguments!r}) == 0", unused) == set()

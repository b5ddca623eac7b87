"""What a benchmark's record says about where it ran, and how it is written."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.provenance import environment_tags


def describe_machine(*packages: str) -> dict[str, Any]:
    """Kind of processor, cores, and versions; no names of machines or users."""
    return {
        "machine": platform.machine(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "load_before": os.getloadavg()[0],
    }


def processor() -> str:
    """The processor's name, as the system gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def revision() -> str:
    """The commit of the source tree, or BEAM_GIT_COMMIT where there is no repository, shortened; "unknown" without both."""
    return environment_tags().get("mlflow.source.git.commit", "unknown")[:7]


def write_result(path: Path, record: dict[str, Any]) -> None:
    """Write `record` as JSON, in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")

"""The Dockerfile: a linter, and what it does not know. No image is built here."""

import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from cluster_files import CLUSTER, ROOT, pins

DOCKERFILE = CLUSTER / "Dockerfile"


def tool(name: str) -> str:
    """The path of a tool that pip installed beside Python, or of one on PATH; skips without it."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f'there is no {name}: pip install "beam-pipeline[dev]"')
    return found


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, rest) of a Dockerfile, without comments, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [(line.split(maxsplit=1)[0].upper(), line.split(maxsplit=1)[1]) for line in joined]


def image_faults(text: str) -> list[str]:
    """Our rules: pinned base and packages, another user than root at the end, no secrets, both variants from EXTRA."""
    steps = instructions(text)
    found = []
    bases = [rest.split()[0] for word, rest in steps if word == "FROM"]
    base = next((rest for word, rest in steps if word == "ARG" and rest.startswith("BASE=")), "")
    if set(bases) != {"${BASE}"} or not re.fullmatch(r"BASE=python:\d+\.\d+\.\d+-slim-\w+", base):
        found.append("the base: a Python with all three numbers, in every stage")
    users = [rest for word, rest in steps if word == "USER"]
    last_from = max(i for i, (word, _) in enumerate(steps) if word == "FROM")
    last_stage = [word for word, _ in steps[last_from:]]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]) or "USER" not in last_stage:
        found.append("USER: numbers of another user than root, in the last stage")
    elif "RUN" in last_stage[last_stage.index("USER") :]:
        found.append("USER: before the last RUN")
    copied = [rest.split()[:-1] for word, rest in steps if word == "COPY" and "--from" not in rest]
    installs = [i for i, (word, rest) in enumerate(steps) if word == "RUN" and "pip install" in rest]
    pinned = [i for i, (word, rest) in enumerate(steps) if word == "COPY" and "constraints.txt" in rest]
    if not pinned or not installs or pinned[0] > installs[0] or "PIP_CONSTRAINT=/src/constraints.txt" not in text:
        found.append("constraints.txt: before the first install, and in PIP_CONSTRAINT")
    if re.search(r"(?i)\b(?:build-essential|gcc|g\+\+|make|cmake|git)\b", " ".join(r for w, r in steps if w == "RUN")):
        found.append("build tools")
    if any(re.search(r"(?i)password|secret|token=(?!token)|api_?key", r) for w, r in steps if w in ("ARG", "ENV")):
        found.append("a secret in ARG or ENV")
    ignore = (ROOT / ".dockerignore").read_text().split()
    for sources in copied:
        found += [
            f"COPY {s}: .dockerignore leaves it out" for s in sources if not any(fnmatch(s, r[1:]) for r in ignore)
        ]
    return found


def test_linter() -> None:
    """Hadolint has no complaint, and has one about a fault."""
    hadolint = tool("hadolint")
    done = subprocess.run([hadolint, "--no-color", str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    wrong = DOCKERFILE.read_text().replace("USER 1000:1000", "USER root")
    assert subprocess.run([hadolint, "-"], input=wrong, capture_output=True, text=True).returncode != 0


def test_dockerfile() -> None:
    """No complaints, and .dockerignore begins by leaving out everything."""
    assert image_faults(DOCKERFILE.read_text()) == []
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignore[0] == "*"
    assert all((ROOT / line[1:]).exists() for line in ignore if line.startswith("!"))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("python:3.11.15-slim-bookworm\n", "python:latest\n", "the base"),
        ("USER 1000:1000", "USER root", "USER"),
        ("USER 1000:1000", "", "USER"),
        ("COPY constraints.txt pyproject.toml ./", "COPY pyproject.toml ./", "constraints.txt"),
        ("openssh-client rsync", "openssh-client rsync gcc", "build tools"),
        ("ARG EXTRA=cpu", "ARG MLFLOW_PASSWORD=x", "a secret"),
        ("COPY jobs jobs", "COPY runs runs", ".dockerignore leaves it out"),
    ],
)
def test_fault_in_the_dockerfile_is_caught(old: str, new: str, complaint: str) -> None:
    """One fault at a time."""
    text = DOCKERFILE.read_text()
    assert old in text
    wrong = text.replace(old, new, 1)
    assert any(complaint in problem for problem in image_faults(wrong)), image_faults(wrong)


def test_list_of_packages(tmp_path: Path) -> None:
    """The step that lists what is installed gives one faiss a variant, and every package is pinned."""
    step = next(rest for word, rest in instructions(DOCKERFILE.read_text()) if word == "RUN" and "tomllib" in rest)
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "python").symlink_to(sys.executable)
    for extra in ("cpu", "gpu"):
        environment = {"EXTRA": extra, "PATH": f"{tmp_path}:/usr/bin:/bin"}
        subprocess.run(["sh", "-c", step], cwd=tmp_path, env=environment, check=True)
        names = [re.split(r"[\[<>=; ]", line)[0] for line in (tmp_path / "requirements.txt").read_text().splitlines()]
        assert [name for name in names if name.startswith("faiss")] == [f"faiss-{extra}"]
        assert {"torch", "ray", "mlflow", "psycopg2-binary", "boto3"} <= set(names)
        assert [name for name in names if name.lower() not in pins()] == []
    wrong = subprocess.run(["sh", "-c", step], cwd=tmp_path, env={**environment, "EXTRA": "cuda"}, capture_output=True)
    assert wrong.returncode == 2 and b"it is cpu or gpu" in wrong.stderr

"""The pages name files and folders that exist: a moved file leaves no stale path behind."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "docs/architecture.md",
    "docs/math.md",
    "docs/reliability.md",
    "docs/security.md",
    "tests/README.md",
)
NOT_OURS = {"setup.py", "your_script.py"}


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("page", PAGES)
def test_every_python_file_that_a_page_names_exists(page: str) -> None:
    files = tracked()
    named = set(re.findall(r"[\w./-]*\w+\.py\b", (ROOT / page).read_text())) - NOT_OURS
    missing = [name for name in named if not any(f"/{file}".endswith(f"/{name.lstrip('./')}") for file in files)]
    assert not missing, f"{page} names {sorted(missing)}"

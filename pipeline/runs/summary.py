"""A job's last word: summary.json for programs, a table for people. `stages`, `metrics` and `recipe` are always there."""

from pathlib import Path
from typing import Any

from pipeline.files import write_json


def write_summary(
    folder: Path, recipe: str | None, stages: dict[str, dict[str, Any]], metrics: dict[str, Any], **facts: Any
) -> Path:
    """Write <folder>/summary.json. `stages`: name -> {"seconds", "skipped"}; `recipe` None where a job has none."""
    path = folder / "summary.json"
    write_json(path, {"recipe": recipe, "stages": stages, "metrics": metrics, **facts})
    return path


def as_table(rows: dict[str, Any]) -> str:
    """Names and values in two columns; numbers in four digits."""
    width = max(len(name) for name in rows)
    return "\n".join(f"{k:{width}s}  {f'{v:.4g}' if isinstance(v, float) else v}" for k, v in rows.items())

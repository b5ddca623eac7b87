"""What an experiment of the paper is, and the record it leaves: numbers under docs/results/, pictures beside its runs."""

import json
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.paper.units import Pool, Unit, read_result, run_units
from pipeline.files import canonical_hash, write_json
from pipeline.provenance import environment_tags

PROTOCOLS = """Protocols. Every chain begins wide: independent normal values with each visible unit's mean and standard
deviation in the training rows (binary units: draws with the unit's mean), beta = 1. `fresh`: 100 sweeps at beta = 1.
`driven`: beta from its stationary law, 100 sweeps of the driven sampler at standard deviation .95 and momentum .9, then 5
sweeps at beta = 1. E[v | h] is taken at the h of the last sweep. No searched setting changes them."""


@dataclass(frozen=True)
class Plan:
    """How the paper is run: what data there are, and toy sizes or the full ones."""

    quick: bool = False
    mnist: Path | None = None
    """Prepared shards of continuous MNIST; in the quick form 8x8 digits stand in, and None without MNIST."""
    binary: Path | None = None
    """The same, binary."""
    small: tuple[Path, Path] | None = None
    """The 8x8 digits, continuous and binary, whatever the others are."""
    faces: dict[str, str] | None = None
    """Folders of a finished `make celeba-train`: pixels, latents and run; None without photographs."""


@dataclass(frozen=True)
class Table:
    """Rows of text below column heads; the first cell of a row names it."""

    title: str
    head: Sequence[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Finding:
    """What came out of an experiment."""

    tables: Sequence[Table]
    numbers: dict[str, Any]
    """What the claims are judged by; plain values."""
    pictures: Sequence[str] = field(default_factory=tuple)
    """File names in the experiment's folder, with what they show: "panels.png: samples of ..."."""
    notes: Sequence[str] = field(default_factory=tuple)
    """Protocol, readings of what the paper leaves open, what the eye sees."""


Finish = Callable[[dict[str, dict[str, Any]], Path, Plan], Finding]
"""From the figures of all units by name, and the experiment's folder, to the finding; draws the pictures."""


@dataclass(frozen=True)
class Experiment:
    """One row of the paper."""

    name: str
    figure: str
    title: str
    waves: Callable[[Plan], list[list[Unit]]]
    """Units of one wave may use what the units of earlier waves left in their folders. Empty: cannot be run here."""
    finish: Finish
    missing: str = ""
    """What to do when `waves` is empty."""
    home: str = ""
    """Folder of the units below the runs; experiments that share it share units of one name. Empty: its own name."""
    photographs: bool = False
    """Its pictures show photographs, or what was trained on them: they stay in its folder, without a copy for the record."""


def run_experiment(experiment: Experiment, plan: Plan, runs: Path, results: Path, cache: Path, pool: Pool) -> bool:
    """Run what is not done of an experiment and write <results>/<name>.json; False when it was all there.

    Raises:
        KeyboardInterrupt, UnitFailed: as `run_units`.
    """
    waves = experiment.waves(plan)
    fingerprint = canonical_hash([unit.fingerprint for wave in waves for unit in wave])
    record = results / f"{experiment.name}.json"
    folder = runs / (experiment.home or experiment.name)
    if not waves or read_record(record).get("fingerprint") == fingerprint:
        return False
    for number, wave in enumerate(waves):
        part = f" {number + 1}/{len(waves)}" if len(waves) > 1 else ""
        run_units(wave, folder, cache, pool, experiment.name + part)
    done = {unit.name: read_result(folder, unit) for wave in waves for unit in wave}
    found = {name: result for name, result in done.items() if result is not None}
    figures = {name: result["figures"] for name, result in found.items()}
    seconds = {name: result["seconds"] for name, result in found.items()}
    finding = experiment.finish(figures, folder, plan)
    keep_pictures(() if experiment.photographs else finding.pictures, folder, results / experiment.name)
    tables = [*finding.tables, seconds_table(seconds)]
    write_json(
        record,
        {
            "experiment": experiment.name,
            "figure": experiment.figure,
            "title": experiment.title,
            "quick": plan.quick,
            "fingerprint": fingerprint,
            "command": f"make paper ONLY={experiment.name}" + (" QUICK=1" if plan.quick else ""),
            "seconds": round(sum(seconds.values())),
            "machine": f"{os.cpu_count()} cores ({platform.machine()}), one thread per unit, no GPU used",
            "environment": environment_tags(),
            "numbers": finding.numbers,
            "tables": [{"title": t.title, "head": list(t.head), "rows": [list(r) for r in t.rows]} for t in tables],
            "pictures": list(finding.pictures),
            "notes": list(finding.notes),
            "units": figures,
            "unit_seconds": {name: round(value, 1) for name, value in seconds.items()},
        },
    )  # fmt: skip
    return True


def seconds_table(seconds: dict[str, float]) -> Table:
    """Time of training and measuring, by model: units whose names differ in the last part, the seed, are one."""
    models: dict[str, list[float]] = {}
    for name, value in seconds.items():
        kind, _, last = name.rpartition("-")
        models.setdefault(kind if last.isdigit() else name, []).append(value)
    rows = [[name, str(len(v)), f"{sum(v) / len(v):.0f}", f"{max(v):.0f}"] for name, v in models.items()]
    return Table("Time of one thread, training and measuring", ("model", "runs", "mean seconds", "longest"), rows)


def keep_pictures(pictures: Sequence[str], source: Path, target: Path) -> None:
    """Copy an experiment's pictures beside its record, in place of those of an earlier one."""
    shutil.rmtree(target, ignore_errors=True)
    for file in (entry.partition(": ")[0] for entry in pictures):
        if (source / file).exists():  # the page says which is missing
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, target / file)


def read_record(file: Path) -> dict[str, Any]:
    """An experiment's record; empty when there is none."""
    try:
        return json.loads(file.read_text())
    except (OSError, json.JSONDecodeError):
        return {}

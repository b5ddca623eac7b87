"""Stages of a chain: each is skipped when its result is there and was made from the same inputs.

A stage's record, <run>/stages/<name>.json, holds the fingerprint of its inputs and its outputs (plain values). It is
written after the stage, atomically, so a killed stage is simply run again.
"""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.files import canonical_hash, write_json
from pipeline.runs.memory import PeakMemory

_log = logging.getLogger(__name__)


class StageReport(NamedTuple):
    """The report of a stage, for the summary."""

    name: str
    seconds: float
    skipped: bool
    peak_bytes: int | None = None
    """Most resident memory of this process and its descendants (pipeline/runs/memory.py); None for a skipped stage."""

    def to_dict(self) -> dict[str, Any]:
        """As it stands in summary.json: seconds, skipped, and megabytes (1e6 bytes) of memory at the peak."""
        peak = {} if self.peak_bytes is None else {"peak_rss_mb": round(self.peak_bytes / 1e6)}
        return {"seconds": round(self.seconds, 2), "skipped": self.skipped, **peak}


class Stages:
    """The stages of one run, in order."""

    def __init__(self, folder: Path, names: tuple[str, ...], redo_from: str | None):
        """Forget the records of `redo_from` and all later stages. Raises ValueError on an unknown name."""
        if redo_from is not None and redo_from not in names:
            raise ValueError(f"--from {redo_from!r}: the stages are {', '.join(names)}")
        self.folder = folder / "stages"
        self.redo = set(names[names.index(redo_from) :]) if redo_from else set()
        self.reports: list[StageReport] = []
        self.forgotten = {name for name in self.redo if self._file(name).exists()}
        """Stages whose record was dropped now: what they made is to be made anew. A redo that was killed has none."""
        for name in self.forgotten:
            self._file(name).unlink()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _record(self, name: str) -> dict[str, Any]:
        try:
            record = json.loads(self._file(name).read_bytes())
        except (OSError, ValueError, RecursionError):  # JSON's and Unicode's are ValueErrors
            return {}
        # a record that is not whole is none: the stage is run again
        return record if isinstance(record, dict) and isinstance(record.get("outputs"), dict) else {}

    def outputs(self, name: str) -> dict[str, Any] | None:
        """The outputs that stage `name` made last, whatever its inputs were; None without a record."""
        return self._record(name).get("outputs")

    def run(
        self,
        name: str,
        inputs: dict[str, Any],
        make: Callable[[], dict[str, Any]],
        still_there: Callable[[dict[str, Any]], bool] = lambda outputs: True,
    ) -> dict[str, Any]:
        """The outputs of stage `name`: from its record when the inputs match and `still_there(outputs)`, else by `make()`."""
        fingerprint = canonical_hash(inputs)
        start = time.perf_counter()
        record = self._record(name)
        if record.get("fingerprint") == fingerprint and still_there(record["outputs"]):
            self.reports.append(StageReport(name, time.perf_counter() - start, True))
            return record["outputs"]
        _log.info("stage %s", name)
        with PeakMemory() as memory:
            outputs = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self._file(name), {"fingerprint": fingerprint, "inputs": inputs, "outputs": outputs})
        self.reports.append(StageReport(name, time.perf_counter() - start, False, memory.bytes))
        return outputs

"""The journal of what is to be sent to the tracking server: only appended to, with a note of how much was sent.

Beside the file `note` (it holds the run's id) lie `<note>.spool`, one JSON entry per line in the order of events, and
`<note>.sent`, replaced atomically after each delivery. A killed process loses nothing: the next one reads on where the
last delivery ended. Knows nothing of MLflow (delivery.py sends).
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.files import replacing


@dataclass
class Sent:
    """The part of the journal that the server has. Positions are bytes of the journal."""

    rows: int = 0
    """All metrics before it are on the server."""
    rest: int = 0
    """All other entries before it are on the server."""
    doubt: int = 0
    """End of a batch of metrics whose answer did not come (above `rows`), else 0."""
    creating: str = ""
    """Tag of a new run whose answer did not come; empty when there is none."""


class Journal:
    """The journal of one run. One process writes it (its folder is locked); several threads may ask to send it."""

    def __init__(self, note: Path):
        self.note = note
        self.file = note.with_name(f"{note.name}.spool")
        self._sent = note.with_name(f"{note.name}.sent")
        self.lock = FileLock(note.with_name(f"{note.name}.sending"))
        """Held by whoever sends."""
        self._last: dict[str, tuple[int, float]] | None = None

    @property
    def run_id(self) -> str:
        """The run's id; empty while the server has not made the run."""
        return self.note.read_text().strip() if self.note.exists() else ""

    def name_run(self, run_id: str) -> None:
        """Keep the run's id."""
        _write(self.note, run_id)

    def sent(self) -> Sent:
        """The part of the journal that the server has."""
        return Sent(**json.loads(self._sent.read_text())) if self._sent.exists() else Sent()

    def keep(self, sent: Sent) -> None:
        """Write how far the server is."""
        _write(self._sent, json.dumps(asdict(sent)))

    def sync(self) -> None:
        """Force the journal to the disk before it is sent, so that it always contains everything that the server has."""
        with self.file.open("rb") as file:
            os.fsync(file.fileno())

    def open(self) -> None:
        """Before the first `append` of a process: drop a last line that a kill cut, and learn which steps are in."""
        self.note.parent.mkdir(parents=True, exist_ok=True)
        last: dict[str, tuple[int, float]] = {}
        whole = 0
        for entry, whole in self.entries(0):  # noqa: B007
            if entry["kind"] == "metrics":
                last |= {key: (entry["step"], value) for key, value in entry["values"].items()}
        with self.file.open("ab") as file:
            file.truncate(whole)
        self._last = last

    def append(self, kind: str, **values: Any) -> None:
        """Add an entry. Raises OSError when the disk does not take it; the journal is as before then."""
        line = json.dumps({"kind": kind, **values}).encode() + b"\n"
        with self.file.open("ab") as file:
            end = file.tell()
            try:
                file.write(line)
                file.flush()
            except OSError:
                os.truncate(self.file, end)
                raise

    def append_row(self, step: int, values: Mapping[str, float], time_ms: int, corrects: bool = False) -> None:
        """Add those of a row's metrics that are new: a step that is logged again, after a resume, is in already.

        With `corrects` a value of the last step is added when it differs from the one that is in.
        """
        assert self._last is not None, "open() comes first"
        none = (-math.inf, math.nan)
        new = {}
        for key, value in values.items():
            last, before = self._last.get(key, none)
            differs = value != before and not (math.isnan(value) and math.isnan(before))
            if step > last or (corrects and step == last and differs):
                new[key] = value
        if new:
            self.append("metrics", time=time_ms, step=step, values=new)
            self._last |= {key: (step, value) for key, value in new.items()}

    def entries(self, start: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Whole entries from byte `start` on, each with the byte after it."""
        if not self.file.exists():
            return
        with self.file.open("rb") as file:
            file.seek(start)
            end = start
            for line in file:
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:  # a page that a power cut left empty
                    entry = None
                if entry is None:
                    return
                end += len(line)
                yield entry, end

    def waiting(self) -> tuple[int, int]:
        """(metric values, other entries) that the server has not."""
        sent = self.sent()
        values = sum(len(e["values"]) for e, _ in self.entries(sent.rows) if e["kind"] == "metrics")
        return values, sum(e["kind"] != "metrics" for e, _ in self.entries(sent.rest))


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())

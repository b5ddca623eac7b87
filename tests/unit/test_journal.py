"""The journal of a run: which metrics enter it."""

import math
from pathlib import Path

from pipeline.tracking.journal import Journal


def test_a_correction_enters_once_even_if_it_is_no_number(tmp_path: Path) -> None:
    def correct(values: dict[str, float]) -> list[dict[str, float]]:
        """All rows of the journal, after these corrections by another process."""
        journal = Journal(tmp_path / "run_id")
        journal.open()
        journal.append_row(3, values, 1, corrects=True)
        return [entry["values"] for entry, _ in journal.entries(0)]

    for _ in range(3):
        rows = correct({"a": math.nan, "b": 1.0})
    assert len(rows) == 1 and math.isnan(rows[0]["a"]) and rows[0]["b"] == 1.0
    assert correct({"a": 2.0, "b": 1.0})[1:] == [{"a": 2.0}]
    assert len(correct({"a": 2.0, "b": 1})) == 2
    assert math.isnan(correct({"a": math.nan, "b": 1.0})[2]["a"])

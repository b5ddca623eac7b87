"""Peak memory of a block, of this process and of one that it started; a stage's report carries it."""

import mmap
import subprocess
import sys
import time
from pathlib import Path

from pipeline.runs.memory import PeakMemory, resident_bytes
from pipeline.runs.stages import Stages

SIZE = 200 * 2**20


def test_what_a_block_held_and_let_go_is_seen():
    before = resident_bytes()
    # pages of its own: memory from the allocator may be what earlier tests gave back to it, and resident already
    with PeakMemory() as memory, mmap.mmap(-1, SIZE) as held:
        held.write(bytes(SIZE))
        time.sleep(1.2)  # more than two samples
    assert memory.bytes - before > 0.9 * SIZE


def test_a_process_that_the_block_started_counts():
    code = f"held = bytearray(b'x') * {SIZE}; import time; print('held', flush=True); time.sleep(60)"
    before = resident_bytes()
    with PeakMemory() as memory:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        time.sleep(1.2)
        process.kill()
        process.communicate()
    assert memory.bytes - before > 0.9 * SIZE


def test_a_stage_reports_its_peak_and_a_skipped_one_none(tmp_path: Path):
    for skipped in (False, True):
        stages = Stages(tmp_path, ("only",), None)
        stages.run("only", {"a": 1}, lambda: {})
        (report,) = stages.reports
        assert report.skipped is skipped
        assert report.to_dict().get("peak_rss_mb", 0) == (0 if skipped else round(report.peak_bytes / 1e6))
        assert skipped or report.peak_bytes > 10e6

"""Damaged data: named, and the run stops, or leaves out up to the share that the settings allow, the same on all workers."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from groups import GroupFailure, run_group
from small_runs import assert_same_bits, final, job_in, run_job, run_until, small

from data_prep.tasks import measure_moments, merge_moments
from pipeline.comm import Comm
from pipeline.config import ConfigError, DataConfig, RunConfig
from pipeline.data import shards
from pipeline.data.manifest import Manifest, ShardError, SplitEntry, write_manifest
from pipeline.data.shards import load_split, write_shard
from pipeline.data.undamaged import load_undamaged_rows
from pipeline.runs.job import load_job_rows
from pipeline.training.checkpoint import load_latest

SIZES = (70, 31, 0, 99)  # unequal shards, one without rows


def write_uneven(folder: Path, poison: tuple[int, ...] = ()) -> str:
    """Four train shards of unequal sizes, one valid; the rows `poison` of the train split have a NaN or an infinity."""
    folder.mkdir()
    rows = np.random.default_rng(0).standard_normal((sum(SIZES), 23)).astype(np.float32)
    valid = np.random.default_rng(1).standard_normal((40, 23)).astype(np.float32)
    moments = merge_moments([measure_moments(rows)])
    for place in poison:
        rows[place, place % 23] = (np.nan, np.inf, -np.inf)[place % 3]
    starts = np.cumsum([0, *SIZES])
    with pytest.MonkeyPatch.context() as patch:
        if poison:  # another program's shard: ours are refused when they are written
            patch.setattr(shards.np, "isfinite", np.ones_like)
        entries = tuple(
            write_shard(folder / f"train-{i:05d}.tar", rows[starts[i] : starts[i + 1]]) for i in range(len(SIZES))
        )
    splits = {
        "train": SplitEntry(len(rows), entries, *moments),
        "valid": SplitEntry(40, (write_shard(folder / "valid-00000.tar", valid),), *moments),
    }
    manifest = Manifest("latents", "synthetic-faces", "0" * 64, {}, (23,), splits)
    write_manifest(folder, manifest)
    return manifest.hash


def allowing(share: float) -> RunConfig:
    return dataclasses.replace(small(10), data=DataConfig(batch_size=17, max_skipped_share=share))


def damage(shard: Path, how: str) -> None:
    content = bytearray(shard.read_bytes())
    if how == "flip":
        content[700] ^= 1
        shard.write_bytes(content)
    elif how == "truncated":
        shard.write_bytes(content[: len(content) // 2])
    elif how == "missing":
        shard.unlink()
    else:
        write_shard(shard, np.zeros((31, 22), np.float32))


@pytest.mark.parametrize("how", ["flip", "truncated", "missing", "wrong shape"])
def test_a_damaged_shard_stops_a_run_or_is_left_out_whole(how: str, tmp_path: Path, caplog) -> None:
    write_uneven(tmp_path / "d")
    whole = load_split(tmp_path / "d", "train").numpy()
    damage(tmp_path / "d" / "train-00001.tar", how)
    with pytest.raises(ShardError, match=r"train-00001\.tar"):
        load_undamaged_rows(tmp_path / "d", "train", 0.0)
    with pytest.raises(ShardError, match=r"31 of 200 rows of split 'train' are damaged, more than .*train-00001\.tar"):
        load_undamaged_rows(tmp_path / "d", "train", 0.15)
    found = load_undamaged_rows(tmp_path / "d", "train", 0.155)
    assert found.skipped == tuple(range(70, 101)) and "train-00001.tar" in caplog.text
    np.testing.assert_array_equal(found.rows.numpy(), np.delete(whole, range(70, 101), 0))


def test_rows_that_are_not_finite_are_left_out_one_by_one(tmp_path: Path, caplog) -> None:
    write_uneven(tmp_path / "d", poison=(3, 100, 199))
    with pytest.raises(ShardError, match=r"train-00000\.tar, block 000000\.npy has values that are not finite"):
        load_undamaged_rows(tmp_path / "d", "train", 0.0)
    found = load_undamaged_rows(tmp_path / "d", "train", 0.02)
    assert found.skipped == (3, 100, 199) and len(found.rows) == 197
    assert bool(found.rows.isfinite().all()) and "3 of 200 rows of split 'train' are damaged" in caplog.text


def test_a_split_with_nothing_left_and_a_share_out_of_range_are_refused(tmp_path: Path) -> None:
    write_uneven(tmp_path / "d")
    for file in (tmp_path / "d").glob("train-*.tar"):
        file.unlink()
    with pytest.raises(ShardError, match="200 of 200 rows"):
        load_undamaged_rows(tmp_path / "d", "train", 0.99)
    for share in (-0.1, 1.0):
        with pytest.raises(ConfigError, match=r"data\.max_skipped_share"):
            DataConfig(max_skipped_share=share)


def test_a_run_without_the_damaged_rows_is_the_same_on_any_number_of_workers_and_is_resumed(tmp_path: Path) -> None:
    data_hash = write_uneven(tmp_path / "d", poison=(3, 100, 199))
    damage(tmp_path / "d" / "train-00001.tar", "flip")
    one, three = (job_in(tmp_path / name, tmp_path / "d", data_hash, allowing(0.2)) for name in ("one", "three"))
    assert run_job(one) == 20
    run_group(run_until, 2, three, 7)
    assert run_group(run_job, 3, three) == [20] * 3
    assert_same_bits(final(tmp_path / "one"), final(tmp_path / "three"))
    found = load_latest(tmp_path / "three" / "checkpoints")
    assert found is not None and found.meta["skipped"]["rows"] == 33  # row 100 lies in the damaged shard


def test_a_run_does_not_go_on_with_other_rows_left_out(tmp_path: Path) -> None:
    data_hash = write_uneven(tmp_path / "d")
    job = job_in(tmp_path / "run", tmp_path / "d", data_hash, allowing(0.2))
    run_until(job, 7)
    damage(tmp_path / "d" / "train-00001.tar", "flip")
    with pytest.raises(ValueError, match=r"left out 0 damaged rows; now 31 .* choose another --name"):
        run_job(job)


def _train_from_own_copy(base: str, values: dict, share: float) -> None:
    comm = Comm.current()
    job = job_in(Path(base) / "run", Path(base) / f"d{comm.rank}", "hash", RunConfig.from_dict(values))
    load_job_rows(job, comm)


@pytest.mark.parametrize(("share", "says"), [(0.2, "different rows"), (0.0, r"train-00001\.tar has sha256")])
def test_damage_on_one_machine_only_ends_all_workers(share: float, says: str, tmp_path: Path) -> None:
    write_uneven(tmp_path / "d0")
    shutil.copytree(tmp_path / "d0", tmp_path / "d1")
    damage(tmp_path / "d1" / "train-00001.tar", "flip")
    start = time.monotonic()
    with pytest.raises(GroupFailure, match=says):
        run_group(_train_from_own_copy, 2, str(tmp_path), json.loads(json.dumps(allowing(share).to_dict())), share)
    assert time.monotonic() - start < 30

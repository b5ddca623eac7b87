"""The shard format: equal rows give equal bytes, every damage is named, streaming gives the same batches on any world."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import shards
from pipeline.data.manifest import Manifest, Problem, ShardError, SplitEntry, read_manifest, write_manifest
from pipeline.data.shards import iterate_split, load_split, write_shard
from pipeline.data.whitening import read_whitening
from pipeline.files import file_hash

SIZES = (600, 0, 300, 256, 1)  # rows per shard: several blocks, an empty shard, whole blocks, a single row
ROWS = sum(SIZES)


def make_rows(kind: str = "latents", count: int = ROWS) -> np.ndarray:
    rng = np.random.default_rng(3)
    if kind == "pixels":
        return rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return rng.standard_normal((count, 5)).astype(np.float32)


def write_set(folder: Path, kind: str = "latents", sizes: tuple[int, ...] = SIZES) -> Manifest:
    folder.mkdir(exist_ok=True)
    rows, entries, start = make_rows(kind, sum(sizes)), [], 0
    for index, size in enumerate(sizes):
        entries.append(write_shard(folder / f"train-{index:05d}.tar", rows[start : start + size]))
        start += size
    splits = {"train": SplitEntry(len(rows), tuple(entries), tuple(rows.mean(0).ravel().tolist()), (1.0,) * 5)}
    problems = (Problem("000007.jpg", None, 'odd  [1,  2] "name" é'),)
    manifest = Manifest(kind, "celeba", "abc", {"crop": 148}, rows.shape[1:], splits, problems)
    write_manifest(folder, manifest)
    return manifest


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_rows_come_back_in_order(kind: str, tmp_path: Path) -> None:
    manifest = write_set(tmp_path, kind)
    assert read_manifest(tmp_path) == manifest == Manifest.from_dict(manifest.to_dict())
    rows = load_split(tmp_path, "train")
    assert str(rows.dtype) == {"pixels": "torch.uint8", "latents": "torch.float32"}[kind]
    np.testing.assert_array_equal(rows.numpy(), make_rows(kind))


def test_equal_rows_give_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_shard(tmp_path / "train-00000.tar", make_rows())
    monkeypatch.setattr("time.time", lambda: 4e9)
    other = tmp_path / "other"
    other.mkdir()
    assert write_shard(other / "train-00000.tar", np.asfortranarray(make_rows())) == first
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []
    with tarfile.open(tmp_path / "train-00000.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [f"{block:06d}.npy" for block in range(-(-ROWS // 256))]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o444)}


def test_a_failed_write_leaves_the_old_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train-00000.tar"
    entry = write_shard(path, make_rows())

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(shards.np, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_shard(path, make_rows() + 1)
    assert file_hash(path) == entry.sha256 and len(list(tmp_path.iterdir())) == 1


def test_a_reader_keeps_the_shard_it_opened(tmp_path: Path) -> None:
    """A shard is replaced by a rename, never rewritten in place."""
    path = tmp_path / "train-00000.tar"
    entry = write_shard(path, make_rows())
    with path.open("rb") as reader:
        assert write_shard(path, make_rows() + 1).sha256 != entry.sha256
        assert hashlib.sha256(reader.read()).hexdigest() == entry.sha256


def test_rows_that_are_no_data_are_not_written(tmp_path: Path) -> None:
    rows = make_rows()
    with pytest.raises(ValueError, match="rows of type float64; a shard holds uint8 pixels or float32 latents"):
        write_shard(tmp_path / "a.tar", rows.astype(np.float64))
    rows[5, 2] = np.nan
    with pytest.raises(ValueError, match=r"a\.tar: 1 values are not finite"):
        write_shard(tmp_path / "a.tar", rows)
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_is_named(tmp_path: Path) -> None:
    write_set(tmp_path)
    path = tmp_path / "train-00002.tar"
    data = bytearray(path.read_bytes())
    data[3000] ^= 4
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"train-00002\.tar has sha256 \w+, its manifest says \w+; delete it and run"):
        load_split(tmp_path, "train")


def test_missing_and_truncated_shards_are_named(tmp_path: Path) -> None:
    write_set(tmp_path)
    path = tmp_path / "train-00003.tar"
    data = path.read_bytes()
    path.write_bytes(data[:-512])
    with pytest.raises(
        ShardError, match=rf"train-00003\.tar has {len(data) - 512} bytes, its manifest says {len(data)}"
    ):
        load_split(tmp_path, "train", verify=False)
    path.unlink()
    with pytest.raises(ShardError, match=r"train-00003\.tar is missing; run the prepare job again"):
        load_split(tmp_path, "train")


def no_finite(rows: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(rows))[:, None] == 258, np.float32(np.inf), rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], r"block 000001\.npy holds float32 \[43, 5\], its manifest says float32 \[44, 5\]"),
        (lambda rows: rows[:256], r"train-00002\.tar ends after 256 rows, its manifest says 300"),
        (lambda rows: rows[:, :4].copy(), r"holds float32 \[256, 4\], its manifest says float32 \[256, 5\]"),
        (lambda rows: rows.astype(np.uint8), r"holds uint8 \[256, 5\], its manifest says float32 \[256, 5\]"),
        (no_finite, r"block 000001\.npy has values that are not finite"),
    ],
)
def test_contents_are_checked_even_when_the_hash_fits(
    change: Callable[[np.ndarray], np.ndarray], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer with an error records the hash of wrong rows faithfully."""
    manifest = write_set(tmp_path)
    train = manifest.splits["train"]
    monkeypatch.setattr(shards.np, "isfinite", np.ones_like)  # the writer's check, switched off
    entry = write_shard(tmp_path / "train-00002.tar", change(make_rows()[600:900]))
    monkeypatch.undo()
    entries = (*train.shards[:2], replace(entry, rows=300), *train.shards[3:])
    write_manifest(tmp_path, replace(manifest, splits={"train": replace(train, shards=entries)}))
    with pytest.raises(ShardError, match=message):
        load_split(tmp_path, "train")


def test_a_file_that_is_no_tar_and_a_pickle_are_refused(tmp_path: Path) -> None:
    manifest = write_set(tmp_path)
    path = tmp_path / "train-00004.tar"
    size = path.stat().st_size
    path.write_bytes(b"x" * size)
    with pytest.raises(ShardError, match=r"train-00004\.tar cannot be read"):
        load_split(tmp_path, "train", verify=False)
    npy = io.BytesIO()
    np.save(npy, np.array([{"an": "object"}], dtype=object), allow_pickle=True)
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("000000.npy")
        member.size = npy.tell()
        npy.seek(0)
        tar.addfile(member, npy)
    assert path.stat().st_size == size == manifest.splits["train"].shards[4].bytes
    with pytest.raises(ShardError, match=r"train-00004\.tar cannot be read \(Object arrays cannot be loaded"):
        load_split(tmp_path, "train", verify=False)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_manifests_that_cannot_be_trusted_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"manifest\.json is missing: these shards were never finished"):
        read_manifest(tmp_path)
    manifest = write_set(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["hash"] == manifest.hash
    cases: list[tuple[dict[str, object], str]] = [
        ({"version": 7}, r"manifest\.json: manifest version 7 is unknown; this program reads version 1"),
        ({"settings": {"crop": 140}}, "was changed after it was written"),
        ({"kind": "sounds"}, "kind 'sounds' is unknown; the kinds are pixels, latents"),
        ({"surprise": 1}, "missing or unknown field"),
        ({"splits": {"train": {"rows": 1}}}, "missing or unknown field: 'shards'"),
    ]
    for changes, message in cases:
        write_manifest(tmp_path, manifest)
        edit(tmp_path, **changes)
        with pytest.raises(ShardError, match=message):
            read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"version": 1')
    with pytest.raises(ShardError, match="is no manifest"):
        read_manifest(tmp_path)
    train = manifest.splits["train"]
    with pytest.raises(ShardError, match="has 9 rows, its shards have 1157"):
        replace(manifest, splits={"train": replace(train, rows=9)})
    outside = (replace(train.shards[0], name="../train-00000.tar"), *train.shards[1:])
    with pytest.raises(ShardError, match="is not a plain file name"):
        replace(manifest, splits={"train": replace(train, shards=outside)})
    write_manifest(tmp_path, manifest)
    with pytest.raises(ShardError, match="there is no split 'dev'; the manifest has train"):
        load_split(tmp_path, "dev")


def test_a_part_of_a_split_opens_only_the_shards_that_overlap_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path, sizes=(256,) * 12)
    opened: list[str] = []
    check = shards.check_shard
    monkeypatch.setattr(shards, "check_shard", lambda *args: (opened.append(args[1].name), check(*args)))
    found = np.concatenate(list(iterate_split(tmp_path, read_manifest(tmp_path), "train", 900, 1300, True)))
    assert np.array_equal(found, make_rows(count=256 * 12)[900:1300])
    assert sorted(opened) == ["train-00003.tar", "train-00004.tar", "train-00005.tar"]


def test_pixels_are_no_latents(tmp_path: Path) -> None:
    write_set(tmp_path, "pixels")
    with pytest.raises(ShardError, match="holds pixels, not latents"):
        read_whitening(tmp_path)

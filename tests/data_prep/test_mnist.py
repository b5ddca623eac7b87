"""MNIST's files are read strictly and become rows with their labels; the small digits stand in for them by name."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.mnist import CHECKSUMS, IDXError, check_files, read_checksums, read_idx, write_digits, write_mnist
from jobs.prepare import main
from pipeline.data.manifest import ShardError, read_manifest
from pipeline.data.rows import load_labels, load_rows
from pipeline.data.shards import load_split
from pipeline.files import file_hash


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    magic = 0x800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def write_gz(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content, mtime=0))
    return path


@pytest.fixture
def source(tmp_path) -> Path:
    """A set of MNIST's layout: 200 + 50 images of 5x3 pixels whose first pixels tell part, number and class."""
    folder = tmp_path / "idx"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", 200), ("t10k", 50)):
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        images = rng.integers(0, 256, (count, 5, 3), dtype=np.uint8)
        images[:, 0, 0], images[:, 0, 1], images[:, 0, 2] = labels, np.arange(count), part == "train"
        write_gz(folder / f"{part}-images-idx3-ubyte.gz", idx(images))
        write_gz(folder / f"{part}-labels-idx1-ubyte.gz", idx(labels))
    return folder


def sums(folder: Path) -> dict[str, str]:
    return {name: file_hash(folder / name) for name in CHECKSUMS}


def test_every_image_comes_once_with_its_label(source, tmp_path):
    manifest = write_mnist(source, tmp_path / "out", checksums=sums(source), label="tiny")
    assert (manifest.dataset, manifest.kind, manifest.row_shape) == ("tiny", "points", (15,))
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 180, "valid": 20, "test": 50}
    seen = []
    for split in manifest.splits:
        rows, labels = load_rows(tmp_path / "out", split), load_labels(tmp_path / "out", split)
        pixels = (rows * 255).round().int()
        assert rows.dtype == torch.float32 and rows.min() >= 0 and rows.max() <= 1
        torch.testing.assert_close(pixels / 255, rows, rtol=0, atol=1e-7)
        assert torch.equal(pixels[:, 0], labels.int()) and labels.dtype == torch.int64
        assert bool((pixels[:, 2] == (split != "test")).all())
        seen += [(split == "test", int(i)) for i in pixels[:, 1]]
    assert sorted(seen) == [(False, i) for i in range(200)] + [(True, i) for i in range(50)]
    assert seen[:180] != sorted(seen[:180])  # shuffled


def test_rows_equal_the_source_pixel_for_pixel(source, tmp_path):
    images = read_idx(source / "train-images-idx3-ubyte.gz", 3)
    write_mnist(source, tmp_path / "out", checksums=sums(source), label="tiny")
    write_mnist(source, tmp_path / "binary", binary=True, checksums=sums(source), label="tiny")
    rows, binary = load_split(tmp_path / "out", "valid"), load_split(tmp_path / "binary", "valid")
    for row, bits in zip(rows, binary):
        image = images[int(row[1] * 255 + 0.5)].reshape(-1)
        np.testing.assert_array_equal((row * 255).round().numpy(), image)
        np.testing.assert_array_equal(bits.numpy(), image > 127)  # 128 / 255 is above 0.5
    assert read_manifest(tmp_path / "binary").dataset == "tiny-binary"


def test_a_second_run_does_nothing_and_missing_labels_are_made_again(source, tmp_path):
    out = tmp_path / "out"

    def write(**more):
        return write_mnist(source, out, checksums=sums(source), label="tiny", **more)

    first, written = write(), (out / "train-00000.tar").stat().st_mtime_ns
    assert write() == first and (out / "train-00000.tar").stat().st_mtime_ns == written
    (out / "labels" / "test-00000.tar").unlink()
    assert write() == first and len(load_labels(out, "test")) == 50
    assert write(binary=True).hash != first.hash
    labels = load_labels(out, "test")
    assert set(load_split(out, "test").unique().tolist()) == {0.0, 1.0} and len(labels) == 50


def test_labels_of_other_rows_and_absent_labels_are_refused(source, tmp_path):
    write_mnist(source, tmp_path / "a", checksums=sums(source), label="tiny")
    write_mnist(source, tmp_path / "b", binary=True, checksums=sums(source), label="tiny")
    (tmp_path / "a" / "labels").rename(tmp_path / "kept")
    with pytest.raises(ShardError, match="tiny, which has no labels"):
        load_labels(tmp_path / "a", "train")
    (tmp_path / "b" / "labels").rename(tmp_path / "a" / "labels")
    with pytest.raises(ShardError, match="belong to other rows"):
        load_labels(tmp_path / "a", "train")


def test_missing_and_changed_files_are_named_with_what_to_do(source, tmp_path):
    with pytest.raises(IDXError) as error:
        write_mnist(tmp_path / "nowhere", tmp_path / "out")
    assert all(name in str(error.value) for name in (*CHECKSUMS, str(tmp_path / "nowhere"), "digits-8x8"))
    with pytest.raises(IDXError, match=r"train-images.*not the published file.*again"):
        check_files(source, CHECKSUMS)
    (source / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(IDXError, match=r"t10k-labels-idx1-ubyte\.gz missing"):
        check_files(source, CHECKSUMS)
    assert not (tmp_path / "out").exists()


def test_another_set_needs_checksums_and_a_name_of_its_own(source, tmp_path):
    with pytest.raises(IDXError, match="not MNIST"):
        write_mnist(source, tmp_path / "out", checksums=sums(source))
    with pytest.raises(IDXError, match="'tiny' is not MNIST"):
        write_mnist(source, tmp_path / "out", label="tiny")
    lines = "".join(f"{value}  {name}\n" for name, value in sums(source).items())
    (tmp_path / "SUMS").write_text(lines)
    assert read_checksums(tmp_path / "SUMS") == sums(source)
    (tmp_path / "SUMS").write_text("abc  file")
    with pytest.raises(IDXError, match="no line of sha256sum"):
        read_checksums(tmp_path / "SUMS")
    with pytest.raises(IDXError, match="cannot be read"):
        read_checksums(tmp_path / "absent")


IMAGES = np.zeros((4, 3, 2), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(IMAGES, 2049), "begins with 2049.*2051"),
        (idx(IMAGES)[:9], "within its header .9 of 16 bytes"),
        (idx(IMAGES)[:-1], "cut short: 23 of the 24"),
        (idx(IMAGES) + b"x", "goes on after the 24"),
        (idx(IMAGES[:0]), "0 x 3 x 2 bytes: must be 1"),
        (struct.pack(">4I", 2051, 2**31, 2**31, 2), "bytes: must be 1 to"),
        (struct.pack(">4I", 2051, 2**10, 2**10, 2**9), "cut short: 0 of the 536870912"),
    ],
)
def test_a_file_that_is_not_what_its_header_says_is_refused(tmp_path, content, message):
    with pytest.raises(IDXError, match=message):
        read_idx(write_gz(tmp_path / "f.gz", content), 3)


def test_a_damaged_or_plain_file_is_refused(tmp_path):
    whole = gzip.compress(idx(np.arange(240, dtype=np.uint8)), mtime=0)
    for content in (whole[:-9], whole[:40], b"plain", whole[:-5] + b"\0\0\0\0\0"):
        (tmp_path / "f.gz").write_bytes(content)
        with pytest.raises(IDXError, match="no whole gzip file"):
            read_idx(tmp_path / "f.gz", 1)


def test_a_false_header_or_a_bomb_takes_no_memory(tmp_path):
    import tracemalloc

    false_header = write_gz(tmp_path / "a.gz", struct.pack(">2I", 2049, 2**30) + b"x" * 100)
    bomb = write_gz(tmp_path / "b.gz", idx(np.zeros(100, np.uint8)) + bytes(200_000_000))
    tracemalloc.start()
    for path in (false_header, bomb):
        with pytest.raises(IDXError):
            read_idx(path, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_images_and_labels_must_agree(source, tmp_path):
    write_gz(source / "t10k-labels-idx1-ubyte.gz", idx(np.zeros(49, np.uint8)))
    with pytest.raises(IDXError, match="50 images and 49 labels"):
        write_mnist(source, tmp_path / "out", checksums=sums(source), label="tiny")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_small_digits_are_named_as_such(tmp_path):
    manifest = write_digits(tmp_path / "digits")
    assert manifest.dataset == "digits-8x8" and "mnist" not in manifest.dataset
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 1297, "valid": 250, "test": 250}
    rows = torch.cat([load_rows(tmp_path / "digits", split) for split in manifest.splits])
    labels = torch.cat([load_labels(tmp_path / "digits", split) for split in manifest.splits])
    assert rows.shape == (1797, 64) and rows.max() == 1 and rows.min() == 0
    assert torch.equal(rows * 16, (rows * 16).round()) and len(torch.unique(rows, dim=0)) == 1797
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as published
    write_digits(tmp_path / "binary", binary=True)
    binary = torch.cat([load_rows(tmp_path / "binary", split) for split in manifest.splits])
    assert torch.equal(binary, (rows > 0.5).float())


def test_the_job_says_which_digits_and_how_to_get_mnist(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MNIST", raising=False)
    assert main(["mnist", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in (*CHECKSUMS, "--mnist", "digits-8x8"))
    monkeypatch.setenv("MNIST", str(tmp_path))
    assert main(["mnist", "--out", str(tmp_path / "out")]) == 2 and str(tmp_path) in capsys.readouterr().err
    assert main(["digits", "--out", str(tmp_path / "digits"), "--binary"]) == 0
    assert "digits-8x8: " in (said := capsys.readouterr().out) and "not MNIST" in said and "digits-8x8-binary" in said


@pytest.mark.skipif(not os.environ.get("MNIST"), reason="MNIST=folder with the four IDX files")
def test_the_real_files(tmp_path):
    manifest = write_mnist(Path(os.environ["MNIST"]), tmp_path / "mnist")
    assert {name: split.rows for name, split in manifest.splits.items()} == {
        "train": 54000,
        "valid": 6000,
        "test": 10000,
    }
    labels = torch.cat([load_labels(tmp_path / "mnist", split) for split in ("train", "valid")])
    assert labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # as published
    assert float(load_rows(tmp_path / "mnist", "train").mean()) == pytest.approx(0.1307, abs=1e-3)

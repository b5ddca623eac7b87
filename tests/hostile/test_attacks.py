"""Attacks that somebody would try by hand: each ends in a named error in words, and writes nothing where it should not."""

import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.celeba import open_celeba, plan_pixel_shards, write_pixel_shard
from data_prep.images import MAX_PHOTOGRAPH_BYTES, crop_photograph
from jobs.handed_in import read_photographs, read_rows
from jobs.recipes import recipe
from jobs.train import main as train
from pipeline.config import ConfigError
from pipeline.data.manifest import Manifest, SplitEntry, write_manifest
from pipeline.data.shards import load_split, write_shard
from pipeline.runs.lock import FolderInUse, locked, run_folder

LIST = "a.jpg 0\nb.jpg 1\nc.jpg 2\n"
TOO_MANY = [(50_000, 50_000), (65_000, 65_000), (9_000, 9_000)]


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says it is so large; the data are a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def jpeg(width: int = 178, height: int = 218) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (90, 80, 70)).save(file, "JPEG")
    return file.getvalue()


def jpeg_that_claims(width: int, height: int) -> bytes:
    """A JPEG whose frame header (SOF0) was changed."""
    data = bytearray(jpeg())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">2H", height, width)
    return bytes(data)


@pytest.mark.parametrize(("width", "height"), TOO_MANY)
@pytest.mark.parametrize("make", [png, jpeg_that_claims])
def test_an_image_that_claims_to_be_huge_is_refused_before_it_is_decoded(make, width: int, height: int) -> None:
    with pytest.raises(ValueError, match="pixel"):
        crop_photograph(make(width, height))


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 200 200\n", b"GIF89a" + bytes(40), b"<svg/>"]
)
def test_only_photographs_are_decoded(content: bytes) -> None:
    """Pillow starts a program for EPS."""
    with pytest.raises(ValueError, match="not an image"):
        crop_photograph(content)


def data_set(folder: Path, members: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    (folder / "list_eval_partition.txt").write_text(LIST)
    return folder


@pytest.mark.parametrize("prefix", ["../", "../../img_align_celeba/", "/tmp/", "C:\\windows\\", "img\x00/"])
def test_members_of_an_archive_that_point_elsewhere_are_only_read(prefix: str, tmp_path: Path) -> None:
    source = data_set(tmp_path / "a" / "b", {f"{prefix}{name}.jpg": jpeg() for name in "abc"})
    before = {path for path in tmp_path.rglob("*")}
    try:
        for spec in plan_pixel_shards(open_celeba(source), tmp_path / "out"):
            write_pixel_shard(spec)
    except ValueError as error:
        assert str(source) in str(error)
    new = {path for path in tmp_path.rglob("*")} - before
    assert all(path.is_relative_to(tmp_path / "out") for path in new)


def test_a_bomb_in_an_archive_is_a_named_problem(tmp_path: Path) -> None:
    bomb = bytes(MAX_PHOTOGRAPH_BYTES + 1)
    source = data_set(tmp_path / "set", {f"{name}.jpg": bomb if name == "a" else jpeg() for name in "abc"})
    assert (source / "img_align_celeba.zip").stat().st_size < 1_000_000
    results = [write_pixel_shard(spec) for spec in plan_pixel_shards(open_celeba(source), tmp_path / "out")]
    problem = results[0].problems[0]
    assert problem.name == "a.jpg" and str(MAX_PHOTOGRAPH_BYTES) in problem.reason


def test_links_and_folders_among_photographs(tmp_path: Path) -> None:
    folder = tmp_path / "img_align_celeba"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.jpg").write_bytes(jpeg())
    (folder / "d.jpg").mkdir()
    (folder / "e.jpg").symlink_to("/dev/zero")
    (folder / "f.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "g.jpg")
    (tmp_path / "list_eval_partition.txt").write_text(LIST + "".join(f"{name}.jpg 0\n" for name in "defg"))
    source = open_celeba(tmp_path)
    assert [problem.name for problem in source.problems] == ["d.jpg", "e.jpg", "f.jpg", "g.jpg"]


class Payload:
    """What a pickle would run."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_no_pickle_runs(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    evil = pickle.dumps(Payload(target))
    rows = np.empty(1, object)
    rows[0] = Payload(target)
    (tmp_path / "a.npy").write_bytes(evil)
    np.save(tmp_path / "b.npy", rows, allow_pickle=True)
    np.savez(tmp_path / "c.npz", x=np.ones(3))
    (tmp_path / "c.npz").rename(tmp_path / "c.npy")
    for name in "abc":
        with pytest.raises(ValueError, match=rf"{name}\.npy"):
            read_rows(tmp_path / f"{name}.npy")
    folder = tmp_path / "shards"
    folder.mkdir()
    for content in (evil, (tmp_path / "b.npy").read_bytes()):
        with tarfile.open(folder / "train-00000.tar", "w") as tar:
            member = tarfile.TarInfo("000000.npy")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        found = write_shard(folder / "other.tar", np.ones((1, 3), np.float32))
        data = (folder / "train-00000.tar").read_bytes()
        (folder / "other.tar").write_bytes(data)
        entry = type(found)("other.tar", 1, len(data), hashlib.sha256(data).hexdigest())
        write_manifest(folder, Manifest("points", "x", "0", {}, (3,), {"train": SplitEntry(1, (entry,))}))
        with pytest.raises(ValueError, match=r"other\.tar"):
            load_split(folder, "train")
    assert not target.exists()


BAD_NAMES = ["../x", "..", ".", "/tmp/x", "a/b", "a\\b", ".hidden", " x", "x ", "a\nb", "a\x00b", "x" * 300, ""]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_run_stays_in_the_folder_of_runs(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot name a run"):
        run_folder(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "größe 2", "sweep-faces_quick", "a.b", "x..y", "名前"])
def test_plain_names_of_runs(name: str, tmp_path: Path) -> None:
    assert run_folder(tmp_path, name) == tmp_path.resolve() / name


@pytest.mark.parametrize(
    "name", ["../x", "..", "/etc/passwd", "a/b", "__import__", "recipe.__globals__", "", "x" * 5000]
)
def test_names_of_recipes_are_only_looked_up(name: str) -> None:
    with pytest.raises(ConfigError):
        recipe(name, {})


HOSTILE_LINES = [
    ["../../x"],
    ["faces_quick", "--set", "x"],
    ["faces_quick", "--set", "critic.num_neighbours=3"],
    ["faces_quick", "--set", "seed=-1"],
    ["faces_quick", "--set", "seed=1e999"],
    ["faces_quick", "--set", "seed=" + "9" * 5000],
    ["faces_quick", "--set", "model.initial_std=NaN"],
    ["faces_quick", "--set", "epochs_scale=Infinity"],
    ["faces_quick", "--set", "sampler.num_chains=" + "[" * 100_000],
    ["faces_quick", "--set", "model={}"],
    ["faces_quick", "--workers", "0"],
    ["faces_quick", "--workers", "-3"],
]


@pytest.mark.parametrize("line", HOSTILE_LINES, ids=[str(i) for i in range(len(HOSTILE_LINES))])
def test_command_lines(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"), "--data", str(tmp_path)]
    assert train([*line, *places, "--local", "--no-tracking"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and len(said) < 1000
    assert not list(tmp_path.iterdir())


def points(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rows = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    splits = {
        name: SplitEntry(len(part), (write_shard(folder / f"{name}-00000.tar", part),))
        for name, part in (("train", rows), ("valid", rows[:60]), ("test", rows[:60]))
    }
    write_manifest(folder, Manifest("points", "normal", "0", {}, (2,), splits))
    return folder


def train_points(data: Path, place: Path, name: str) -> list[str]:
    """The command of a run of seconds."""
    short = ["schedules.likelihood.epochs=null", "schedules.likelihood.updates=4", "schedules.adversarial.epochs=null",
             "schedules.adversarial.updates=4", "checkpoint.every_updates=4", "evaluation.every_updates=4",
             "evaluation.num_rows=20", "evaluation.minibatch_rows=10", "sampler.gibbs_steps=2"]  # fmt: skip
    settings = [word for setting in short for word in ("--set", setting)]
    places = ["--data", str(data), "--runs", str(place / "runs"), "--cache", str(place / "cache"), "--name", name]
    return ["mixture_ring", *settings, *places, "--local", "--no-tracking"]


def test_names_with_tricks_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, place = points(tmp_path / "data"), tmp_path / "place"
    place.mkdir()
    for name in BAD_NAMES[:-1]:
        assert train(train_points(data, place, name)) == 2
        assert "cannot name a run" in capsys.readouterr().err
        assert not list(place.iterdir()) and len(list(tmp_path.iterdir())) == 2


def test_unicode_blanks_and_read_only_data(tmp_path: Path) -> None:
    data = points(tmp_path / "my dätä 名")
    for file in data.iterdir():
        file.chmod(0o444)
    data.chmod(0o555)
    before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in data.iterdir()}
    assert train(train_points(data, tmp_path / "ürt b", "rün 1")) == 0
    assert before == {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in data.iterdir()}
    data.chmod(0o755)
    assert json.loads((tmp_path / "ürt b" / "runs" / "rün 1" / "summary.json").read_text())["updates"] == 8


def test_two_runs_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = points(tmp_path / "data")
    hold = (
        "import sys, pathlib\nfrom pipeline.runs.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    folder = run_folder(tmp_path / "runs", "one")
    holder = subprocess.Popen([sys.executable, "-c", hold, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None and holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    before = sorted(folder.iterdir())
    assert train(train_points(data, tmp_path, "one")) == 2
    said = capsys.readouterr().err
    assert f"in use by process {holder.pid}" in said and said.count("\n") == 1 and sorted(folder.iterdir()) == before
    with pytest.raises(FolderInUse), locked(folder):
        pass
    holder.stdin.close()
    assert holder.wait(10) == 0
    assert train(train_points(data, tmp_path, "one")) == 0


@pytest.mark.parametrize("content", [png(50_000, 50_000), b"", b"\xff\xd8\xff", bytes(100)])
def test_photographs_that_users_hand_in(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a face.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a face\.png"):
        read_photographs([tmp_path / "a face.png"])

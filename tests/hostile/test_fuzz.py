"""Readers of what others wrote, under fuzzing: an input is read or refused by a named error, and nothing is written.

HYPOTHESIS_PROFILE=long draws many other examples; the counts are printed at the end.
"""

import contextlib
import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import NOT_JSON, altered, damaged, fuzz
from PIL import Image
from safetensors.torch import save_file

from data_prep.celeba import open_celeba, plan_pixel_shards, write_pixel_shard
from data_prep.images import crop_photograph
from data_prep.mnist import IDXError, read_checksums, read_idx
from jobs.handed_in import read_rows
from jobs.recipes import recipe
from jobs.report_runs import Missing, ReportError, find_run
from pipeline.config import ConfigError, RunConfig, chosen_settings
from pipeline.data.manifest import Manifest, ShardError, SplitEntry, read_manifest, write_manifest
from pipeline.data.shards import load_split, write_shard
from pipeline.files import canonical_hash, file_hash
from pipeline.packages.files import PackageError
from pipeline.packages.models import PackagedBeam, load_package
from pipeline.runs.stages import Stages
from pipeline.training.checkpoint import CheckpointError, load_checkpoint, load_latest, save_checkpoint
from pipeline.training.loop import read_history

CONFIG = recipe("faces_quick", {}).to_dict()
NAMES = ["a.jpg", "b.jpg", "c.jpg"]
LIST = b"a.jpg 0\nb.jpg 1\nc.jpg 2\n"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder to read from, beside which nothing may appear."""
    place = tmp_path / "däta set"
    place.mkdir()
    yield place
    assert list(tmp_path.iterdir()) == [place], "something was written outside"


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(178 * 218 * 3, dtype=np.uint32).astype(np.uint8).reshape(218, 178, 3)).save(file, "JPEG")
    return file.getvalue()


PHOTOGRAPH = jpeg()


def archive(names: list[str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        for name in names:
            target.writestr(f"img_align_celeba/{name}", PHOTOGRAPH)
    return file.getvalue()


ARCHIVE = archive(NAMES)


@fuzz
@given(damaged(LIST) | st.binary(max_size=80))
def test_celeba_lists(folder: Path, named: Any, data: bytes) -> None:
    (folder / "img_align_celeba").mkdir(exist_ok=True)
    for name in NAMES:
        (folder / "img_align_celeba" / name).write_bytes(b"")
    (folder / "list_eval_partition.txt").write_bytes(data)
    with named("CelebA lists", ValueError, "list_eval_partition.txt"):
        open_celeba(folder)


@fuzz
@given(damaged(ARCHIVE))
def test_celeba_archives(folder: Path, named: Any, data: bytes) -> None:
    (folder / "img_align_celeba.zip").write_bytes(data)
    (folder / "list_eval_partition.txt").write_bytes(LIST)
    with named("CelebA zips", ValueError, str(folder)):
        for spec in plan_pixel_shards(open_celeba(folder), folder / "out"):
            write_pixel_shard(spec)


@fuzz
@given(damaged(PHOTOGRAPH))
def test_photographs(named: Any, data: bytes) -> None:
    with named("photographs", ValueError, ""):
        assert crop_photograph(data).shape == (64, 64, 3)


def idx(shape: tuple[int, ...], content: bytes) -> bytes:
    return gzip.compress(struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape) + content)


@fuzz
@given(
    damaged(idx((3, 4, 5), bytes(60)))
    | st.builds(idx, st.tuples(*[st.integers(0, 2**32 - 1)] * 3), st.binary(max_size=90))
)
def test_idx_files(folder: Path, named: Any, data: bytes) -> None:
    (folder / "images.gz").write_bytes(data)
    with named("IDX files", IDXError, "images.gz"):
        read_idx(folder / "images.gz", 3)


@fuzz
@given(damaged(b"0" * 64 + b"  train-images-idx3-ubyte.gz\n"))
def test_checksums(folder: Path, named: Any, data: bytes) -> None:
    (folder / "SHA256SUMS").write_bytes(data)
    with named("checksum lists", IDXError, ""):
        assert all("/" not in name for name in read_checksums(folder / "SHA256SUMS"))


def write_points(folder: Path) -> dict[str, Any]:
    rows = np.arange(600 * 3, dtype=np.float32).reshape(600, 3)
    splits = {
        name: SplitEntry(len(part), (write_shard(folder / f"{name}-00000.tar", part),), (0.0,) * 3, (1.0,) * 3)
        for name, part in (("train", rows), ("valid", rows[:5]), ("test", rows[:5]))
    }
    write_manifest(folder, Manifest("points", "grid", "0" * 64, {"side": 3}, (3,), splits))
    return json.loads((folder / "manifest.json").read_text())


def read_everything(folder: Path) -> None:
    for split in read_manifest(folder).splits:
        load_split(folder, split)


@fuzz
@given(st.data())
def test_manifests(folder: Path, named: Any, data: st.DataObject) -> None:
    valid = write_points(folder)
    changed = data.draw(altered(valid))
    if data.draw(st.booleans()):  # as somebody would who knows the format
        changed.pop("hash", None)
        changed["hash"] = canonical_hash(changed)
    text = json.dumps(changed).encode()
    (folder / "manifest.json").write_bytes(data.draw(st.just(text) | damaged(text) | st.sampled_from(NOT_JSON)))
    with named("manifests", ShardError, ""):
        read_everything(folder)


@fuzz
@given(st.data())
def test_shards(folder: Path, named: Any, data: st.DataObject) -> None:
    valid = write_points(folder)
    shard, entry = folder / "train-00000.tar", valid["splits"]["train"]["shards"][0]
    content = data.draw(damaged(shard.read_bytes()) | damaged(gzip.compress(shard.read_bytes())))
    if data.draw(st.booleans()):  # headers only, where most of the reading is
        content = data.draw(damaged(shard.read_bytes()[:800])) + shard.read_bytes()[800:]
    shard.write_bytes(content)
    entry |= {"bytes": len(content), "sha256": file_hash(shard)}
    valid.pop("hash")
    valid["hash"] = canonical_hash(valid)
    (folder / "manifest.json").write_text(json.dumps(valid))
    with named("shards", ShardError, ""):
        read_everything(folder)


@fuzz
@given(
    damaged(
        b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }" + b" " * 58 + b"\n"
    )
)
def test_handed_in_rows(folder: Path, named: Any, data: bytes) -> None:
    (folder / "rows.npy").write_bytes(data + bytes(24))
    with named("rows as .npy", ValueError, "rows.npy"):
        read_rows(folder / "rows.npy")


@fuzz
@given(st.data())
def test_checkpoints(folder: Path, named: Any, data: st.DataObject) -> None:
    path = save_checkpoint(folder, 7, {"model.weights": torch.ones(2, 3)}, {"config": CONFIG}, keep=2)
    state, meta = path / "state.safetensors", json.loads((path / "meta.json").read_text())
    meta.pop("hash")  # as earlier programs wrote it: what comes behind that check is to be fuzzed
    if data.draw(st.booleans()):
        state.write_bytes(data.draw(damaged(state.read_bytes())))
        meta["sha256"] = file_hash(state)
        text = json.dumps(meta).encode()
    else:
        text = json.dumps(data.draw(altered(meta))).encode()
    (path / "meta.json").write_bytes(data.draw(st.just(text) | damaged(text) | st.sampled_from(NOT_JSON)))
    with named("checkpoints", CheckpointError, str(path)):
        load_checkpoint(path)
    with contextlib.suppress(CheckpointError):
        load_latest(folder)


@fuzz
@given(altered(CONFIG))
def test_configs(named: Any, values: Any) -> None:
    with named("configs", ConfigError, ""):
        chosen_settings(RunConfig.from_dict(values))


@fuzz
@given(
    st.sampled_from(
        ["seed", "critic.num_neighbors", "model.initial_std", "schedules.likelihood", "name", "x.y", "", "."]
    ),
    st.text(max_size=20)
    | st.sampled_from([text.decode(errors="replace") for text in NOT_JSON])
    | st.floats().map(repr),
)
def test_overrides(named: Any, key: str, value: str) -> None:
    with named("overrides", ConfigError, ""):
        recipe("faces_quick", {key: value})


@fuzz
@given(st.data())
def test_packages(folder: Path, small_beam: PackagedBeam, named: Any, data: st.DataObject) -> None:
    small_beam.save(folder)
    config = json.loads((folder / "config.json").read_text())
    name = data.draw(st.sampled_from(sorted(config["files"])))
    if data.draw(st.booleans()):
        (folder / name).write_bytes(data.draw(damaged((folder / name).read_bytes())))
        config["files"][name] = file_hash(folder / name)
    else:
        config = data.draw(altered(config))
    if data.draw(st.sampled_from([True, True, False])):
        config.pop("hash", None)
        config["hash"] = canonical_hash(config)
    text = json.dumps(config).encode()
    (folder / "config.json").write_bytes(
        data.draw(st.just(text) | st.just(text) | damaged(text) | st.sampled_from(NOT_JSON))
    )
    with named("packaged models", PackageError, str(folder)):
        load_package(folder)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8, torch.bool])
def test_a_package_of_another_type_of_numbers(folder: Path, small_beam: PackagedBeam, dtype: torch.dtype) -> None:
    small_beam.save(folder)
    config = json.loads((folder / "config.json").read_text())
    save_file({k: v.to(dtype) for k, v in small_beam.rbm.state_dict().items()}, folder / "rbm.safetensors")
    config["files"]["rbm.safetensors"] = file_hash(folder / "rbm.safetensors")
    config.pop("hash")
    (folder / "config.json").write_text(json.dumps({**config, "hash": canonical_hash(config)}))
    with pytest.raises(PackageError, match=r"rbm\.safetensors"):
        load_package(folder)


SUMMARY = {
    "kind": "sweep",
    "metrics": {"kl": 1.0},
    "stages": {"train": {"seconds": 1.0, "skipped": False}},
    "final": {"variants": {"winner": {"runs": [{"folder": "trials/a", "seed": 0}]}}},
}


@fuzz
@given(st.data())
def test_files_of_runs(folder: Path, named: Any, data: st.DataObject) -> None:
    run = folder / "runs" / "one"
    for place in (run, run / "trials" / "a"):
        (place / "checkpoints" / "step_00000001").mkdir(parents=True, exist_ok=True)
        for name, valid in (
            ("summary.json", SUMMARY),
            ("config.json", CONFIG),
            ("job.json", {"data_hash": "0", "data_dir": "x"}),
            ("metrics.jsonl", {"step": 1, "kl_forward": 1.0}),
            ("checkpoints/step_00000001/meta.json", {"step": 1, "config": CONFIG}),
            ("mlflow_run_id", {}),
        ):
            text = json.dumps(data.draw(st.just(valid) | altered(valid))).encode()
            (place / name).write_bytes(
                data.draw(st.just(text) | st.just(text) | damaged(text) | st.sampled_from(NOT_JSON))
            )
    with named("files of runs", ReportError, ""):
        found = find_run("one", folder / "runs")
        for training in found.parts.values():
            assert training.kind in ("BEAM", "autoencoder", "GAN")
            read_history(training.folder)
            with named("settings of runs", Missing, training.name):
                _ = training.config
        _ = found.dataset, found.training


@fuzz
@given(st.data())
def test_records_of_stages(folder: Path, data: st.DataObject) -> None:
    """A record that is damaged is none: the stage runs again."""
    made = []
    valid = {"fingerprint": canonical_hash({"a": 1}), "inputs": {"a": 1}, "outputs": {"hash": "x"}}
    text = json.dumps(data.draw(altered(valid))).encode()
    (folder / "stages").mkdir(exist_ok=True)
    (folder / "stages" / "one.json").write_bytes(data.draw(st.just(text) | damaged(text) | st.sampled_from(NOT_JSON)))

    def make() -> dict[str, Any]:
        made.append(1)
        return {"hash": "new"}

    assert isinstance(Stages(folder, ("one",), None).run("one", {"a": 1}, make), dict)


def test_the_tar_of_a_shard_may_not_unfold(folder: Path) -> None:
    """Sparse members of a terabyte, compressed tars, links and other names are refused by their headers."""
    valid, shard = write_points(folder), folder / "train-00000.tar"
    good = shard.read_bytes()
    block = tarfile.TarInfo("000000.npy")
    members = {}
    for name, changes in {
        "huge": {"size": 2**40}, "sparse": {"type": tarfile.GNUTYPE_SPARSE},
        "link": {"type": tarfile.SYMTYPE, "linkname": "/etc"},
        "up": {"name": "../000000.npy"}, "absolute": {"name": "/tmp/000000.npy"}, "pickle": {"name": "000000.pkl"},
        "device": {"type": tarfile.CHRTYPE},
    }.items():  # fmt: skip
        info = tarfile.TarInfo(block.name)
        for key, value in changes.items():
            setattr(info, key, value)
        members[name] = info.tobuf(tarfile.GNU_FORMAT) + bytes(10240)
    members["compressed"] = gzip.compress(good)
    for name, content in members.items():
        shard.write_bytes(content.ljust(valid["splits"]["train"]["shards"][0]["bytes"], b"\0"))
        changed = json.loads(json.dumps(valid))
        changed["splits"]["train"]["shards"][0] |= {"bytes": shard.stat().st_size, "sha256": file_hash(shard)}
        changed.pop("hash")
        (folder / "manifest.json").write_text(json.dumps({**changed, "hash": canonical_hash(changed)}))
        with pytest.raises(ShardError, match=r"train-00000\.tar"):
            load_split(folder, "train")
            pytest.fail(f"{name} was read")

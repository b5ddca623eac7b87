"""Pixels -> latents -> whitened latents: rows equal, statistics independent of order, reruns, encoders that go wrong."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data_prep.encode import (
    Encode,
    EncodedShardSpec,
    EncodeError,
    Encoding,
    encoded_up_to_date,
    finish_encoded,
    latent_encoding,
    layer_encoding,
    plan_encoded_shards,
    write_encoded_shard,
)
from data_prep.tasks import measure_moments, merge_moments, read_sidecar
from pipeline.data.manifest import Manifest, ShardError, SplitEntry, read_manifest, write_manifest
from pipeline.data.shards import load_split, write_shard
from pipeline.data.whitening import read_whitening

LATENT_FINGERPRINT = "a880f0eab6f489df73250d0139a06bfe43252e6a6a3b899730e5c263ded2a29f"
SIZES = {"train": (300, 0, 120), "valid": (40,), "test": ()}


def encode(pixels: Tensor, _first: int) -> Tensor:
    """A linear encoder of 8x8 pictures with unequal scales and a constant last feature."""
    assert pixels.dtype == torch.uint8 and pixels.shape[1:] == (8, 8, 3)
    weights = torch.linspace(-1, 1, 192 * 5).sin().reshape(192, 5) * torch.tensor([0.1, 1.0, 10.0, 1.0, 100.0])
    return torch.cat([pixels.flatten(1) / 255 @ weights + 3, torch.full((len(pixels), 1), 0.7)], dim=1)


def load(_spec: EncodedShardSpec) -> Encode:
    return encode


def by(function: Encode, version: str = "autoencoder-3") -> Encoding:
    return latent_encoding(version, 6, lambda _: function)


ENCODING = latent_encoding("autoencoder-3", 6, load)


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    folder = tmp_path / "pixels"
    folder.mkdir()
    rng = np.random.default_rng(0)
    splits = {}
    for split, sizes in SIZES.items():
        rows = [rng.integers(0, 256, (size, 8, 8, 3), dtype=np.uint8) for size in sizes]
        entries = tuple(write_shard(folder / f"{split}-{i:05d}.tar", part) for i, part in enumerate(rows))
        splits[split] = SplitEntry(sum(sizes), entries)
    write_manifest(folder, Manifest("pixels", "synthetic-faces", "abc", {"crop": 148}, (8, 8, 3), splits))
    return folder


def encode_all(pixels: Path, out: Path, order: Sequence[int] = (0, 1, 2, 3)) -> Manifest:
    specs = plan_encoded_shards(pixels, out, ENCODING)
    return finish_encoded(pixels, out, specs, [write_encoded_shard(specs[index]) for index in order])


def test_latents_are_the_encoder_of_the_pixels(pixels: Path, tmp_path: Path) -> None:
    manifest = encode_all(pixels, tmp_path / "latents")
    assert (manifest.kind, manifest.dataset, manifest.row_shape) == ("latents", "synthetic-faces", (6,))
    assert manifest.source_hash == read_manifest(pixels).hash
    assert manifest.settings["encoder_version"] == "autoencoder-3"
    for split, sizes in SIZES.items():
        latents = load_split(tmp_path / "latents", split)
        assert manifest.splits[split].rows == len(latents) == sum(sizes)
        assert [shard.rows for shard in manifest.splits[split].shards] == list(sizes)
        if sizes:
            expected = encode(load_split(pixels, split), 0)
            torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-4)


def test_whitening_gives_mean_0_and_deviation_1(pixels: Path, tmp_path: Path) -> None:
    manifest = encode_all(pixels, tmp_path / "latents")
    raw, whitening = load_split(tmp_path / "latents", "train"), read_whitening(tmp_path / "latents")
    exact = raw.double()
    np.testing.assert_allclose(manifest.splits["train"].mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(manifest.splits["train"].std, exact.std(0, unbiased=False), rtol=1e-10, atol=1e-12)
    latents = whitening.apply(raw)
    assert latents.dtype == torch.float32
    assert latents.double().mean(0).abs().max() < 1e-5
    assert (latents[:, :5].double().std(0, unbiased=False) - 1).abs().max() < 1e-5
    assert whitening.std[5] == 1 and latents[:, 5].abs().max() < 1e-6  # a constant feature stays silent
    torch.testing.assert_close(whitening.invert(latents), raw, rtol=1e-5, atol=1e-4)
    valid = whitening.apply(load_split(tmp_path / "latents", "valid"))  # by the train split's statistics
    assert valid[:, :5].mean(0).abs().max() > 1e-3


def test_statistics_do_not_depend_on_who_finished_first(pixels: Path, tmp_path: Path) -> None:
    first = encode_all(pixels, tmp_path / "a")
    second = encode_all(pixels, tmp_path / "b", order=(3, 2, 0, 1))
    assert first.hash == second.hash
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()


def test_moments_survive_a_mean_far_from_zero() -> None:
    """Sums of squares would lose all digits of the deviation here."""
    rows = (1e4 + np.random.default_rng(1).standard_normal((1000, 3))).astype(np.float32)
    mean, std = merge_moments([measure_moments(part) for part in np.split(rows, [1, 1, 400])])
    np.testing.assert_allclose(mean, rows.astype(np.float64).mean(0), rtol=1e-14)
    np.testing.assert_allclose(std, rows.astype(np.float64).std(0), rtol=1e-11)


def test_a_second_run_does_nothing_and_a_killed_one_continues(pixels: Path, tmp_path: Path) -> None:
    out, calls = tmp_path / "latents", []

    def counted(rows: Tensor, first: int) -> Tensor:
        calls.append((first, len(rows)))
        assert torch.get_num_threads() == 1
        return encode(rows, first)

    planned = plan_encoded_shards(pixels, out, ENCODING)
    assert pickle.loads(pickle.dumps(planned)) == planned
    specs = plan_encoded_shards(pixels, out, by(counted))
    assert encoded_up_to_date(pixels, out, ENCODING) is None
    write_encoded_shard(specs[0])
    assert calls == [(0, 256), (256, 44)]  # batches and places of the shard, whatever runs the task
    (out / ".train-00002.tar.0123456789ab.tmp").write_bytes(b"killed here")
    assert encoded_up_to_date(pixels, out, ENCODING) is None
    manifest = finish_encoded(pixels, out, specs, [write_encoded_shard(spec) for spec in specs])
    assert calls[2:] == [(300, 120), (0, 40)]
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert not [path for path in before if path.suffix == ".tmp"]
    assert encoded_up_to_date(pixels, out, ENCODING, verify=True) == manifest
    assert [write_encoded_shard(spec).entry for spec in specs] == [
        shard for split in manifest.splits.values() for shard in split.shards
    ]
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert len(calls) == 4


def test_another_encoder_or_other_pixels_are_encoded_again(pixels: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    manifest = encode_all(pixels, out)
    other = by(lambda rows, first: 2 * encode(rows, first), "autoencoder-4")
    assert encoded_up_to_date(pixels, out, other) is None
    spec = plan_encoded_shards(pixels, out, other)[0]
    assert write_encoded_shard(spec).entry != manifest.splits["train"].shards[0]
    with pytest.raises(ShardError, match=r"train-00000\.tar has sha256"):  # the old manifest no longer fits
        load_split(out, "train")
    write_manifest(pixels, replace(read_manifest(pixels), source_hash="other photographs"))
    assert encoded_up_to_date(pixels, out, ENCODING) is None
    with pytest.raises(ShardError, match="changed since these shards were planned"):
        write_encoded_shard(replace(spec, out_dir=str(tmp_path / "new")))
    with pytest.raises(ShardError, match="changed since these shards were planned"):
        finish_encoded(pixels, out, [spec], [])


def test_what_earlier_programs_encoded_is_found(pixels: Path, tmp_path: Path) -> None:
    """Fingerprints and recorded settings are a file format: the first was written by an earlier program."""
    encode_all(pixels, tmp_path / "latents")
    assert read_sidecar(tmp_path / "latents", "train-00000.tar", LATENT_FINGERPRINT) is not None
    assert ENCODING.settings == {
        "encoder_version": "autoencoder-3",
        "num_features": 6,
        "batch_rows": 256,
        "block_rows": 256,
    }
    layer = layer_encoding(1, "ab" * 32, 2, "sample", 7, "isotropic", lambda _: lambda rows, _first: rows[:, :2].abs())
    write_manifest(tmp_path / "latents", replace(read_manifest(tmp_path / "latents"), source_hash="fixed"))
    specs = plan_encoded_shards(tmp_path / "latents", tmp_path / "rows", layer)
    manifest = finish_encoded(tmp_path / "latents", tmp_path / "rows", specs, [write_encoded_shard(s) for s in specs])
    assert manifest.kind == "points" and not manifest.splits["train"].mean
    assert manifest.settings == {
        "layer": 1,
        "parameters": "ab" * 32,
        "num_hidden": 2,
        "encoding": "sample",
        "seed": 7,
        "scaling": "isotropic",
        "encoding_rows": 256,
    }


def test_a_damaged_pixel_shard_is_named_and_not_encoded(pixels: Path, tmp_path: Path) -> None:
    spec = plan_encoded_shards(pixels, tmp_path / "latents", ENCODING)[0]
    data = bytearray((pixels / "train-00000.tar").read_bytes())
    data[9000] ^= 1
    (pixels / "train-00000.tar").write_bytes(data)
    with pytest.raises(ShardError, match=r"train-00000\.tar has sha256"):
        write_encoded_shard(spec)
    assert not (tmp_path / "latents").exists()


def test_encoders_that_go_wrong_are_named(pixels: Path, tmp_path: Path) -> None:
    def task(function: Encode) -> EncodedShardSpec:
        return plan_encoded_shards(pixels, tmp_path / "latents", by(function))[0]

    with pytest.raises(EncodeError, match=r"encoder autoencoder-3 gave \[256, 5\] for 256 rows; expected \[256, 6\]"):
        write_encoded_shard(task(lambda rows, first: encode(rows, first)[:, :5]))
    with pytest.raises(EncodeError, match="not finite for rows 256 to 299 of split train"):
        write_encoded_shard(task(lambda rows, first: encode(rows, first) / (256 - first)))
    assert not (tmp_path / "latents").exists()


def test_folders_and_settings_that_make_no_sense(pixels: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot share the folder"):
        plan_encoded_shards(pixels, pixels, ENCODING)
    encode_all(pixels, tmp_path / "latents")
    with pytest.raises(ShardError, match="holds latents, not pixels"):
        plan_encoded_shards(tmp_path / "latents", tmp_path / "again", ENCODING)
    layer = layer_encoding(1, "0" * 64, 2, "mean", 0, "manifest", load)
    with pytest.raises(ShardError, match="holds pixels, not latents or points"):
        plan_encoded_shards(pixels, tmp_path / "again", layer)
    with pytest.raises(ValueError, match="encoder_version is empty"):
        latent_encoding("", 6, load)

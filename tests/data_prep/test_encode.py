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
    EncodeError,
    LatentSettings,
    finish_latents,
    latents_up_to_date,
    plan_latent_shards,
    write_latent_shard,
)
from data_prep.manifest import measure_moments, merge_moments
from pipeline.data.manifest import Manifest, ShardError, SplitEntry, read_manifest, write_manifest
from pipeline.data.shards import load_split, pixels_to_images, write_shard
from pipeline.data.whitening import load_latents, read_whitening

SETTINGS = LatentSettings("autoencoder-3", num_features=6, batch_rows=50)
SIZES = {"train": (300, 0, 120), "valid": (40,), "test": ()}


def encode(images: Tensor) -> Tensor:
    """A linear encoder of 8x8 pictures with unequal scales and a constant last feature."""
    assert images.dtype == torch.float32 and images.shape[1:] == (3, 8, 8) and 0 <= images.min() <= images.max() <= 1
    weights = torch.linspace(-1, 1, 192 * 5).sin().reshape(192, 5) * torch.tensor([0.1, 1.0, 10.0, 1.0, 100.0])
    return torch.cat([images.flatten(1) @ weights + 3, torch.full((len(images), 1), 0.7)], dim=1)


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
    specs = plan_latent_shards(pixels, out, SETTINGS)
    return finish_latents(pixels, out, specs, [write_latent_shard(specs[index], encode) for index in order])


def test_latents_are_the_encoder_of_the_pixels(pixels: Path, tmp_path: Path) -> None:
    manifest = encode_all(pixels, tmp_path / "latents")
    assert (manifest.kind, manifest.dataset, manifest.row_shape) == ("latents", "synthetic-faces", (6,))
    assert manifest.source_hash == read_manifest(pixels).hash
    assert manifest.settings["encoder_version"] == "autoencoder-3"
    for split, sizes in SIZES.items():
        latents = load_latents(tmp_path / "latents", split)
        assert manifest.splits[split].rows == len(latents) == sum(sizes)
        assert [shard.rows for shard in manifest.splits[split].shards] == list(sizes)
        if sizes:
            expected = encode(pixels_to_images(load_split(pixels, split)))
            torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-4)


def test_channels_and_range_of_images() -> None:
    pixels = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    pixels[0, 0, 1, 2] = 255
    images = pixels_to_images(pixels)
    assert images.shape == (1, 3, 2, 2) and images[0, 2, 0, 1] == 1 and images.sum() == 1


def test_whitening_gives_mean_0_and_deviation_1(pixels: Path, tmp_path: Path) -> None:
    manifest = encode_all(pixels, tmp_path / "latents")
    raw, whitening = load_latents(tmp_path / "latents", "train"), read_whitening(tmp_path / "latents")
    exact = raw.double()
    np.testing.assert_allclose(manifest.splits["train"].mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(manifest.splits["train"].std, exact.std(0, unbiased=False), rtol=1e-10, atol=1e-12)
    latents = whitening.apply(raw)
    assert latents.dtype == torch.float32
    assert latents.double().mean(0).abs().max() < 1e-5
    assert (latents[:, :5].double().std(0, unbiased=False) - 1).abs().max() < 1e-5
    assert whitening.std[5] == 1 and latents[:, 5].abs().max() < 1e-6  # a constant feature stays silent
    torch.testing.assert_close(whitening.invert(latents), raw, rtol=1e-5, atol=1e-4)
    valid = whitening.apply(load_latents(tmp_path / "latents", "valid"))  # by the train split's statistics
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

    def counted(images: Tensor) -> Tensor:
        calls.append(len(images))
        return encode(images)

    specs = plan_latent_shards(pixels, out, SETTINGS)
    assert pickle.loads(pickle.dumps(specs)) == specs
    assert latents_up_to_date(pixels, out, SETTINGS) is None
    write_latent_shard(specs[0], counted)
    assert calls == [50] * 6  # batches of the settings, whatever runs the task
    (out / ".train-00002.tar.0123456789ab.tmp").write_bytes(b"killed here")
    assert latents_up_to_date(pixels, out, SETTINGS) is None
    manifest = finish_latents(pixels, out, specs, [write_latent_shard(spec, counted) for spec in specs])
    assert calls == [50] * 6 + [50, 50, 20] + [40]
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert not [path for path in before if path.suffix == ".tmp"]
    assert latents_up_to_date(pixels, out, SETTINGS, verify=True) == manifest
    assert [write_latent_shard(spec, counted).entry for spec in specs] == [
        shard for split in manifest.splits.values() for shard in split.shards
    ]
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert len(calls) == 10


def test_another_encoder_or_other_pixels_are_encoded_again(pixels: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    manifest = encode_all(pixels, out)
    assert latents_up_to_date(pixels, out, replace(SETTINGS, encoder_version="autoencoder-4")) is None
    spec = plan_latent_shards(pixels, out, replace(SETTINGS, encoder_version="autoencoder-4"))[0]
    assert write_latent_shard(spec, lambda images: 2 * encode(images)).entry != manifest.splits["train"].shards[0]
    with pytest.raises(ShardError, match=r"train-00000\.tar has sha256"):  # the old manifest no longer fits
        load_latents(out, "train")
    write_manifest(pixels, replace(read_manifest(pixels), source_hash="other photographs"))
    assert latents_up_to_date(pixels, out, SETTINGS) is None
    with pytest.raises(ShardError, match="changed since these shards were planned"):
        write_latent_shard(replace(spec, out_dir=str(tmp_path / "new")), encode)
    with pytest.raises(ShardError, match="changed since these shards were planned"):
        finish_latents(pixels, out, [spec], [])


def test_a_damaged_pixel_shard_is_named_and_not_encoded(pixels: Path, tmp_path: Path) -> None:
    spec = plan_latent_shards(pixels, tmp_path / "latents", SETTINGS)[0]
    data = bytearray((pixels / "train-00000.tar").read_bytes())
    data[9000] ^= 1
    (pixels / "train-00000.tar").write_bytes(data)
    with pytest.raises(ShardError, match=r"train-00000\.tar has sha256"):
        write_latent_shard(spec, encode)
    assert not (tmp_path / "latents").exists()


def test_encoders_that_go_wrong_are_named(pixels: Path, tmp_path: Path) -> None:
    spec = plan_latent_shards(pixels, tmp_path / "latents", SETTINGS)[0]
    with pytest.raises(EncodeError, match=r"autoencoder-3 gave latents \[50, 5\] for 50 images; expected \[50, 6\]"):
        write_latent_shard(spec, lambda images: encode(images)[:, :5])
    with pytest.raises(EncodeError, match="not finite for rows 0 to 49 of split train"):
        write_latent_shard(spec, lambda images: encode(images) / 0)


def test_folders_and_settings_that_make_no_sense(pixels: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot share the folder"):
        plan_latent_shards(pixels, pixels, SETTINGS)
    encode_all(pixels, tmp_path / "latents")
    with pytest.raises(ShardError, match="holds latents, not pixels"):
        plan_latent_shards(tmp_path / "latents", tmp_path / "again", SETTINGS)
    with pytest.raises(ValueError, match="encoder_version is empty"):
        LatentSettings("")
    with pytest.raises(ValueError, match="batch_rows is 0; it is at least 1"):
        replace(SETTINGS, batch_rows=0)

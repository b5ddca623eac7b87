"""Photographs -> pixel shards: every layout people have, broken inputs named, reruns and killed runs.

The photographs are noise drawn here. With CELEBA=<folder> one test reads real ones, from where they lie.
"""

import io
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.celeba import (
    CelebASource,
    PixelSettings,
    finish_pixels,
    open_celeba,
    pixels_up_to_date,
    plan_pixel_shards,
    write_pixel_shard,
)
from data_prep.images import crop_photograph
from data_prep.tasks import BadImagesError
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.data.shards import load_split
from pipeline.files import file_hash

SMALL = PixelSettings(rows_per_shard=7, max_bad_share=0.0)
COUNTS = {"train": 16, "valid": 3, "test": 4}


def draw(number: int, width: int = 178, height: int = 218, mode: str = "RGB") -> bytes:
    """Returns a JPEG of smooth noise; equal numbers give equal bytes."""
    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8)).resize((width, height)).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def photographs() -> dict[str, bytes]:
    return {f"{number:06d}.jpg": draw(number) for number in range(1, sum(COUNTS.values()) + 1)}


def partition(separator: str = " ") -> str:
    numbers = [str(number) for number, count in enumerate(COUNTS.values()) for _ in range(count)]
    return "".join(f"{index:06d}.jpg{separator}{number}\n" for index, number in enumerate(numbers, start=1))


def write_folder(folder: Path, images: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in images.items():
        (folder / name).write_bytes(data)


def write_zip(path: Path, images: dict[str, bytes], prefix: str = "img_align_celeba/") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in images.items():
            archive.writestr(prefix + name, data)


def build(layout: str, root: Path, images: dict[str, bytes]) -> Path:
    """Lays a data set out under root; returns the argument a person would give."""
    root.mkdir(parents=True, exist_ok=True)
    align, text, csv = root / "img_align_celeba", root / "list_eval_partition.txt", root / "list_eval_partition.csv"
    if layout in ("folder", "folder itself"):
        write_folder(align, images)
        text.write_text(partition())
        return align if layout == "folder itself" else root
    if layout == "torchvision root":
        write_folder(root / "celeba" / "img_align_celeba", images)
        (root / "celeba" / text.name).write_text(partition())
        return root
    if layout in ("kaggle", "kaggle outer folder"):
        write_folder(align / "img_align_celeba", images)
        csv.write_text("image_id,partition\n" + partition(","))
        return align if layout == "kaggle outer folder" else root
    if layout == "authors":
        write_zip(root / "Img" / "img_align_celeba.zip", images)
        (root / "Eval").mkdir()
        (root / "Eval" / text.name).write_text(partition())
        return root
    prefix = {"zip flat": "", "zip doubled": "img_align_celeba/img_align_celeba/"}.get(layout, "img_align_celeba/")
    write_zip(root / "img_align_celeba.zip", images, prefix)
    if layout == "zip csv":
        csv.write_text("image_id,partition\n" + partition(","))
    else:
        text.write_text(partition())
    return root / "img_align_celeba.zip" if layout == "zip itself" else root


LAYOUTS = ["folder", "folder itself", "torchvision root", "kaggle", "kaggle outer folder", "authors"]
LAYOUTS += ["zip", "zip itself", "zip flat", "zip doubled", "zip csv"]


def prepare(source: CelebASource, out: Path, settings: PixelSettings = SMALL) -> Manifest:
    specs = plan_pixel_shards(source, out, settings)
    return finish_pixels(source, out, specs, [write_pixel_shard(spec) for spec in specs])


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    return photographs()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_names(layout: str, tmp_path: Path, images: dict[str, bytes]) -> None:
    source = open_celeba(build(layout, tmp_path, images))
    assert {split: len(names) for split, names in source.names.items()} == COUNTS
    assert source.names["valid"] == ("000017.jpg", "000018.jpg", "000019.jpg")
    assert source.dataset == "celeba" and not source.problems and source.total == len(images)
    assert pickle.loads(pickle.dumps(source)) == source
    spec = plan_pixel_shards(source, tmp_path / "out", SMALL)[0]
    assert write_pixel_shard(spec).entry.rows == 7


def test_content_hash_ignores_the_place_and_sees_the_contents(tmp_path: Path, images: dict[str, bytes]) -> None:
    first = open_celeba(build("zip", tmp_path / "a", images))
    assert open_celeba(build("zip csv", tmp_path / "b", images)).content_hash == first.content_hash
    edited = bytearray(images["000003.jpg"])
    edited[-9] ^= 1  # the same size: only the crc tells
    assert open_celeba(build("zip", tmp_path / "c", {**images, "000003.jpg": bytes(edited)})).content_hash != (
        first.content_hash
    )
    folder = open_celeba(build("folder", tmp_path / "d", images))
    (tmp_path / "d" / "list_eval_partition.txt").write_text(partition().replace("000001.jpg 0", "000001.jpg 2"))
    assert open_celeba(tmp_path / "d").content_hash != folder.content_hash


def test_the_generator_marker_labels_the_data_set(tmp_path: Path, images: dict[str, bytes]) -> None:
    root = build("folder", tmp_path / "faces", images)
    (root / "synthetic_faces.json").write_text('{"dataset": "synthetic-faces"}')
    assert open_celeba(root).dataset == open_celeba(root / "img_align_celeba").dataset == "synthetic-faces"
    assert prepare(open_celeba(root), tmp_path / "out").dataset == "synthetic-faces"


def test_images_become_the_rows_in_name_order(tmp_path: Path, images: dict[str, bytes]) -> None:
    source = open_celeba(build("zip", tmp_path, images))
    manifest = prepare(source, tmp_path / "out")
    assert manifest == read_manifest(tmp_path / "out")
    assert (manifest.kind, manifest.row_shape, manifest.problems) == ("pixels", (64, 64, 3), ())
    for split, names in source.names.items():
        entry = manifest.splits[split]
        assert entry.rows == COUNTS[split] == sum(shard.rows for shard in entry.shards)
        assert [shard.rows for shard in entry.shards] == [min(7, entry.rows - at) for at in range(0, entry.rows, 7)]
        for shard in entry.shards:
            path = tmp_path / "out" / shard.name
            assert (shard.bytes, shard.sha256) == (path.stat().st_size, file_hash(path))
        rows = load_split(tmp_path / "out", split).numpy()
        expected = []
        for name in names:
            center = Image.open(io.BytesIO(images[name])).convert("RGB").crop((15, 35, 163, 183))
            expected.append(np.asarray(center.resize((64, 64), Image.Resampling.BILINEAR)))
        np.testing.assert_array_equal(rows, np.stack(expected))


def test_crop_settings_and_other_image_sizes() -> None:
    assert crop_photograph(draw(1, 178, 178), 178, 32).shape == (32, 32, 3)
    assert crop_photograph(draw(1, 400, 300)).shape == (64, 64, 3)
    gray = crop_photograph(draw(1, mode="L"))
    assert gray.shape == (64, 64, 3) and (gray[..., 0] == gray[..., 1]).all()
    with pytest.raises(ValueError, match="147x218 is smaller than the crop of 148x148"):
        crop_photograph(draw(1, 147, 218))
    with pytest.raises(ValueError, match="rows_per_shard is 0; it is at least 1"):
        PixelSettings(rows_per_shard=0)


def test_the_reduction_antialiases() -> None:
    stripes = np.zeros((218, 178, 3), np.uint8)
    stripes[:, ::2] = 255
    file = io.BytesIO()
    Image.fromarray(stripes).save(file, "PNG")
    assert np.abs(crop_photograph(file.getvalue()).astype(int) - 127).max() < 40  # without it: stripes of 0 and 255


def damage(images: dict[str, bytes]) -> dict[str, bytes]:
    """Breaks one image in each way; the partition lists 23 images."""
    damaged = dict(images)
    damaged["000002.jpg"] = b"this is no photograph"
    damaged["000005.jpg"] = damaged["000005.jpg"][: len(damaged["000005.jpg"]) // 2]
    damaged["000008.jpg"] = draw(8, 100, 100)
    damaged["000009.jpg"] = b""
    del damaged["000018.jpg"]
    damaged["000099.jpg"] = draw(99)
    return damaged


@pytest.mark.parametrize("layout", ["folder", "zip"])
def test_broken_inputs_are_counted_and_named(layout: str, tmp_path: Path, images: dict[str, bytes]) -> None:
    source = open_celeba(build(layout, tmp_path, damage(images)))
    assert source.total == 24
    manifest = prepare(source, tmp_path / "out", replace(SMALL, max_bad_share=0.25))
    found = {(problem.name, problem.split): problem.reason for problem in manifest.problems}
    assert found == {
        ("000099.jpg", None): "no line in the partition file",
        ("000018.jpg", "valid"): "listed in the partition file, but there is no such image",
        ("000002.jpg", "train"): "not an image",
        ("000005.jpg", "train"): found["000005.jpg", "train"],
        ("000008.jpg", "train"): "100x100 is smaller than the crop of 148x148",
        ("000009.jpg", "train"): "not an image",
    }
    assert "truncated" in found["000005.jpg", "train"]
    assert {split: entry.rows for split, entry in manifest.splits.items()} == {"train": 12, "valid": 2, "test": 4}
    kept = [name for name in source.names["train"] if (name, "train") not in found]
    rows = load_split(tmp_path / "out", "train").numpy()
    np.testing.assert_array_equal(rows, np.stack([crop_photograph(images[name]) for name in kept]))


def test_a_member_with_a_wrong_crc_is_broken(tmp_path: Path, images: dict[str, bytes]) -> None:
    root = build("zip", tmp_path, images)
    path = root / "img_align_celeba.zip"
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("img_align_celeba/000004.jpg")
    data = bytearray(path.read_bytes())
    data[member.header_offset + 30 + len(member.filename) + member.compress_size // 2] ^= 0xFF
    path.write_bytes(data)
    manifest = prepare(open_celeba(root), tmp_path / "out", replace(SMALL, max_bad_share=0.05))
    assert [problem.name for problem in manifest.problems] == ["000004.jpg"]
    assert "cannot be read from the zip" in manifest.problems[0].reason


def test_too_many_broken_images_stop_the_job(tmp_path: Path, images: dict[str, bytes]) -> None:
    source = open_celeba(build("folder", tmp_path, {**images, "000002.jpg": b"broken"}))
    specs = plan_pixel_shards(source, tmp_path / "out")
    results = [write_pixel_shard(spec) for spec in specs]
    with pytest.raises(BadImagesError, match=r"1 of 23 images \(4\.35%\) .* allowed 1\.00%:\n  000002\.jpg \(train\)"):
        finish_pixels(source, tmp_path / "out", specs, results)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_missing_images_stop_the_job_before_it_starts(tmp_path: Path, images: dict[str, bytes]) -> None:
    some = {name: data for name, data in images.items() if name in ("000001.jpg", "000020.jpg")}
    source = open_celeba(build("zip", tmp_path, some))
    with pytest.raises(BadImagesError, match=r"21 of 23 images(.|\n)*000002\.jpg \(train\)(.|\n)*and 1 more\n"):
        plan_pixel_shards(source, tmp_path / "out")


def test_what_is_no_celeba_is_said(tmp_path: Path, images: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match=r"nowhere is no CelebA(.|\n)*img_align_celeba\.zip"):
        open_celeba(tmp_path / "nowhere")
    (tmp_path / "img_align_celeba").mkdir()
    with pytest.raises(ValueError, match=r"is no CelebA: neither a folder with \.jpg files nor a zip"):
        open_celeba(tmp_path)
    (tmp_path / "half.zip").write_bytes(b"PK\3\4 and then the download stopped")
    with pytest.raises(ValueError, match=r"half\.zip is no CelebA: it is not a whole zip file"):
        open_celeba(tmp_path / "half.zip")
    write_zip(tmp_path / "two.zip", {"a/1.jpg": b"", "b/1.jpg": b""}, "")
    with pytest.raises(ValueError, match="in 2 folders: a/, b/"):
        open_celeba(tmp_path / "two.zip")
    write_folder(tmp_path / "img_align_celeba", images)
    with pytest.raises(ValueError, match=r"no partition file; looked for(.|\n)*list_eval_partition\.csv"):
        open_celeba(tmp_path)
    text = tmp_path / "list_eval_partition.txt"
    for lines, message in (
        ("000001.jpg 0\n000002.jpg 3\n", "line 2: '000002.jpg 3' is not an image and its partition"),
        ("000001.jpg 0\n000001.jpg 1\n", "line 2: 000001.jpg is already in partition 0"),
        ("000001.jpg 1\n", "is in the train split"),
    ):
        text.write_text(lines)
        with pytest.raises(ValueError, match=message):
            open_celeba(tmp_path)


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_second_run_does_nothing(tmp_path: Path, images: dict[str, bytes]) -> None:
    source, out = open_celeba(build("folder", tmp_path, images)), tmp_path / "out"
    assert pixels_up_to_date(source, out, SMALL) is None
    manifest = prepare(source, out)
    before = times(out)
    assert pixels_up_to_date(source, out, SMALL, verify=True) == manifest
    for spec in plan_pixel_shards(source, out, SMALL):
        assert write_pixel_shard(spec).entry in manifest.splits[spec.split].shards
    assert times(out) == before
    assert pixels_up_to_date(source, out, replace(SMALL, crop=140)) is None
    assert pixels_up_to_date(replace(source, content_hash="0"), out, SMALL) is None


def test_a_killed_run_continues(tmp_path: Path, images: dict[str, bytes]) -> None:
    source, out = open_celeba(build("zip", tmp_path, images)), tmp_path / "out"
    whole = prepare(source, tmp_path / "whole")
    specs = plan_pixel_shards(source, out, SMALL)
    write_pixel_shard(specs[0])
    first = times(out)
    write_pixel_shard(specs[1])
    (out / f"{specs[1].split}-00001.tar.json").unlink()  # killed between the shard and its sidecar
    (out / ".train-00002.tar.0123456789ab.tmp").write_bytes(b"half a shard")
    (out / "train-00009.tar").write_bytes(b"of an older, larger run")
    (out / "notes.txt").write_text("of a person")
    assert pixels_up_to_date(source, out, SMALL) is None
    results = [write_pixel_shard(spec) for spec in reversed(specs)]
    manifest = finish_pixels(source, out, specs, results)
    assert manifest.hash == whole.hash
    assert {name: times(out)[name] for name in first} == first
    expected = {shard.name for split in manifest.splits.values() for shard in split.shards}
    assert set(times(out)) == expected | {f"{name}.json" for name in expected} | {"manifest.json", "notes.txt"}
    with pytest.raises(ValueError, match=r"without a result: \['train-00000.tar'\]"):
        finish_pixels(source, out, specs, results[:-1])


def test_a_deleted_or_damaged_shard_is_rewritten_alone(tmp_path: Path, images: dict[str, bytes]) -> None:
    source, out = open_celeba(build("zip", tmp_path, images)), tmp_path / "out"
    manifest = prepare(source, out)
    before = times(out)
    (out / "train-00001.tar").unlink()
    damaged = bytearray((out / "test-00000.tar").read_bytes())
    damaged[5000] ^= 1
    (out / "test-00000.tar").write_bytes(damaged)
    assert pixels_up_to_date(source, out, SMALL) is None
    assert prepare(source, out).hash == manifest.hash
    assert pixels_up_to_date(source, out, SMALL, verify=True) == manifest
    changed = {name for name, time in times(out).items() if time != before[name]}
    assert changed == {f"{shard}{end}" for shard in ("train-00001.tar", "test-00000.tar") for end in ("", ".json")} | {
        "manifest.json"
    }


def test_a_repair_that_keeps_the_size_is_seen(tmp_path: Path, images: dict[str, bytes]) -> None:
    """Downloads that stop can leave files of the right size, full of zeros."""
    source = open_celeba(build("folder", tmp_path, {**images, "000002.jpg": bytes(len(images["000002.jpg"]))}))
    specs = plan_pixel_shards(source, tmp_path / "out", SMALL)
    assert write_pixel_shard(specs[0]).entry.rows == 6
    write_folder(tmp_path / "img_align_celeba", {"000002.jpg": images["000002.jpg"]})
    assert open_celeba(tmp_path).content_hash == source.content_hash
    assert write_pixel_shard(specs[0]).entry.rows == 7


def test_a_machine_without_the_data_set_says_so(tmp_path: Path, images: dict[str, bytes]) -> None:
    spec = plan_pixel_shards(open_celeba(build("zip", tmp_path, images)), tmp_path / "out", SMALL)[0]
    with pytest.raises(ValueError, match="is not on this machine"):
        write_pixel_shard(replace(spec, images=str(tmp_path / "elsewhere.zip")))


@pytest.mark.skipif("CELEBA" not in os.environ, reason="CELEBA is not set to a folder with the real photographs")
def test_real_photographs(tmp_path: Path) -> None:
    source = open_celeba(os.environ["CELEBA"])
    assert source.dataset == "celeba"
    spec = plan_pixel_shards(source, tmp_path, PixelSettings(rows_per_shard=300))[0]
    first, again = write_pixel_shard(spec), write_pixel_shard(replace(spec, out_dir=str(tmp_path / "again")))
    assert first == again and first.entry.rows == 300 and not first.problems
    pixels = finish_rows(source, spec, tmp_path)
    assert pixels.shape == (300, 64, 64, 3)
    assert 80 < pixels.mean() < 180 and pixels.std() > 40
    # Aligned faces: on average the middle is skin, redder than blue, and differs from the corners.
    middle, corners = pixels[:, 24:44, 24:40].mean((0, 1, 2)), pixels[:, :8, :8].mean((0, 1, 2))
    assert middle[0] > middle[2] + 20 and np.abs(middle - corners).max() > 10


def finish_rows(source: CelebASource, spec, folder: Path) -> np.ndarray:
    """Returns the rows of one shard, read as the pipeline reads them."""
    finish_pixels(source, folder, [spec], [write_pixel_shard(spec)])
    return load_split(folder, "train").numpy()

"""Synthetic faces are a function of (seed, index), their files are CelebA's, and a killed run is resumed."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chi2_contingency
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from data_prep import synthetic_faces
from data_prep.celeba import finish_pixels, open_celeba, pixels_up_to_date, plan_pixel_shards, write_pixel_shard
from data_prep.face_drawing import HAIR_COLORS, POSES, Traits, draw_face, draw_traits
from data_prep.images import crop_photograph
from data_prep.synthetic_faces import VERSION, draw_dataset, image_comment
from pipeline.files import replacing

COUNT, SEED = 20, 5


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an undisturbed run."""
    return read_all(draw_dataset(tmp_path_factory.mktemp("reference"), COUNT, SEED))


@pytest.fixture
def folder(tmp_path: Path, reference: dict[str, bytes]) -> Path:
    """A copy of the undisturbed run, to spoil."""
    for name, content in reference.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_face_depends_on_seed_and_index_alone():
    forward = [draw_face(3, index).tobytes() for index in range(4)]
    backward = [draw_face(3, index).tobytes() for index in reversed(range(4))]
    assert forward == backward[::-1]
    assert len({*forward, *(draw_face(4, index).tobytes() for index in range(4))}) == 8


def test_layout(reference: dict[str, bytes], folder: Path):
    names = [f"{number:06d}.jpg" for number in range(1, COUNT + 1)]
    assert set(reference) == {
        *(f"img_align_celeba/{name}" for name in names),
        "list_eval_partition.txt",
        "synthetic_faces.json",
    }
    for name in names:
        with Image.open(folder / "img_align_celeba" / name) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (178, 218))
    lines = [line.split(" ") for line in (folder / "list_eval_partition.txt").read_text().splitlines()]
    assert [name for name, _ in lines] == names
    assert [part for _, part in lines] == ["0"] * 16 + ["1"] * 2 + ["2"] * 2
    marker = json.loads((folder / "synthetic_faces.json").read_text())
    images = b"".join(reference[f"img_align_celeba/{name}"] for name in names)
    assert marker["dataset"] == "synthetic-faces"
    assert marker["complete"] is True
    assert (marker["count"], marker["seed"], marker["generator_version"]) == (COUNT, SEED, VERSION)
    assert marker["sha256"] == hashlib.sha256(images).hexdigest()


def test_stored_picture_is_the_drawn_one(folder: Path):
    drawn = np.asarray(draw_face(SEED, 6), np.float32)
    stored = np.asarray(Image.open(folder / "img_align_celeba/000007.jpg"), np.float32)
    assert np.abs(drawn - stored).mean() < 4.0  # of 255: JPEG's loss; another face differs by ten times as much


def test_processes_do_not_matter(tmp_path: Path, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch):
    assert read_all(draw_dataset(tmp_path, COUNT, SEED, processes=2)) == reference


def test_more_faces_begin_with_the_same_ones(tmp_path: Path, reference: dict[str, bytes]):
    larger = read_all(draw_dataset(tmp_path, COUNT + 5, SEED))
    assert all(larger[name] == content for name, content in reference.items() if name.endswith(".jpg"))


def test_marker_is_written_last(tmp_path: Path, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []

    @contextmanager
    def record(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
        assert durable or path.suffix == ".jpg"
        with replacing(path, durable) as file:
            yield file
        written.append(path.name)

    monkeypatch.setattr(synthetic_faces, "replacing", record)
    draw_dataset(tmp_path, COUNT, SEED)
    assert len(written) == COUNT + 2
    assert written[-1] == "synthetic_faces.json"


def test_killed_run_is_resumed(tmp_path: Path, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch):
    draw = synthetic_faces.draw_face

    def draw_then_die(seed: int, index: int) -> Image.Image:
        if index == 7:
            raise KeyboardInterrupt
        return draw(seed, index)

    monkeypatch.setattr(synthetic_faces, "draw_face", draw_then_die)
    with pytest.raises(KeyboardInterrupt):
        draw_dataset(tmp_path, COUNT, SEED)
    assert not (tmp_path / "synthetic_faces.json").exists()
    monkeypatch.setattr(synthetic_faces, "draw_face", draw)
    assert read_all(draw_dataset(tmp_path, COUNT, SEED)) == reference


def test_spoiled_run_is_repaired(folder: Path, reference: dict[str, bytes]):
    images = folder / "img_align_celeba"
    (folder / "synthetic_faces.json").unlink()
    (images / "000003.jpg").unlink()
    (images / "000004.jpg").write_bytes(b"")
    (images / "000005.jpg").write_bytes(reference["img_align_celeba/000005.jpg"][:-500])
    (images / "000003.jpg.tmp").write_bytes(b"the last words of a killed run")
    draw_dataset(folder, COUNT, SEED)
    assert read_all(folder) == reference


def test_missing_picture_under_a_marker_is_drawn_again(folder: Path, reference: dict[str, bytes]):
    (folder / "img_align_celeba/000011.jpg").unlink()
    draw_dataset(folder, COUNT, SEED)
    assert read_all(folder) == reference


def test_second_run_does_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a complete set was touched")

    monkeypatch.setattr(synthetic_faces, "draw_face", refuse)
    monkeypatch.setattr(synthetic_faces, "replacing", refuse)
    assert draw_dataset(folder, COUNT, SEED) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("count", "seed", "complete"),
    [
        (COUNT + 1, SEED, True),  # without the marker this is no error: the longer set begins with the same pictures
        (COUNT - 1, SEED, True),
        (COUNT - 1, SEED, False),
        (COUNT, SEED + 1, True),
        (COUNT, SEED + 1, False),
    ],
)
def test_other_arguments_in_the_same_folder(folder: Path, count: int, seed: int, complete: bool):
    if not complete:
        (folder / "synthetic_faces.json").unlink()
    before = read_all(folder)
    with pytest.raises(ValueError, match=r"Choose an(other|\ empty) out_dir") as refused:
        draw_dataset(folder, count, seed)
    assert str(folder) in str(refused.value)
    assert read_all(folder) == before


def test_real_celeba_is_never_touched(tmp_path: Path):
    images = tmp_path / "img_align_celeba"
    images.mkdir()
    Image.new("RGB", (178, 218), (120, 90, 70)).save(images / "000007.jpg")
    (tmp_path / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    before = read_all(tmp_path)
    with pytest.raises(ValueError, match="empty out_dir"):
        draw_dataset(tmp_path, COUNT, SEED)
    assert read_all(tmp_path) == before
    (images / "000007.jpg").unlink()
    with pytest.raises(ValueError, match="another data set"):
        draw_dataset(tmp_path, COUNT, SEED)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"count": 9}, "count"),
        ({"count": 1_000_000}, "count"),
        ({"count": 20.0}, "count"),
        ({"seed": -1}, "seed"),
        ({"processes": 0}, "processes"),
        ({"processes": True}, "processes"),
    ],
)
def test_refused_arguments(tmp_path: Path, changed: dict, name: str):
    arguments = {"count": COUNT, "seed": SEED, "processes": 1} | changed
    with pytest.raises(ValueError, match=f"{name} = .*: must be a whole number from"):
        draw_dataset(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_faces_differ():
    # 148 x 148 at the center, to 32 x 32 gray levels in [0, 1].
    faces = [draw_face(1, index).crop((15, 35, 163, 183)).convert("L").resize((32, 32)) for index in range(40)]
    pixels = np.stack([np.asarray(face, np.float32).ravel() / 255 for face in faces])
    distances = [float(np.sqrt(np.mean((a - b) ** 2))) for a, b in combinations(pixels, 2)]
    assert min(distances) > 0.04
    assert np.mean(distances) > 0.15
    assert pixels.std(axis=1).min() > 0.03  # contrast within a picture
    assert 0.2 < pixels.mean() < 0.7
    # The variation is spread: no single direction holds most of it.
    variance = np.linalg.svd(pixels - pixels.mean(0), compute_uv=False) ** 2
    assert variance[0] / variance.sum() < 0.6


def test_eyes_are_where_celeba_puts_them():
    # Averaged over faces the eyes are darker than the cheeks below them and the bridge between them.
    mean = np.mean([np.asarray(draw_face(2, index).convert("L"), np.float32) for index in range(40)], axis=0)

    def level(u: int, v: int) -> float:
        return float(mean[v - 2 : v + 3, u - 3 : u + 4].mean())

    for eye in (69, 108):
        assert level(eye, 111) < 0.85 * min(level(eye, 132), level(88, 115))
    assert level(88, 152) < 0.95 * level(88, 135)  # the mouth, and the nose's tip


# --- traits ----------------------------------------------------------------------------------------------------------


def test_traits_are_independent_and_have_their_shares():
    drawn = [draw_traits(9, index) for index in range(4000)]
    assert drawn == [draw_traits(9, index) for index in range(4000)]
    columns = {name: np.array([str(getattr(traits, name)) for traits in drawn]) for name in Traits._fields}
    for name, share in (("glasses", 0.4), ("hat", 0.35), ("beard", 0.4), ("smile", 0.5)):
        assert abs((columns[name] == "True").mean() - share) < 0.03  # 4 standard deviations
    for name, values in (("hair", HAIR_COLORS), ("pose", POSES)):
        assert sorted(set(columns[name])) == sorted(values)
        assert all(abs((columns[name] == value).mean() - 1 / len(values)) < 0.03 for value in values)
    for first, second in combinations(columns, 2):
        _, a = np.unique(columns[first], return_inverse=True)
        _, b = np.unique(columns[second], return_inverse=True)
        table = np.zeros((a.max() + 1, b.max() + 1))
        np.add.at(table, (a, b), 1)
        assert chi2_contingency(table).pvalue > 1e-3, (first, second)


def cropped(image: Image.Image) -> np.ndarray:
    """The 64 x 64 pixels of the pipeline, through a JPEG as in a data set."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return crop_photograph(buffer.getvalue()).astype(np.float32) / 255


# Rows and columns of the 64x64 crop where a trait shows, and how much of it changes on average, of 1.
REGIONS = {
    "glasses": (slice(26, 42), slice(10, 54), 0.02),
    "hat": (slice(0, 20), slice(8, 56), 0.10),
    "hair": (slice(4, 34), slice(4, 60), 0.03),
    "beard": (slice(46, 62), slice(18, 46), 0.08),
    "smile": (slice(44, 58), slice(18, 46), 0.03),
    "pose": (slice(16, 62), slice(8, 56), 0.03),
}


@pytest.mark.parametrize("name", Traits._fields)
def test_a_trait_changes_its_region_and_nothing_else_of_the_person(name: str):
    rows, columns, least = REGIONS[name]
    changed = []
    for index in range(12):
        traits = Traits(False, False, "brown", False, False, "front")
        other = traits._replace(**{name: {"hair": "gray", "pose": "left"}.get(name, True)})
        change = np.abs(cropped(draw_face(8, index, traits)) - cropped(draw_face(8, index, other))).mean(-1)
        changed.append(change[rows, columns].mean())
        if name in ("glasses", "smile", "beard"):  # far from the trait the picture is the same
            assert change[:8].max() < 0.03
        if name == "hat":
            assert change[44:].max() < 0.03
    assert min(changed) > least


def test_a_small_classifier_finds_every_trait_in_the_crop():
    train, test = 600, 200
    pixels = np.stack([cropped(draw_face(6, index)) for index in range(train + test)])
    traits = [draw_traits(6, index) for index in range(train + test)]
    edges = [np.maximum(sign * edge, 0) for edge in np.gradient(pixels.mean(-1), axis=(1, 2)) for sign in (1, -1)]
    coarse = [values.reshape(len(values), 16, 4, 16, 4, -1).mean((2, 4)) for values in (pixels, *edges)]
    colors, both = (np.concatenate(part, -1).reshape(len(pixels), -1) for part in (coarse[:1], coarse))
    for name in Traits._fields:
        values = np.array([str(getattr(face, name)) for face in traits])
        rows, classifier = both, LogisticRegression(C=0.003, max_iter=200)
        if name == "hair":  # a color is not found by edges
            rows, classifier = colors, make_pipeline(PCA(100, random_state=0), SVC(C=5))
        model = make_pipeline(StandardScaler(), classifier).fit(rows[:train], values[:train])
        assert model.score(rows[train:], values[train:]) >= 0.95, name


# --- versions --------------------------------------------------------------------------------------------------------


def age(folder: Path) -> None:
    """Let the folder hold the same faces as version 1 would have named and marked them."""
    for index in range(COUNT):
        path = folder / f"img_align_celeba/{index + 1:06d}.jpg"
        path.write_bytes(
            path.read_bytes().replace(
                image_comment(SEED, index).encode(), f"synthetic-faces version=1 seed={SEED} index={index};".encode()
            )
        )
    marker = folder / "synthetic_faces.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "generator_version": 1}))


def test_a_finished_set_of_an_earlier_version_is_kept(folder: Path):
    assert open_celeba(folder).drawing == VERSION
    age(folder)
    before = read_all(folder)
    assert draw_dataset(folder, COUNT, SEED) == folder
    assert read_all(folder) == before
    assert open_celeba(folder).drawing is None  # the manifests of version 1 name none


@pytest.mark.parametrize("missing", ["marker", "picture"])
def test_an_unfinished_set_of_an_earlier_version_is_drawn_anew_whole(
    folder: Path, missing: str, reference: dict[str, bytes]
):
    age(folder)
    if missing == "marker":
        (folder / "synthetic_faces.json").unlink()
        (folder / "list_eval_partition.txt").unlink()
        for number in range(12, COUNT + 1):
            (folder / f"img_align_celeba/{number:06d}.jpg").unlink()
    else:
        (folder / "img_align_celeba/000003.jpg").unlink()
    draw_dataset(folder, COUNT, SEED)
    assert read_all(folder) == reference


def test_a_later_version_is_refused(folder: Path):
    marker = folder / "synthetic_faces.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "generator_version": VERSION + 1}))
    with pytest.raises(ValueError, match=f"drawing version {VERSION + 1}; .*, version {VERSION} or before"):
        draw_dataset(folder, COUNT, SEED)


def test_manifest_names_the_version(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    source, out = open_celeba(folder), tmp_path_factory.mktemp("pixels")
    specs = plan_pixel_shards(source, out)
    manifest = finish_pixels(source, out, specs, [write_pixel_shard(spec) for spec in specs])
    assert manifest.settings["drawing"] == VERSION
    assert pixels_up_to_date(source, out) == manifest
    assert pixels_up_to_date(dataclasses.replace(source, drawing=None), out) is None


def test_command_line(tmp_path: Path, reference: dict[str, bytes], capsys: pytest.CaptureFixture):
    synthetic_faces.main(["--out", str(tmp_path / "faces"), "--count", str(COUNT), "--seed", str(SEED)])
    assert read_all(tmp_path / "faces") == reference
    with pytest.raises(SystemExit):
        synthetic_faces.main(["--out", str(tmp_path / "faces"), "--count", "3"])
    assert "count = 3: must be" in capsys.readouterr().err

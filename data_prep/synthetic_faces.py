"""A stand-in for CelebA: varied parametric portraits, drawn from a seed, in CelebA's own files and layout.

CelebA cannot be downloaded everywhere, and every step of the pipeline should run and be tested without it. This writes

    <out_dir>/img_align_celeba/000001.jpg ...    178x218 RGB JPEG, eyes where CelebA's alignment puts them
    <out_dir>/list_eval_partition.txt            "000001.jpg 0" per line; 0 train, 1 validation, 2 test: 80/10/10
    <out_dir>/synthetic_faces.json               written last: the arguments and a sha256 over the images

so that one reader reads both. Picture number i depends on (seed, i) alone. Its traits are correlated as in people
(age with gray hair, wrinkles and glasses; long hair with lipstick; beards with strong jaws and thick brows), so that a
model has structure to learn. Equal arguments give equal bytes on one machine; another processor or JPEG library may
round a pixel differently.

    python -m data_prep.synthetic_faces --out data/faces --count 4000 --seed 0
"""

import argparse
import hashlib
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_prep.face_drawing import HEIGHT, WIDTH, Face, render

GENERATOR_VERSION = 1  # raise it whenever a picture changes
IMAGES = "img_align_celeba"
PARTITION = "list_eval_partition.txt"
MARKER = "synthetic_faces.json"
MIN_COUNT = 10  # the smallest count with a picture in each of the three parts
MAX_COUNT = 999_999  # six digits, as CelebA names its files
JPEG_QUALITY = 92
JPEG_END = b"\xff\xd9"  # a file that was cut short lacks it

# sRGB values from light to dark; a face's tone lies between two neighbors.
SKIN = np.array([(238, 201, 178), (228, 184, 155), (222, 172, 138), (190, 134, 98), (146, 96, 66), (100, 66, 48)]) / 255
IRIS = np.array([(70, 42, 24), (104, 66, 34), (112, 104, 62), (84, 122, 88), (88, 126, 164), (126, 138, 148)]) / 255
HAIR = {"black": (26, 22, 22), "brown": (70, 46, 32), "light brown": (122, 86, 56), "blond": (206, 168, 112)}
HAIR |= {"red": (140, 66, 34), "gray": (172, 168, 166)}
Color = tuple[float, float, float]


def linear(color: np.ndarray) -> Color:
    """Returns a stored color in [0, 1] as linear light."""
    red, green, blue = np.clip(color, 0.0, 1.0) ** 2
    return float(red), float(green), float(blue)


def any_color(rng: np.random.Generator, dull: float) -> Color:
    """Returns a random color; `dull` in [0, 1] moves it toward gray."""
    color, value = rng.uniform(0.05, 0.95, 3), rng.uniform(0.12, 0.92)
    return linear(value * ((1.0 - dull) * color / color.max() + dull))


def sample_face(rng: np.random.Generator) -> Face:
    """Returns a random face: a few hidden factors (sex, age, complexion, mood) move many traits together."""

    def normal(mean: float, std: float, low: float, high: float) -> float:
        return float(np.clip(rng.normal(mean, std), low, high))

    def chance(probability: float) -> bool:
        return bool(rng.random() < probability)

    # sex and age in [0, 1], continuous; dark: 0 lightest .. 1 darkest complexion
    sex = float(rng.beta(0.35, 0.35))  # 0 masculine .. 1 feminine
    age = float(rng.beta(1.5, 2.2))
    dark = float(rng.beta(1.0, 1.5))
    mood = normal(0.42 + 0.12 * sex, 0.38, -0.30, 1.0)
    made_up = sex * float(rng.beta(1.2, 1.4)) * (1.0 - 0.3 * age)

    tone = dark * (len(SKIN) - 1)
    low = min(int(tone), len(SKIN) - 2)
    skin = SKIN[low] + (tone - low) * (SKIN[low + 1] - SKIN[low])
    skin = skin * (1.0 + rng.normal(0, 0.012, 3)) + np.array((0.014, 0.0, -0.014)) * rng.normal()

    shares = np.array(
        (0.25 + 1.6 * dark, 0.75, 0.55 * (1 - dark), 0.75 * (1 - dark) ** 2, 0.22 * (1 - dark) ** 2, 0.02)
    )
    shares[5] += 2.5 * max(age - 0.5, 0.0)
    name = list(HAIR)[rng.choice(6, p=shares / shares.sum())]
    hair = np.array(HAIR[name]) / 255 * rng.uniform(0.8, 1.2) + rng.normal(0, 0.012, 3)
    hair += max(age - 0.45, 0.0) * rng.uniform(0, 0.9) * (np.array(HAIR["gray"]) / 255 - hair)

    # hair: bald, short, medium or long
    bald = chance((1 - sex) * (0.04 + 0.32 * age**2))
    long = not bald and chance(0.03 + 0.82 * sex**1.5)
    curl = float(rng.beta(0.5, 2.5 - 1.5 * dark)) if chance(0.35 + 0.4 * dark) else 0.0
    bangs = not bald and chance(0.08 + 0.18 * sex)
    length = rng.uniform(45, 140) if long else rng.uniform(0, 16) + 5 * curl
    hairline = normal(-43 - 7 * age * (1 - sex), 4, -58, -34)
    if bald:
        hairline = rng.uniform(-110, -90)
    elif bangs:
        hairline = rng.uniform(-27, -20)
    power = rng.uniform(5, 8) if bangs or bald else rng.uniform(2.4, 4.0) if long else rng.uniform(3.0, 7.0)
    volume = rng.uniform(1, 3) if bald else (3 + 9 * float(rng.beta(1.6, 2.2)) + 7 * curl + (2 if long else 0))

    beard = (1 - sex) * (1 - made_up) * float(rng.beta(0.45, 0.75)) if sex < 0.5 else 0.0
    moustache = min(1.0, beard * rng.uniform(0.7, 1.3)) if chance(0.9) else (1 - sex) ** 2 * rng.uniform(0, 0.9)
    smiling = max(mood - 0.35, 0.0) / 0.65
    opened = rng.uniform(2.5, 7.5) * smiling if chance(0.75) else 0.0
    if chance(0.05):
        opened = rng.uniform(2, 7)
    worn = rng.random()
    glasses = "sun" if worn < 0.03 else rng.choice(["round", "square"]) if worn < 0.09 + 0.22 * age else "none"
    hat = rng.choice(["beanie", "brim"]) if chance(0.06) else "none"
    angle = rng.normal(0, 0.95)
    light = np.array((np.sin(angle), rng.uniform(-0.75, -0.15), rng.uniform(0.9, 1.6)))
    light /= np.linalg.norm(light)
    warmth = normal(0.02, 0.045, -0.07, 0.14)
    backdrop = any_color(rng, 1.0 - rng.beta(1.2, 2.6))
    other = any_color(rng, 1.0 - rng.beta(1.2, 2.6))
    if chance(0.5):  # one wall, unevenly lit
        other = linear(np.sqrt(backdrop) * rng.uniform(0.55, 1.25))
    lipstick_color = linear(np.array((rng.uniform(0.55, 0.85), rng.uniform(0.08, 0.35), rng.uniform(0.15, 0.42))))

    return Face(
        yaw=normal(0, 0.19, -0.45, 0.45),
        pitch=normal(0, 0.35, -0.9, 0.9),
        roll=normal(0, 0.022, -0.04, 0.04),
        scale=normal(1.0, 0.02, 0.95, 1.05),
        shift=(normal(0, 0.8, -2, 2), normal(0, 1.0, -2.5, 2.5)),
        light=(float(light[0]), float(light[1]), float(light[2])),
        light_color=(1.0 + warmth, 1.0, 1.0 - warmth),
        ambient=rng.uniform(0.10, 0.40),
        exposure=normal(1.0, 0.12, 0.75, 1.3),
        blur=max(0.0, rng.normal(0.15, 0.25)),
        noise=rng.uniform(0.004, 0.016),
        skin=linear(skin),
        face_width=normal(45.5 - 2.0 * sex, 1.9, 40, 50),
        jaw=normal(0.68 - 0.42 * sex, 0.16, 0, 1),
        chin=normal(69.5 - 3.0 * sex, 2.2, 62, 75),
        ears=rng.uniform(0.6, 1.1),
        wrinkles=float(np.clip(1.25 * (age - 0.3) + rng.normal(0, 0.1), 0, 1)),
        blush=float(np.clip(0.2 + 0.4 * made_up + rng.normal(0, 0.2), 0, 1)),
        eye_size=normal(9.9 + 0.5 * sex, 0.5, 8.6, 11.4),
        eye_open=normal(3.5 + 0.5 * sex - 0.5 * age - 0.5 * smiling, 0.5, 1.6, 4.6),
        eye_tilt=normal(0.15 + 0.2 * sex, 0.35, -0.6, 1.0),
        iris=linear(IRIS[rng.integers(2) if chance(0.25 + 0.75 * dark) else rng.integers(6)] * rng.uniform(0.8, 1.1)),
        gaze=(normal(0, 0.8, -2, 2), normal(0, 0.35, -0.8, 0.8)),
        makeup=made_up,
        brow_thickness=normal(2.3 - 1.0 * sex, 0.35, 0.8, 3.2),
        brow_height=normal(12.0 + 1.5 * sex, 1.1, 9.5, 16),
        brow_arch=normal(1.4 + 1.2 * sex, 0.8, 0, 4.5),
        nose_width=normal(1.03 - 0.10 * sex + 0.14 * dark, 0.08, 0.8, 1.4),
        nose_length=normal(26.0 - 1.2 * sex, 1.4, 22, 29.5),
        mouth_width=normal(14.6 - 0.8 * sex, 0.9, 12, 17) + 2.8 * max(mood, 0.0),
        lips=normal(3.3 + 0.7 * sex + 0.9 * dark - 0.6 * age - 0.5 * smiling, 0.55, 1.8, 6.0),
        smile=mood,
        mouth_open=float(opened),
        lipstick=float(np.clip(made_up * rng.uniform(0.3, 1.3), 0, 0.92)),
        lipstick_color=lipstick_color,
        hair=linear(hair),
        hair_volume=float(volume),
        hair_length=float(length),
        hairline=float(hairline),
        hairline_power=float(power),
        part=0.0 if bald else float(rng.choice((-14, 0, 14)) + rng.normal(0, 3)),
        part_depth=0.0 if bangs or bald else float(max(0.0, rng.normal(5, 5))),
        wave=float(rng.beta(0.8, 1.2)) if long else 0.2,
        curl=curl,
        beard=beard,
        moustache=moustache,
        glasses=str(glasses),
        frame_color=linear(rng.uniform(0.05, 0.3) * np.array((1.0, rng.uniform(0.6, 1), rng.uniform(0.5, 1)))),
        hat=str(hat),
        hat_color=any_color(rng, 0.6),
        clothes=any_color(rng, rng.uniform(0.2, 1.0)),
        neckline=float(rng.uniform(0, 18) + 26 * sex * rng.random()),
        collar=chance(0.45 * (1 - sex)),
        background=(backdrop, other),
        background_angle=rng.uniform(0, 6.28),
        background_shapes=int(rng.integers(0, 7)),
    )


def draw_face(seed: int, index: int) -> Image.Image:
    """Draws face `index` of the set `seed`; depends on these two alone.

    Args:
        seed: the set, 0 or more.
        index: the face, 0 or more; `img_align_celeba/` names it index + 1.

    Returns:
        RGB image, 178 x 218 pixels.
    """
    rng = np.random.default_rng([seed, index])
    return render(sample_face(rng), rng)


# --------------------------------------------------------------------------------------------------------------------
# The data set


def partition_text(count: int) -> str:
    """Returns list_eval_partition.txt: the first 80 % train (0), the next 10 % validation (1), the rest test (2)."""
    valid, test = count * 8 // 10, count * 9 // 10
    return "".join(f"{index + 1:06d}.jpg {(index >= valid) + (index >= test)}\n" for index in range(count))


def image_comment(seed: int, index: int) -> bytes:
    """Returns what each JPEG says about its origin, by which a continued run knows its own pictures."""
    return f"synthetic-faces version={GENERATOR_VERSION} seed={seed} index={index};".encode()


def image_path(out_dir: Path, index: int) -> Path:
    """Returns where face `index` (from 0) is stored; CelebA counts from 1."""
    return out_dir / IMAGES / f"{index + 1:06d}.jpg"


def replace_file(path: Path, content: bytes, durable: bool = False) -> None:
    """Writes a file so that it is there whole or not at all; `durable`: on the disk when this returns."""
    partial = path.with_name(path.name + ".tmp")
    with open(partial, "wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(partial, path)


def draw_missing(out_dir: Path, seed: int, indices: range) -> int:
    """Draws those pictures of `indices` that are not there whole; returns how many are there now, which is all."""
    for index in indices:
        path = image_path(out_dir, index)
        if path.exists() and path.read_bytes().endswith(JPEG_END):
            continue
        buffer = BytesIO()
        draw_face(seed, index).save(buffer, "JPEG", quality=JPEG_QUALITY, comment=image_comment(seed, index))
        replace_file(path, buffer.getvalue())
    return len(indices)


def check_folder(out_dir: Path, count: int, seed: int) -> bool:
    """Returns whether the set is complete already.

    Raises:
        ValueError: the folder holds something else: another set, or pictures that this module did not draw.
    """
    marker, partition = out_dir / MARKER, out_dir / PARTITION
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"{out_dir} is a file: out_dir must be a folder, or not be there yet.")
    if marker.exists():
        found = json.loads(marker.read_text())
        wanted = {"generator_version": GENERATOR_VERSION, "count": count, "seed": seed}
        there = {key: found.get(key) for key in wanted}
        if there != wanted:
            raise ValueError(
                f"{out_dir} holds synthetic faces drawn with {there}, and {wanted} were asked for. "
                "Choose another out_dir, ask for what is there, or delete the folder."
            )
    present = sorted(path.name for path in (out_dir / IMAGES).glob("*.jpg"))
    if marker.exists() and found.get("complete") is True and len(present) == count:
        return True
    indices = {image_path(out_dir, index).name: index for index in range(count)}
    for name in present:
        with open(out_dir / IMAGES / name, "rb") as file:
            head = file.read(256)
        if name not in indices or (head and image_comment(seed, indices[name]) not in head):
            raise ValueError(
                f"{out_dir / IMAGES / name} is not one of the {count} pictures of seed {seed} by version "
                f"{GENERATOR_VERSION} of this generator: another set, or CelebA itself. Choose an empty out_dir, or "
                "delete the folder if it holds nothing you need."
            )
    if not present and partition.exists() and partition.read_text() != partition_text(count):
        raise ValueError(f"{partition} belongs to another data set. Choose an empty out_dir.")
    return False


def draw_dataset(out_dir: Path, count: int, seed: int, processes: int = 1, progress: bool = False) -> Path:
    """Writes `count` faces in CelebA's layout and returns `out_dir`; one run per folder at a time.

    A killed run is continued by calling this again; a complete set with the same arguments is left alone. The files do
    not depend on `processes`.

    Args:
        out_dir: folder to write to; made if it is not there.
        count: number of pictures, 10 to 999999.
        seed: 0 or more.
        processes: number of processes that draw, 1 or more. About 80 pictures per second each.
        progress: show a bar on stderr.

    Raises:
        ValueError: an argument out of range, or the folder holds something else.
    """
    for name, value, low, high in (
        ("count", count, MIN_COUNT, MAX_COUNT),
        ("seed", seed, 0, 2**63 - 1),
        ("processes", processes, 1, 1024),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{name} = {value!r}: must be a whole number from {low} to {high}.")
    out_dir = Path(out_dir)
    if check_folder(out_dir, count, seed):
        return out_dir
    (out_dir / MARKER).unlink(missing_ok=True)  # it says "complete", which pictures that have gone missing made untrue
    (out_dir / IMAGES).mkdir(parents=True, exist_ok=True)
    chunks = [range(start, min(start + 64, count)) for start in range(0, count, 64)]
    with tqdm(total=count, desc="drawing faces", unit="face", disable=not progress) as bar:
        if processes == 1:
            for chunk in chunks:
                bar.update(draw_missing(out_dir, seed, chunk))
        else:
            # spawn: a fork of a process that runs threads (torch, Ray) can hang.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(processes, len(chunks)), mp_context=context) as pool:
                for done in pool.map(draw_missing, repeat(out_dir), repeat(seed), chunks):
                    bar.update(done)
    digest = hashlib.sha256()
    for index in range(count):
        digest.update(image_path(out_dir, index).read_bytes())
    replace_file(out_dir / PARTITION, partition_text(count).encode())
    marker = {
        "dataset": "synthetic-faces",
        "generator_version": GENERATOR_VERSION,
        "count": count,
        "seed": seed,
        "width": WIDTH,
        "height": HEIGHT,
        "sha256": digest.hexdigest(),  # of the JPEG files, one after the other
        "complete": True,
    }
    replace_file(out_dir / MARKER, (json.dumps(marker, indent=2) + "\n").encode(), durable=True)
    return out_dir


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.synthetic_faces",
        description="Draw a stand-in for CelebA: portraits in CelebA's files and layout, from a seed.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; a killed run is continued there")
    parser.add_argument("--count", type=int, default=4000, help="number of pictures, at least 10 (default: 4000)")
    parser.add_argument("--seed", type=int, default=0, help="0 or more (default: 0)")
    parser.add_argument("--processes", type=int, default=1, help="processes that draw (default: 1)")
    parsed = parser.parse_args(arguments)
    try:
        draw_dataset(parsed.out, parsed.count, parsed.seed, parsed.processes, progress=True)
    except ValueError as error:
        parser.error(str(error))
    print(f"{parsed.count} faces in {parsed.out}")


if __name__ == "__main__":
    main()

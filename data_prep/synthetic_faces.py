"""Synthetic faces in CelebA's own files and layout, drawn from a seed: for running and testing without CelebA.

    <out_dir>/img_align_celeba/000001.jpg ...    178x218 RGB JPEG, eyes where CelebA's alignment puts them
    <out_dir>/list_eval_partition.txt            "000001.jpg 0" per line; 0 train, 1 validation, 2 test: 80/10/10
    <out_dir>/synthetic_faces.json               written last: the version of the drawing, the arguments and a sha256

so that one reader reads both. Picture number i depends on (seed, i) alone. Equal arguments give equal bytes on one
machine; another processor or JPEG library may round a pixel differently.

    python -m data_prep.synthetic_faces --out data/faces --count 4000 --seed 0

A finished set that an earlier version drew is kept as it is. An unfinished one is drawn anew by this version: every
picture names the version that drew it, so that a set never holds pictures of two.
"""

import argparse
import hashlib
import json
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.face_drawing import HEIGHT, WIDTH, draw_face
from pipeline.files import replacing

VERSION = 2  # of the drawing: raise it whenever a picture changes
IMAGES = "img_align_celeba"
PARTITION = "list_eval_partition.txt"
MARKER = "synthetic_faces.json"
MIN_COUNT = 10  # the smallest count with a picture in each of the three parts
MAX_COUNT = 999_999  # six digits, as CelebA names its files
JPEG_END = b"\xff\xd9"  # a file that was cut short lacks it


def read_marker(folder: Path) -> dict[str, Any]:
    """Return what the folder's marker says of the set in it; nothing where there is no marker, or a damaged one."""
    try:
        marker = json.loads((folder / MARKER).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def partition_text(count: int) -> str:
    """Return list_eval_partition.txt: the first 80 % train (0), the next 10 % validation (1), the rest test (2)."""
    valid, test = count * 8 // 10, count * 9 // 10
    return "".join(f"{index + 1:06d}.jpg {(index >= valid) + (index >= test)}\n" for index in range(count))


def image_comment(seed: int, index: int, version: int | str = VERSION) -> str:
    """Return what each JPEG says about its origin, by which a resumed run knows its own pictures."""
    return f"synthetic-faces version={version} seed={seed} index={index};"


def image_path(out_dir: Path, index: int) -> Path:
    """Return where face `index` (from 0) is stored; CelebA counts from 1."""
    return out_dir / IMAGES / f"{index + 1:06d}.jpg"


def draw_missing(out_dir: Path, seed: int, indices: range) -> int:
    """Draw those pictures of `indices` that are not there whole by this version; return the number of indices."""
    for index in indices:
        path, comment = image_path(out_dir, index), image_comment(seed, index).encode()
        if path.exists() and (content := path.read_bytes()).endswith(JPEG_END) and comment in content[:256]:
            continue
        with replacing(path, durable=False) as file:
            draw_face(seed, index).save(file, "JPEG", quality=92, comment=comment)
    return len(indices)


def check_folder(out_dir: Path, count: int, seed: int) -> bool:
    """Return whether the set is complete already, by this version of the drawing or an earlier one.

    Raises:
        ValueError: the folder holds something else: another set, or pictures that this module did not draw.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"{out_dir} is a file: out_dir must be a folder, or not be there yet.")
    partition, marker = out_dir / PARTITION, read_marker(out_dir)
    there, wanted = [marker.get("count"), marker.get("seed")], [count, seed]
    version = marker.get("generator_version")
    if marker and not (there == wanted and version in range(1, VERSION + 1)):
        raise ValueError(
            f"{out_dir} holds synthetic faces of count, seed = {there}, drawing version {version}; {wanted}, version "
            f"{VERSION} or before, were asked for. Choose another out_dir, ask for what is there, or delete the folder."
        )
    present = sorted(path.name for path in (out_dir / IMAGES).glob("*.jpg"))
    if marker.get("complete") is True and len(present) == count:
        return True
    indices = {image_path(out_dir, index).name: index for index in range(count)}
    for name in present:
        with open(out_dir / IMAGES / name, "rb") as file:
            head = file.read(256).decode("latin-1")
        if name not in indices or (head and not re.search(image_comment(seed, indices[name], r"\d+"), head)):
            raise ValueError(
                f"{out_dir / IMAGES / name} is not one of the {count} synthetic faces of seed {seed}: another set, or "
                "CelebA itself. Choose an empty out_dir, or delete the folder if it holds nothing you need."
            )
    if not present and partition.exists() and partition.read_text() != partition_text(count):
        raise ValueError(f"{partition} belongs to another data set. Choose an empty out_dir.")
    return False


def draw_dataset(out_dir: Path, count: int, seed: int, processes: int = 1, progress: bool = False) -> Path:
    """Write `count` faces in CelebA's layout and return `out_dir`; one run per folder at a time.

    A killed run is resumed by calling this again; a complete set with the same arguments is left alone. The files do
    not depend on `processes`.

    Args:
        out_dir: folder to write to; made if it is not there.
        count: number of pictures, 10 to 999999.
        seed: 0 or more.
        processes: number of processes that draw, 1 or more. About 80 pictures per second each.
        progress: show a bar on stderr.

    Raises:
        ValueError: an argument is out of range, or the folder holds something else.
    """
    limits = {"count": (count, MIN_COUNT, MAX_COUNT), "seed": (seed, 0, 2**63 - 1), "processes": (processes, 1, 1024)}
    for name, (value, low, high) in limits.items():
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{name} = {value!r}: must be a whole number from {low} to {high}.")
    out_dir = Path(out_dir)
    if check_folder(out_dir, count, seed):
        return out_dir
    (out_dir / MARKER).unlink(missing_ok=True)  # it says "complete", which pictures that have gone missing made untrue
    (out_dir / IMAGES).mkdir(parents=True, exist_ok=True)
    for left in (out_dir / IMAGES).glob("*.tmp"):  # by a killed run
        left.unlink()
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
    with replacing(out_dir / PARTITION) as file:
        file.write(partition_text(count).encode())
    marker = {"dataset": "synthetic-faces", "generator_version": VERSION, "count": count, "seed": seed}
    # the sha256 is of the JPEG files, one after the other
    marker |= {"width": WIDTH, "height": HEIGHT, "sha256": digest.hexdigest(), "complete": True}
    with replacing(out_dir / MARKER) as file:
        file.write((json.dumps(marker, indent=2) + "\n").encode())
    return out_dir


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.synthetic_faces",
        description="Draw synthetic faces: portraits in CelebA's files and layout, from a seed.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; a killed run is resumed there")
    parser.add_argument("--count", type=int, default=4000, help="number of pictures, at least 10 (default: 4000)")
    parser.add_argument("--seed", type=int, default=0, help="0 or more (default: 0)")
    parser.add_argument("--processes", type=int, default=1, help="processes that draw (default: 1)")
    parsed = parser.parse_args(arguments)
    try:
        draw_dataset(parsed.out, parsed.count, parsed.seed, parsed.processes, progress=True)
    except ValueError as error:
        parser.error(str(error))
    print(f"{parsed.count} faces in {parsed.out}, drawing version {read_marker(parsed.out)['generator_version']}")


if __name__ == "__main__":
    main()

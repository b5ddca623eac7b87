"""Autoencoder training and encoding, shard reading, each beside what the machine can do, and the stages of the main job.

`python -m benchmarks.stages [--rounds N] [--seconds S] [--summary FILE]` (`make bench-stages`), on one thread. Contenders
take turns for --rounds rounds of about --seconds each; medians with the range, per second of CPU time, which other work on the
machine disturbs less than the wall clock's.

- training: the step of recipe celeba_autoencoder on drawn faces, beside a bare forward and backward pass of the same network
  on the same batch in the same precision, as one block and as the recipe's blocks, without data, exact sums and Adam.
- encoding: pixels in, latents out, beside the bare encoder on images that are floats already.
- reading: rows of latent shards with and without sha256, beside numpy reading the same rows from one file, and the system
  reading the same bytes. All from the page cache: what the code costs, not the disk.
- the main job's stages, seconds and peak memory, from the summary of a run of `make celeba-train`.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import describe_machine, write_result
from data_prep.face_drawing import draw_face
from data_prep.images import crop_photograph
from jobs.recipes import recipe
from pipeline.comm import Comm
from pipeline.config import AutoencoderConfig
from pipeline.data.manifest import Manifest, SplitEntry
from pipeline.data.shards import iterate_split, write_shard
from pipeline.device.precision import choose_precision, computing_in
from pipeline.models.autoencoder import Autoencoder, encode_pixels, from_pixels
from pipeline.streams import stream
from pipeline.training.autoencoder import AutoencoderObjective

FACES = 256
READ_ROWS = 8192


class Case(NamedTuple):
    """Calls that do the same work, the project's own first and the limits after it."""

    items: str
    per_call: int
    calls: dict[str, Callable[[], Any]]


def draw_pixels(count: int) -> Tensor:
    """Drawn faces as the pixel stage crops them, uint8 [count, 64, 64, 3]."""

    def crop(index: int) -> np.ndarray:
        file = io.BytesIO()
        draw_face(0, index).save(file, "PNG")
        return crop_photograph(file.getvalue())

    return torch.from_numpy(np.stack([crop(index) for index in range(count)]))


def training(pixels: Tensor) -> Case:
    """One update of the autoencoder's recipe."""
    config = recipe("celeba_autoencoder", {"evaluation.num_rows": "16"})
    assert isinstance(config.model, AutoencoderConfig)
    objective = AutoencoderObjective(config, pixels, pixels[:16], Comm())
    precision, batch = objective.precision, config.data.batch_size
    model = Autoencoder(config.model).initialize_(stream(0, "initial weights"))
    parameters, images = list(model.parameters()), from_pixels(pixels[:batch]).contiguous()
    at = {"step": 0}

    def ours() -> None:
        objective.step(at["step"] % objective.schedule.total_steps, measure=False)
        at["step"] += 1

    def bare(blocks: int) -> Callable[[], None]:
        def passes() -> None:
            with computing_in(precision, "cpu"):
                for part in images.chunk(blocks):
                    torch.autograd.grad((model(part) - part).square().mean(), parameters)

        return passes

    blocks = config.model.num_blocks
    return Case("images", batch, {"ours": ours, f"bare passes, {blocks} blocks": bare(blocks), "bare pass": bare(1)})


def encoding(pixels: Tensor) -> Case:
    """Latents of a few hundred pictures."""
    model = Autoencoder(AutoencoderConfig()).initialize_(stream(0, "initial weights"))
    precision, images = choose_precision("auto", "cpu"), from_pixels(pixels).contiguous()

    @torch.no_grad()
    def bare() -> None:
        with computing_in(precision, "cpu"):
            model.encode(images)

    return Case("images", len(pixels), {"ours": lambda: encode_pixels(model, pixels, precision), "bare encoder": bare})


def reading(folder: Path) -> Case:
    """All rows of a split of latents, float32 [READ_ROWS, 1024], 32 MiB in shards of 2048 rows."""
    rows = torch.randn(READ_ROWS, 1024, generator=torch.Generator().manual_seed(0)).numpy()
    parts = enumerate(np.split(rows, READ_ROWS // 2048))
    shards = tuple(write_shard(folder / f"train-{i:05d}.tar", part) for i, part in parts)
    manifest = Manifest("latents", "random-rows", "0" * 64, {}, (1024,), {"train": SplitEntry(READ_ROWS, shards)})
    np.save(folder / "rows.npy", rows)
    buffer = np.empty_like(rows)

    def ours(verify: bool) -> Callable[[], None]:
        def read() -> None:
            position = 0
            for block in iterate_split(folder, manifest, "train", 0, READ_ROWS, verify):
                buffer[position : position + len(block)] = block
                position += len(block)

        return read

    def raw() -> None:
        view, position = memoryview(buffer).cast("B"), 0
        for shard in shards:
            with (folder / shard.name).open("rb", buffering=0) as file:
                position += file.readinto(view[position:]) or 0

    calls = {
        "ours, verified": ours(True),
        "ours, not verified": ours(False),
        "np.load": lambda: np.load(folder / "rows.npy"),
        "raw bytes": raw,
    }
    return Case("rows", READ_ROWS, calls)


def measure(case: Case, rounds: int, seconds: float) -> dict[str, Any]:
    """Items per second of CPU time of each call, median and range over rounds, and the time as a multiple of the limit's.

    The limit is the fastest of the calls that are not ours.
    """
    counts = {}
    for name, call in case.calls.items():
        call()
        start = time.process_time()
        call()
        counts[name] = max(1, round(seconds / max(time.process_time() - start, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in case.calls}
    for _ in range(rounds):
        for name, call in case.calls.items():
            start = time.process_time()
            for _ in range(counts[name]):
                call()
            times[name].append((time.process_time() - start) / counts[name])
    median = {name: statistics.median(each) for name, each in times.items()}
    limit = min(value for name, value in median.items() if not name.startswith("ours"))
    return {
        name: {
            f"{case.items}_per_cpu_second": case.per_call / median[name],
            "range": [case.per_call / max(each), case.per_call / min(each)],
            "times_the_limit": median[name] / limit,
        }
        for name, each in times.items()
    }


def read_stages(summary: Path) -> dict[str, Any]:
    """Seconds and peak memory of the stages of a run of the main job, from its summary.json.

    Raises ValueError when a stage was skipped: then the summary says nothing of what it costs.
    """
    found = json.loads(summary.read_text())
    skipped = [name for name, stage in found["stages"].items() if stage["skipped"]]
    if skipped:
        raise ValueError(f"{summary}: {', '.join(skipped)} skipped; give a run that made everything (a new --name)")
    return {"recipe": found["recipe"], "dataset": found["dataset"], "stages": found["stages"]}


def main() -> None:
    """Measure, print a table per case, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each contender in a round")
    parser.add_argument("--summary", type=Path, help="summary.json of a whole run of the main job")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/stages_cpu.json"))
    args = parser.parse_args()
    job = read_stages(args.summary) if args.summary else None
    torch.set_num_threads(1)
    pixels = draw_pixels(FACES)
    before = json.loads(args.out.read_text()) if args.out.exists() else {}
    record: dict[str, Any] = {
        "what": "items per second of CPU time, one thread; stages of the main job by the wall clock",
        "command": "make bench-stages",
        **describe_machine("torch", "numpy", "webdataset"),
        "precision": choose_precision("auto", "cpu"),
        "rounds": args.rounds,
        "cases": {},
        **({"main_job": before["main_job"]} if "main_job" in before else {}),
    }
    with tempfile.TemporaryDirectory() as scratch:
        cases = {"training": training(pixels), "encoding": encoding(pixels), "reading": reading(Path(scratch))}
        for name, case in cases.items():
            record["cases"][name] = found = measure(case, args.rounds, args.seconds)
            print(f"\n{name:24s} {case.items}/CPU-s  (range)               times the limit")
            for contender, row in found.items():
                low, high = row["range"]
                rate = row[f"{case.items}_per_cpu_second"]
                shown = f"{contender:24s} {rate:12.4g}  ({low:.4g} to {high:.4g})"
                print(f"{shown:58s} {row['times_the_limit']:.2f}")
    if job is not None:
        here = describe_machine("torch", "ray", "mlflow")
        record["main_job"] = {
            **job,
            "versions": here["versions"],
            "processor": here["processor"],
            "cores": here["cores"],
        }
    if "main_job" in record:
        print(f"\nmain job, recipe {record['main_job']['recipe']}\nstage              seconds   peak MB")
        for name, stage in record["main_job"]["stages"].items():
            print(f"{name:16s} {stage['seconds']:9.1f} {stage['peak_rss_mb']:9.0f}")
    write_result(args.out, record)


if __name__ == "__main__":
    main()

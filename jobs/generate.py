"""Many samples of a trained BEAM as shards, on Ray: `python -m jobs.generate --model models:/NAME@champion --out FOLDER`.

One task draws one shard from a stream of its own, named by the seed and the shard's number. So the rows do not depend on
how many workers there are nor on who draws what: on CPUs `--local` and any number of workers give the same bits. A
finished shard is never drawn again: a run that was killed goes on with the same command, and a second run does nothing.
The folder is read by `pipeline.data.shards.load_split(FOLDER, "samples")`.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from tqdm import tqdm

from data_prep.manifest import (
    ShardResult,
    find_finished,
    finish,
    measure_moments,
    merge_moments,
    order_results,
    read_sidecar,
    shard_name,
    write_json,
    write_sidecar,
)
from jobs.prepare import MAX_RETRIES
from jobs.ray_session import ray_session
from jobs.summary import as_table, write_summary
from pipeline.data.shards import BLOCK_ROWS, Manifest, SplitEntry, canonical_hash, write_shard
from pipeline.models.autoencoder import IMAGE_SIZE
from pipeline.packaged import SAMPLE_DEFAULTS, SAMPLE_RANGES, PackagedBeam, load_package
from pipeline.registry import RegistryError, fetch_model
from pipeline.streams import stream_seed

SPLIT = "samples"
RECORD_NAME = "generate.json"
PROTOCOLS = ("driven", "fresh")
WHAT = ("pixels", "latents", "points")
_MAX_SHARDS = 100_000  # five digits in a shard's name


class TaskLost(RuntimeError):
    """Ray could not bring a task to its end: workers died again and again, or had too little memory."""


class Model(NamedTuple):
    """The model that draws, as a folder that every task reads."""

    folder: Path
    name: str
    content: str
    """Hash of weights and settings."""
    dataset: str
    width: int
    """Visible units."""
    draws_pictures: bool


@dataclass(frozen=True)
class SampleSettings:
    """All that decides the rows.

    `what`: `pixels` uint8 [64, 64, 3], decoded from E[v | h]; `latents` float32 [V], E[v | h] on the scale of the raw
    latents on disk; `points` float32 [V], v with its noise, of a model without an autoencoder.
    """

    model: str
    """Hash of the model's content."""
    what: str
    n: int
    shard_rows: int = 1024
    seed: int = 0
    gibbs_steps: int = 100
    protocol: str = "driven"

    def __post_init__(self) -> None:
        """Raises ValueError on a value out of its range."""
        if self.protocol not in PROTOCOLS or self.what not in WHAT:
            raise ValueError(f"protocol {self.protocol!r}, what {self.what!r}: must be of {PROTOCOLS} and {WHAT}")
        low, high = SAMPLE_RANGES["n_samples"]
        ranges = {
            "shard_rows": (low, high),
            "n": (1, _MAX_SHARDS * self.shard_rows),
            "gibbs_steps": SAMPLE_RANGES["gibbs_steps"],
            "seed": SAMPLE_RANGES["seed"],
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}: must be a whole number from {low} to {high}")

    def describe(self) -> dict[str, Any]:
        """Return the settings as the manifest records them."""
        return {**asdict(self), "block_rows": BLOCK_ROWS}

    def shard_seed(self, index: int) -> int:
        """Return the seed of a shard, in [0, 2^31).

        Consecutive numbers from a start that is a hash of the seed: two shards of a run never share one, and the shards
        of two runs with different seeds do so with a chance of about (number of shards) / 2^30. The sampler hashes it
        once more with the number of a block of 32 rows, so that neighboring numbers share nothing. (Of that hash torch's
        CPU generator uses 32 bits: two of the 1 563 blocks of 50 000 rows are the same with a chance of 3e-4.)
        """
        return (stream_seed(self.seed, "generate") + index) % (SAMPLE_RANGES["seed"][1] + 1)


@dataclass(frozen=True)
class ShardSpec:
    """One shard to draw; plain values, so that it travels."""

    index: int
    rows: int
    out_dir: str
    model_dir: str
    settings: SampleSettings

    @property
    def name(self) -> str:
        """File name."""
        return shard_name(SPLIT, self.index)

    @property
    def fingerprint(self) -> str:
        """Of everything that decides the rows."""
        return canonical_hash([self.settings.describe(), self.index, self.rows])

    def finished(self) -> ShardResult | None:
        """The shard's record when it is there, whole and from the same settings; else None."""
        return read_sidecar(Path(self.out_dir), self.name, self.fingerprint)


def find_beam(uri: str, cache: Path) -> Model:
    """Return a registered BEAM, fetched into `cache`/models, or the one in a local folder; verified either way.

    Raises:
        ValueError: there is no such model, it is damaged, or it is no BEAM.
    """
    if Path(uri).is_dir():
        folder, name = Path(uri).resolve(), Path(uri).resolve().name
    elif uri.startswith("models:/"):
        fetched = fetch_model(uri, cache / "models")
        folder, name = fetched.folder.resolve(), f"{fetched.name}/{fetched.version}"
    else:
        raise RegistryError(f"{uri!r} is no model: give models:/NAME@ALIAS, models:/NAME/NUMBER or a model's folder")
    packaged, content = _load_beam(folder)
    width = len(packaged.rbm.visible.bias)
    return Model(folder, name, content, packaged.dataset, width, packaged.autoencoder is not None)


def what_to_draw(model: Model, wanted: str | None) -> str:
    """Return `wanted` when the model can give it; by default pixels, or points of a model without an autoencoder.

    Raises:
        ValueError: the model cannot give it.
    """
    possible = ("pixels", "latents") if model.draws_pictures else ("points",)
    if wanted is not None and wanted not in possible:
        why = "draws pictures" if model.draws_pictures else "has no autoencoder: it draws points"
        raise ValueError(f"--what is {wanted}, but model {model.name} {why}; give {' or '.join(possible)}")
    return wanted or possible[0]


def generate(
    model: Model, settings: SampleSettings, out: Path, cache: Path, workers: int | None = None, local: bool = False
) -> tuple[Manifest, int]:
    """Draw what is missing in `out`; return the manifest, and how many rows were drawn now (0: all were there).

    Args:
        model: of `find_beam`; its folder has to be visible to all workers.
        settings: as the module's text says; a folder holds one set of them.
        out: folder of the shards, visible to all workers; made when missing.
        cache: for the token of a local Ray session.
        workers: tasks at a time; None: as many as the cluster has room for.
        local: in this process, without Ray.

    Raises:
        ValueError: `out` holds something else; what differs is named.
        OSError: `out` cannot be written.
    """
    _claim(out, model, settings)
    if (found := find_finished(out, settings.what, model.content, settings.describe(), verify=False)) is not None:
        return found, 0
    specs = [
        ShardSpec(index, min(settings.shard_rows, settings.n - start), str(out), str(model.folder), settings)
        for index, start in enumerate(range(0, settings.n, settings.shard_rows))
    ]
    results = [result for spec in specs if (result := spec.finished()) is not None]
    there = {result.index for result in results}
    missing = [spec for spec in specs if spec.index not in there]
    kept = sum(result.entry.rows for result in results)
    unit = " images" if settings.what == "pixels" else " rows"
    drawn = _run_local(missing) if local or not missing else _run_on_ray(missing, workers, cache)
    with (
        closing(drawn),
        tqdm(total=settings.n, initial=kept, desc=f"{settings.what} of {model.name}", unit=unit) as bar,
    ):
        for result in drawn:
            results.append(result)
            bar.update(result.entry.rows)
    ordered = order_results([spec.name for spec in specs], results)
    moments = [result.moments for result in ordered if result.moments is not None]
    mean, std = merge_moments(moments) if moments else ((), ())
    split = SplitEntry(settings.n, tuple(result.entry for result in ordered), mean, std)
    shape = (IMAGE_SIZE, IMAGE_SIZE, 3) if settings.what == "pixels" else (model.width,)
    # The name says that these are no data: neither photographs nor drawn faces.
    dataset = f"{model.dataset}-samples"
    manifest = Manifest(settings.what, dataset, model.content, settings.describe(), shape, {SPLIT: split})
    finish(out, manifest)
    for leftover in out.glob(f".{SPLIT}-*.tmp"):  # of tasks that were killed
        leftover.unlink(missing_ok=True)
    return manifest, settings.n - kept


def draw_shard(spec: ShardSpec) -> ShardResult:
    """Draw one shard, unless it is there with its record; on the GPU where the task has one.

    Raises:
        ValueError: the model is not the one that was asked for.
    """
    if (found := spec.finished()) is not None:
        return found
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    threads, settings = torch.get_num_threads(), spec.settings
    torch.set_num_threads(1)  # the bits of a product depend on it
    try:
        model, content = _load_beam(Path(spec.model_dir), device)
        if content != settings.model:
            raise ValueError(f"the model in {spec.model_dir} changed while its samples were drawn; run the job again")
        options = (spec.rows, settings.gibbs_steps, settings.shard_seed(spec.index), settings.protocol)
        latents = settings.what == "latents"
        drawn = model.whitening.invert(model.sample_latents(*options)) if latents else model.sample(*options)
        rows: np.ndarray = drawn.cpu().numpy()
    finally:
        torch.set_num_threads(threads)
    out = Path(spec.out_dir)
    entry = write_shard(out / spec.name, rows if settings.what == "pixels" else rows.astype(np.float32, copy=False))
    moments = measure_moments(rows) if latents else None
    result = ShardResult(SPLIT, spec.index, entry, moments=moments)
    write_sidecar(out, spec.fingerprint, result)
    return result


def _load_beam(folder: Path, device: torch.device | str = "cpu") -> tuple[PackagedBeam, str]:
    """Return the verified model and the hash of its content."""
    packaged = load_package(folder, device)
    if not isinstance(packaged, PackagedBeam):
        raise ValueError(
            f"the model in {folder} is no BEAM but an autoencoder, which draws nothing; give a ...-beam model"
        )
    return packaged, json.loads((folder / "config.json").read_bytes())["hash"]


def _claim(out: Path, model: Model, settings: SampleSettings) -> None:
    """Record what `out` is for, before its first shard; refuse a folder that is for something else."""
    out.mkdir(parents=True, exist_ok=True)
    ours = settings.describe()
    try:
        theirs = json.loads((out / RECORD_NAME).read_bytes())["settings"]
    except FileNotFoundError:
        if others := sorted(path.name for path in out.iterdir() if not path.name.startswith(".")):
            raise ValueError(
                f"{out} holds {others[0]!r} and no {RECORD_NAME}, so it is no folder of samples; give a new one"
            ) from None
        write_json(out / RECORD_NAME, {"settings": ours, "model": model.name, "dataset": model.dataset})
        return
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{out / RECORD_NAME} cannot be read ({error}); give a new folder, or delete this one"
        ) from error
    differing = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    if differing:
        texts = [f"{key} is {_short(theirs.get(key))} there and {_short(ours.get(key))} here" for key in differing]
        raise ValueError(
            f"{out} holds samples of other settings: {', '.join(texts)}; give another folder, or delete it"
        )


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def _run_local(specs: Sequence[ShardSpec]) -> Generator[ShardResult, None, None]:
    with _sigterm_interrupts():
        yield from map(draw_shard, specs)


def _run_on_ray(specs: Sequence[ShardSpec], workers: int | None, cache: Path) -> Generator[ShardResult, None, None]:
    """Yield results as they come in, with at most `workers` tasks at a time, so that a stop leaves few behind."""
    with ray_session(cache, workers or os.cpu_count() or 1):
        import ray

        gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=MAX_RETRIES)(draw_shard)
        waiting, running = list(reversed(specs)), list[ray.ObjectRef]()
        with _sigterm_interrupts():  # after Ray has started, which brings a handler that aborts
            while waiting or running:
                while waiting and (workers is None or len(running) < workers):
                    running.append(task.remote(waiting.pop()))
                done, running = ray.wait(running, num_returns=1)
                try:
                    result = ray.get(done[0])
                except ray.exceptions.RayTaskError as error:
                    raise (error.cause or error) from None  # the task's own error, which says what and where
                except ray.exceptions.RayError as error:
                    raise TaskLost(f"a task was lost for good ({type(error).__name__}: {error})") from error
                yield result


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM is as Ctrl-C until the block ends; in a thread other than the main one nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the usage text."""
        raise ValueError(f"{message} (--help lists the options)")


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = _Parser(prog="jobs.generate", allow_abbrev=False, description="Draw many samples of a trained BEAM.")
    parser.add_argument("--model", required=True, help="models:/NAME@ALIAS, models:/NAME/NUMBER or a model's folder")
    parser.add_argument("--out", required=True, type=Path, help="folder of the shards; goes on where it is unfinished")
    parser.add_argument("--n", type=int, default=50_000, help="number of samples (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same samples (%(default)s)")
    parser.add_argument(
        "--gibbs-steps", type=int, default=SAMPLE_DEFAULTS["gibbs_steps"], help="sweeps of the main stage (%(default)s)"
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0], help="(%(default)s)")
    parser.add_argument("--what", choices=WHAT, help="(pixels; points of a model that has no autoencoder)")
    parser.add_argument(
        "--shard-rows", type=int, default=1024, help="samples in a shard, drawn by one task (%(default)s)"
    )
    parser.add_argument("--workers", type=int, help="tasks at a time (as many as there is room for)")
    parser.add_argument("--local", action="store_true", help="in this process, without Ray")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="where models are fetched to (%(default)s)")
    return parser


def run(arguments: argparse.Namespace) -> str:
    """Draw what the options ask for, and return a table of it.

    Raises:
        ValueError: a wrong option, model or folder.
        OSError: the folder cannot be written.
    """
    if arguments.workers is not None and arguments.workers < 1:
        raise ValueError(f"--workers is {arguments.workers}: must be at least 1")
    cache, out = arguments.cache.resolve(), arguments.out.resolve()
    model = find_beam(arguments.model, cache)
    settings = SampleSettings(
        model=model.content,
        what=what_to_draw(model, arguments.what),
        n=arguments.n,
        shard_rows=arguments.shard_rows,
        seed=arguments.seed,
        gibbs_steps=arguments.gibbs_steps,
        protocol=arguments.protocol,
    )
    begin = time.perf_counter()
    try:
        manifest, drawn = generate(model, settings, out, cache, arguments.workers, arguments.local)
    except OSError as error:  # a full disk does not say where
        raise OSError(f"{error} (writing {out}; finished shards are kept)") from error
    seconds = time.perf_counter() - begin
    table: dict[str, Any] = {
        "model": model.name, "data set": manifest.dataset, "shards": f"{manifest.kind} in {out}",
        "samples": settings.n, "drawn now": drawn or "none: all of them were there",
    }  # fmt: skip
    if drawn:
        table |= {"seconds": seconds, "per second": drawn / seconds}
        metrics = {"samples": settings.n, "drawn": drawn, "per_second": drawn / seconds}
        stage = {"generate": {"seconds": round(seconds, 2), "skipped": False}}
        facts = {"model": model.name, "settings": manifest.settings}
        write_summary(out, None, stage, metrics, dataset=manifest.dataset, data_hash=manifest.hash, **facts)
    return as_table(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 130 stopped, 2 a user's error in one line, 1 lost tasks."""
    try:
        print(run(build_parser().parse_args(argv)))
    except (ValueError, OSError) as error:
        print(f"jobs.generate: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except TaskLost as error:
        text = " ".join(str(error).split())
        print(f"jobs.generate: {text}; finished shards are kept, and the same command goes on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("jobs.generate: stopped; finished shards are kept, and the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    from jobs.generate import main as imported_main

    sys.exit(imported_main())

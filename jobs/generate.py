"""Many samples of a trained BEAM as shards, on Ray: `python -m jobs.generate --model models:/NAME@champion --out FOLDER`.

One task draws one shard (data_prep/samples.py). The rows do not depend on how many workers there are: on CPUs `--local`
and any number of workers give the same bits. A finished shard is never drawn again: a run that was killed goes on with
the same command, and a second run does nothing.
The folder is read by `pipeline.data.shards.load_split(FOLDER, "samples")`.
"""

import argparse
import os
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from data_prep.samples import (
    PROTOCOLS,
    WHAT,
    Model,
    SampleSettings,
    ShardSpec,
    claim_folder,
    draw_shard,
    finish_samples,
    load_beam,
    plan_sample_shards,
)
from data_prep.tasks import ShardResult, find_finished
from jobs.prepare import MAX_RETRIES
from jobs.ray_session import interruptible, ray_session
from pipeline.data.manifest import Manifest
from pipeline.packages.inputs import SAMPLE_DEFAULTS
from pipeline.registry.fetch import fetch_model
from pipeline.registry.versions import RegistryError
from pipeline.runs.lock import locked
from pipeline.runs.summary import as_table, write_summary


class TaskLost(RuntimeError):
    """Ray could not bring a task to its end: workers died again and again, or had too little memory."""


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
    packaged, content = load_beam(folder)
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
    claim_folder(out, model, settings)
    if (found := find_finished(out, settings.what, model.content, settings.describe(), verify=False)) is not None:
        return found, 0
    with locked(out):
        specs = plan_sample_shards(model, settings, out)
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
        manifest = finish_samples(model, settings, out, specs, results)
        return manifest, settings.n - kept


def _run_local(specs: Sequence[ShardSpec]) -> Generator[ShardResult, None, None]:
    with interruptible():
        yield from map(draw_shard, specs)


def _run_on_ray(specs: Sequence[ShardSpec], workers: int | None, cache: Path) -> Generator[ShardResult, None, None]:
    """Yield results as they come in, with at most `workers` tasks at a time, so that a stop leaves few behind."""
    with ray_session(cache, workers or os.cpu_count() or 1):
        import ray

        gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=MAX_RETRIES)(draw_shard)
        waiting, running = list(reversed(specs)), list[ray.ObjectRef]()
        with interruptible():  # after Ray has started, which brings a handler that aborts
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
    except ConnectionError:  # Ray's
        raise
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

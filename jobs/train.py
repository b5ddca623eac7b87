"""Train one recipe: on N workers with Ray Train, or in this process with `--local`. Both give the same bits on CPUs.

A killed worker is replaced and the group goes on from the last checkpoint; Ctrl-C or SIGTERM writes one and stops; the same
command goes on from there. Questions (`--help`, `--list`, `--show`, a wrong name) are answered before torch is imported.
"""

import argparse
import logging
import sys
from pathlib import Path

from jobs.imports import importing
from jobs.recipes import describe, recipe
from jobs.storage import add_storage, local_input, local_path, path_or_url, stored
from pipeline.config import ConfigError, RunConfig, flatten, parse_settings


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description=__doc__)
    parser.add_argument("recipe", nargs="?", help="a name from --list")
    parser.add_argument(
        "--data",
        type=path_or_url,
        help="folder or URL of shards: latents or points for a BEAM, pixels for an autoencoder or a GAN of photographs",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--min-workers",
        type=int,
        help="fewest that train while machines are away (default: 1 on a cluster, with RAY_ADDRESS, else all)",
    )
    parser.add_argument("--local", action="store_true", help="one process, no Ray")
    parser.add_argument("--name", help="name of the run's folder under --runs (default: the recipe's)")
    parser.add_argument("--runs", type=local_path, default=Path("runs"))
    parser.add_argument("--cache", type=local_path, default=Path("cache"))
    add_storage(parser)
    parser.add_argument("--no-tracking", action="store_true", help="do not log to MLflow")
    parser.add_argument("--list", action="store_true", help="list the recipes and end")
    parser.add_argument("--show", action="store_true", help="print the resolved settings and end")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 finished, 130 stopped or interrupted, 2 a user's error."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    if args.list:
        print(describe())
        return 0
    try:
        if args.workers < 1:
            raise ConfigError(f"--workers {args.workers}: at least 1")
        if args.min_workers is not None and not 1 <= args.min_workers <= args.workers:
            raise ConfigError(f"--min-workers {args.min_workers}: 1 to {args.workers}, the number of --workers")
        if args.recipe is None:
            raise ConfigError("name a recipe (see --list)")
        config = recipe(args.recipe, parse_settings(args.settings))
        if args.data is None and not args.show:
            raise ConfigError("--data is needed: the folder of shards that `python -m jobs.prepare` made")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.show:
        print("\n".join(f"{k} = {v}" for k, v in flatten(config.to_dict()).items()))
        return 0
    try:
        return train(args, config)
    except KeyboardInterrupt:  # before training, which stops in its own way, or a second one
        print("interrupted; the same command begins again, or goes on from the last checkpoint", file=sys.stderr)
        return 130


def train(args: argparse.Namespace, config: RunConfig) -> int:
    """Train `config` as the command line asks; returns the exit status."""
    with importing():
        from jobs.train_job import run_training
        from pipeline.data.manifest import read_manifest
        from pipeline.runs.job import TrainingFailed, TrainJob, check_folder
        from pipeline.runs.lock import locked, run_folder
        from pipeline.runs.summary import as_table, write_summary
        from pipeline.runs.tracked import StartingTracker
        from pipeline.training.objective import NonFinite

    tracker = None
    try:
        data = local_input(args.data, args.cache.resolve()).resolve()
        manifest = read_manifest(data)
        folder = run_folder(args.runs, args.name or config.name)
        job = TrainJob(config.to_dict(), str(data), manifest.hash, str(folder))
        with locked(folder), stored(folder, args.storage):
            check_folder(folder, config, manifest.hash)
            if not args.no_tracking:
                tracker = StartingTracker(folder, config, manifest.dataset, manifest.hash)
            try:
                outcome = run_training(
                    job, args.workers, args.local, tracker, args.cache.resolve(), min_workers=args.min_workers
                )
            except BaseException as error:
                # of a command that was taken back before its first report MLflow hears nothing
                if tracker is not None and (tracker.is_begun or isinstance(error, Exception)):
                    tracker.finish("FAILED")
                raise
            if tracker is not None:
                tracker.finish("FINISHED" if outcome.finished else "KILLED")
            metrics = {k: v for row in outcome.history for k, v in row.items() if k != "step"}  # the last value of each
            summary = write_summary(
                folder,
                config.name,
                {"train": {"seconds": round(outcome.seconds, 2), "skipped": outcome.skipped}},
                metrics,
                dataset=manifest.dataset,
                data_hash=manifest.hash,
                mlflow_run_id=(tracker and tracker.run_id) or None,
                updates=outcome.steps,
                total_updates=outcome.total_steps,
                config=config.to_dict(),
            )
    except (ValueError, NonFinite, TrainingFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    facts = {"recipe": config.name, "data set": manifest.dataset, "seconds": outcome.seconds}
    updates = f"{outcome.steps} of {outcome.total_steps}" + (" (nothing left to do)" if outcome.skipped else "")
    print(as_table({**facts, "updates": updates, **metrics, "summary": summary}))
    return 0 if outcome.finished else 130


if __name__ == "__main__":
    sys.exit(main())

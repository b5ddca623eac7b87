"""Train a deep stack: a chain of BEAMs, each on the rows that the layers below encode, and score it beside its bottom.

    python -m jobs.stack --recipes celeba_beam,celeba_stack_top --data LATENTS --name deep
    python -m jobs.stack --bottom runs/celeba-celeba_beam/beam --recipes celeba_stack_top --data LATENTS --name deep

Stages, in runs/NAME: layer_1, then for each further layer n rows_n (shards of kind "points": layer n - 1's encodings) and
layer_n, then scores and, of faces, pictures. A stage is skipped when its result is there and was made from the same
inputs; a run that was killed or stopped goes on with the same command. Encodings depend on the parameters below, which
their manifest names by hash, so a layer trained on other ones is refused. The number of workers changes nothing.

A stack is not put into the registry: a package holds one RBM.
"""

import argparse
import logging
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.encode import (
    encoded_up_to_date,
    finish_encoded,
    layer_encoding,
    plan_encoded_shards,
    write_encoded_shard,
)
from jobs.chain import Stopped
from jobs.prepare import run_tasks
from jobs.ray_session import ray_session
from jobs.recipes import recipe
from jobs.registry_wait import as_command
from jobs.stack_layers import Layer, is_whole, load_layer, read_bottom, read_layer, start_tied
from jobs.stack_pictures import draw_pictures
from jobs.train_job import run_training
from pipeline.config import ConfigError, RBMConfig, RunConfig, parse_settings
from pipeline.data.manifest import read_manifest
from pipeline.data.rows import load_rows
from pipeline.evaluation.scores import TABLE_KEYS, as_text
from pipeline.evaluation.stack import SceneOf, score_stack
from pipeline.models.stack import (
    DEFAULT_ENCODING,
    Encoding,
    RBMStack,
    check_fit,
    parameters_hash,
)
from pipeline.runs.job import TrainingFailed, TrainJob, check_folder, total_updates
from pipeline.runs.lock import locked, run_folder
from pipeline.runs.stages import Stages
from pipeline.runs.summary import write_summary
from pipeline.runs.tracked import add_history, deliver_left, start_tracker
from pipeline.samplers.protocols import WideStart
from pipeline.training.objective import NonFinite


@dataclass
class StackRun:
    """One run of this job: where things lie, what was asked for, its stages."""

    args: argparse.Namespace
    configs: dict[int, RunConfig]
    """Of the layers trained here, by number from 1."""
    folder: Path
    cache: Path
    stages: Stages

    def train(self, number: int, data_dir: Path, below: Layer | None) -> Layer:
        """Layer `number`, trained on `data_dir`."""
        config, manifest, part = self.configs[number], read_manifest(data_dir), f"layer_{number}"
        folder = self.folder / part
        tied = bool(self.args.tied) and below is not None
        total = total_updates(config, manifest.splits["train"].rows)[1]

        def make() -> dict[str, Any]:
            check_folder(folder, config, manifest.hash)
            job = TrainJob(config.to_dict(), str(data_dir), manifest.hash, str(folder))
            if tied:
                assert below is not None
                start_tied(job, below.rbm)
            tracker, status = None, "FAILED"
            if not self.args.no_tracking:
                tracker = start_tracker(
                    folder, config, manifest.dataset, manifest.hash, self.folder.name, must_answer=number == 1
                )
            try:
                outcome = run_training(job, self.args.workers, self.args.local, tracker, self.cache, part)
                status = "FINISHED" if outcome.finished else "KILLED"
            finally:
                if tracker is not None:
                    add_history(tracker, folder)
                    tracker.finish(status)
            if not outcome.finished:
                raise Stopped(f"stopped after {outcome.steps} of {outcome.total_steps} updates of {part}")
            run_id = None if tracker is None else tracker.run_id
            return {"run_id": run_id, "seconds": outcome.seconds, "updates": outcome.total_steps}

        inputs = {"data": manifest.hash, "config": config.to_dict(), "tied": tied}
        self.stages.run(part, inputs, make, lambda _: is_whole(folder, total))
        return read_layer(folder)

    def encode(self, number: int, source_dir: Path, below: Layer) -> Path:
        """The folder of rows for layer `number`: those of `source_dir` through `below`, layer `number - 1`."""
        out = self.folder / f"rows_{number}"
        encoding = layer_encoding(
            layer=number - 1,
            parameters=parameters_hash(below.rbm),
            num_hidden=below.rbm.config.num_hidden,
            encoding=self.args.encoding,
            seed=self.configs[number].seed,
            scaling=below.config.data.scaling,
            load=partial(load_layer, layer_dir=str(below.folder)),
        )

        def make() -> dict[str, Any]:
            specs = plan_encoded_shards(source_dir, out, encoding)
            results = run_tasks(write_encoded_shard, specs, f"rows of layer {number}", self.cache, self.args.local)
            return {"hash": finish_encoded(source_dir, out, specs, results).hash}

        inputs = {"data": read_manifest(source_dir).hash, "settings": encoding.settings}
        self.stages.run(
            f"rows_{number}", inputs, make, lambda _: encoded_up_to_date(source_dir, out, encoding) is not None
        )
        return out


def run_stack(run: StackRun) -> dict[str, Any]:
    """All stages; returns the table of scores."""
    args, data_dir = run.args, run.args.data.resolve()
    manifest = read_manifest(data_dir)
    bottom = run.train(1, data_dir, None) if args.bottom is None else read_bottom(args.bottom, manifest)
    scaling = bottom.config.data.scaling
    layers, starts, rows_dir = [bottom], [WideStart.of(load_rows(data_dir, "train", scaling))], data_dir
    for number in range(2, max(run.configs) + 1):
        upper = run.configs[number].model
        assert isinstance(upper, RBMConfig)
        check_fit(layers[-1].rbm.config, upper, number)  # before anything is encoded
        rows_dir = run.encode(number, rows_dir, layers[-1])
        starts.append(WideStart.of(load_rows(rows_dir, "train")))
        layers.append(run.train(number, rows_dir, layers[-1]))
    stack = RBMStack([layer.rbm for layer in layers])
    where = SceneOf(data_dir, run.cache, layers[-1].config.evaluation, scaling)
    hashes = [parameters_hash(layer.rbm) for layer in layers]
    inputs = {"data": manifest.hash, "layers": hashes, "encoding": args.encoding}
    table = run.stages.run("scores", inputs, lambda: score_stack(stack, starts, where, args.encoding))
    if manifest.kind == "latents":
        picture = run.folder / "samples.png"
        run.stages.run(
            "pictures",
            inputs,
            lambda: draw_pictures(stack, starts, where, args.encoding, picture, manifest.dataset),
            lambda _: picture.exists(),
        )
    return table


def parse_layer_settings(items: list[str], layers: list[int]) -> dict[int, dict[str, str]]:
    """`["2:model.num_hidden=64", "seed=3"]` -> settings by layer; without a number for every layer trained here.

    Raises:
        ConfigError: an item without `=`, or a number that is no layer trained here.
    """
    settings: dict[int, dict[str, str]] = {number: {} for number in layers}
    for item in items:
        number, colon, rest = item.partition(":")
        if not (colon and number.isdigit()):
            for own in settings.values():
                own |= parse_settings([item])
        elif int(number) in settings:
            settings[int(number)] |= parse_settings([rest])
        else:
            raise ConfigError(f"--set {item}: layer {number} is not trained here; those are {layers}")
    return settings


def build_configs(args: argparse.Namespace) -> dict[int, RunConfig]:
    """The configs of the layers trained here by number. Raises ConfigError on recipes that are no RBMs or do not fit."""
    first = 1 if args.bottom is None else 2
    names = dict(enumerate((name.strip() for name in args.recipes.split(",")), start=first))
    settings = parse_layer_settings(args.settings, list(names))
    configs = {number: recipe(name, settings[number]) for number, name in names.items()}
    for number, config in configs.items():
        if not isinstance(config.model, RBMConfig):
            raise ConfigError(f"recipe {config.name!r} of layer {number} is no RBM")
    for number, config in configs.items():
        if number > first:
            check_fit(configs[number - 1].model, config.model, number)  # type: ignore[arg-type]
        if number > 1 and config.data.scaling != "manifest":
            raise ConfigError(
                f"data.scaling = {config.data.scaling!r} of layer {number}: hidden units are taken as they are; leave it at "
                "'manifest'"
            )
    return configs


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.stack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--recipes", required=True, help="of the layers to train, from the bottom up, with commas between"
    )
    parser.add_argument(
        "--bottom", type=Path, help="folder of a finished run that is layer 1; --recipes begin with layer 2"
    )
    parser.add_argument("--data", required=True, type=Path, help="folder of shards that layer 1 is trained on")
    parser.add_argument("--name", required=True, help="name of the run's folder under --runs")
    encodings: tuple[Encoding, ...] = ("sample", "mean")
    parser.add_argument("--encoding", choices=encodings, default=DEFAULT_ENCODING, help="of rows for the next layer")
    parser.add_argument(
        "--tied", action="store_true", help="start each upper layer from the one below, turned around (flipped shape)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="[LAYER:]KEY=VALUE",
        dest="settings",
        help="a setting of one layer (1 is the bottom), or of all trained here",
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--local", action="store_true", help="one process, no Ray")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--no-tracking", action="store_true", help="do not log to MLflow")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 finished, 130 stopped with a checkpoint, 2 a user's error."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    begin = time.perf_counter()
    try:
        if args.workers < 1:
            raise ConfigError(f"--workers {args.workers}: at least 1")
        configs = build_configs(args)
        folder, cache = run_folder(args.runs, args.name), args.cache.resolve()
        names = (
            *(f"{part}_{n}" for n in range(1, max(configs) + 1) for part in ("rows", "layer")),
            "scores",
            "pictures",
        )
        with locked(folder):
            run = StackRun(args, configs, folder, cache, Stages(folder, names, None))
            with nullcontext() if args.local else ray_session(cache, max(args.workers, os.cpu_count() or 1)):
                table = run_stack(run)
            if not args.no_tracking:
                deliver_left(folder, as_command("jobs.stack", argv))
    except (KeyboardInterrupt, Stopped) as stop:
        print(f"{str(stop) or 'interrupted'}; the same command goes on from there", file=sys.stderr)
        return 130
    except (ValueError, NonFinite, TrainingFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    manifest, deepest = read_manifest(args.data), table[f"{max(configs)} layers"]
    stages = {r.name: r.to_dict() for r in run.stages.reports}
    summary = write_summary(
        folder,
        args.recipes,
        stages,
        {k: v for k, v in deepest.items() if v is not None},
        dataset=manifest.dataset,
        data_hash=manifest.hash,
        encoding=args.encoding,
        tied=args.tied,
        bottom=None if args.bottom is None else str(args.bottom),
        configs={str(number): config.to_dict() for number, config in configs.items()},
        comparison=table,
    )
    print("\n".join(f"{k:10s} {v['seconds']:9.1f}{'  skipped' if v['skipped'] else ''}" for k, v in stages.items()))
    print(f"\n{as_text(table, TABLE_KEYS)}\n\nsummary: {summary}\ntotal: {time.perf_counter() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    from jobs.stack import main as imported_main  # so that Ray's tasks unpickle by the module's name

    sys.exit(imported_main())

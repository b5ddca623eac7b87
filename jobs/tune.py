"""Search settings of a recipe: trials on Ray Tune, the best one trained in full over 3 seeds beside the recipe, registered.

A sweep's folder holds everything: the same command goes on with one that was interrupted and repeats no finished trial.
Trials are judged on the validation split by a fixed protocol that no searched setting changes; the last comparison is on
the test split. The recipe's own values are always the first trial.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jobs.chain import Stopped
from jobs.ray_session import interruptible, prepare_environment
from jobs.recipes import recipe
from jobs.registry_wait import as_command, wait_seconds
from jobs.spaces import as_text, changed_in_flight, space_of
from jobs.sweep import OBJECTIVES, STAGES, Sweep, forget_stage, prepare_data, run_sweep, shown_metrics, tags_of
from pipeline.config import ConfigError, RunConfig, parse_settings
from pipeline.data.manifest import read_manifest
from pipeline.files import write_json
from pipeline.runs.job import TrainingFailed
from pipeline.runs.lock import locked, run_folder
from pipeline.runs.stages import Stages
from pipeline.runs.tracked import deliver_left, tracker_at

SCHEDULERS = ("asha", "pbt", "none")


def last_word(summary: Mapping[str, Any], folder: Path, seconds: float) -> str:
    """The table of trials, the comparison and where things are."""
    metric, rows = summary["metric"], summary["trials"]
    keys = list(summary["space"])
    short = [key.replace("schedules.", "").replace("learning_rate.initial", "lr").split(".", 1) for key in keys]
    heads = [part[-1] if part[-1] != "lr" else f"lr {part[0][:3]}." for part in short]
    stand_in = " (drawn stand-in faces, NOT CelebA)" if summary["dataset"] == "synthetic-faces" else ""
    lines = ["", f"data set: {summary['dataset']}{stand_in}", ""]
    lines += [f"{'trial':18s} {'status':9s} {'updates':>8s} {metric:>15s}" + "".join(f" {h[:13]:>13s}" for h in heads)]
    order = sorted(rows, key=lambda row: (row["score"] is None, row["score"]))
    for row in order:
        score = "-" if row["score"] is None else f"{row['score']:.4g}"
        values = "".join(f" {_cell(row['settings'].get(key)):>13s}" for key in keys)
        mark = " recipe" if row["recipe"] else ""
        mark += " pareto" if row["id"] in summary["pareto_front"] else ""
        lines += [f"{row['id']:18s} {row['status']:9s} {row['updates']:8d} {score:>15s}{values}{mark}"]
    for row in order:
        if row["reason"]:
            lines += [f"{row['id']} failed: {row['reason']}"]
    final = summary["final"]
    lines += [
        "",
        f"trained in full, test partition, {final['num_rows']} samples against as many rows, driven protocol:",
    ]
    for name, variant in final["variants"].items():
        means, spreads = variant["mean"], variant["spread"]
        cells = (f"{m} {means[m]:.4g} +- {spreads[m]:.2g}" for m in shown_metrics(variant))
        lines += [f"  {name:7s} ({len(variant['runs'])} training seeds): " + ", ".join(cells)]
    lines += [f"  {final['verdict']}"]
    if model := summary["model"]:
        lines += ["", f"candidate: models:/{model['name']}/{model['version']}: {model['promotion']}"]
    lines += [f"MLflow run: {summary['mlflow_run_id']}"] if summary["mlflow_run_id"] else []
    lines += [f"picture: {path}" for path in summary["pictures"].values()]
    lines += [f"summary: {folder / 'summary.json'}", f"total: {seconds:.0f} s"]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def parse_objectives(text: str | None, config: RunConfig) -> dict[str, str]:
    """`frechet_latent:min,recall:max` as metric -> mode; None: the recipe's selection metric. Raises ConfigError."""
    if text is None:
        return {config.evaluation.selection_metric: "min"}
    found: dict[str, str] = {}
    for item in text.split(","):
        metric, _, mode = item.strip().partition(":")
        if metric not in OBJECTIVES or mode not in ("min", "max"):
            raise ConfigError(
                f"--objectives {item.strip()!r}: write METRIC:min or METRIC:max with one of {', '.join(OBJECTIVES)} (noise "
                "lowers the reverse KL alone, so it is none of them)"
            )
        found[metric] = mode
    if config.evaluation.selection_metric not in found:
        raise ConfigError(
            f"--objectives {text}: {config.evaluation.selection_metric} has to be one of them: it decides which trial is "
            "trained in full (--set evaluation.selection_metric=... for another)"
        )
    return found


def refuse_another_sweep(folder: Path, definition: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming what differs, when the folder holds a sweep that was defined otherwise."""
    file = folder / "sweep.json"
    if not file.exists():
        return
    try:
        theirs = json.loads(file.read_bytes())
        # settings that came up since have their defaults
        theirs["config"] = RunConfig.from_dict(theirs["config"]).to_dict()
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); choose another --name, or delete that folder") from error
    different = [key for key in definition if definition[key] != theirs.get(key)]
    if different:
        raise ConfigError(
            f"{folder} holds another sweep: {', '.join(different)} differ; choose another --name, or delete that folder"
        )


def forget(folder: Path, stages: Collection[str]) -> None:
    """Remove what Tune and the trials know of stages that are to be done anew; with the search, all that was trained."""
    for stage in stages:
        forget_stage(folder, stage)
    if "search" in stages:
        shutil.rmtree(folder / "trials", ignore_errors=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.tune", description=__doc__)
    parser.add_argument(
        "--recipe", help="default: celeba_beam with --celeba, mixture_toy with --quick, else faces_quick"
    )
    parser.add_argument("--celeba", type=Path, help="folder or zip of the aligned photographs")
    parser.add_argument("--data", type=Path, help="folder of prepared shards, in place of --celeba")
    parser.add_argument("--quick", action="store_true", help="recipe mixture_toy and 4 trials, for CI")
    parser.add_argument("--trials", type=int, help="in all (default 12; 4 with --quick)")
    parser.add_argument("--concurrent", type=int, help="trials at a time (default: CPUs over workers, at most 8)")
    parser.add_argument("--workers", type=int, default=1, help="Ray Train workers of each trial (default 1)")
    parser.add_argument(
        "--space", action="append", default=[], metavar="KEY=DIST", help="for instance a.b=uniform(0,1)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--scheduler", choices=SCHEDULERS, default="asha", help="(default asha)")
    parser.add_argument(
        "--interval", type=int, help="pbt: updates between perturbations (default: between evaluations)"
    )
    parser.add_argument(
        "--objectives", metavar="M:min,M:max", help="several make the search multi-objective, without asha"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    parser.add_argument("--name", help="the sweep's folder under --runs (default: sweep-RECIPE)")
    parser.add_argument("--from", dest="redo_from", metavar="STAGE", help=f"redo from: {', '.join(STAGES)}")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--local", action="store_true", help="prepare data without Ray (trials need it)")
    parser.add_argument(
        "--no-tracking",
        action="store_true",
        help="trials are not logged, the winner not registered (data that have to be made are, as by the main job)",
    )
    parser.add_argument("--show", action="store_true", help="print the space and end")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """Fill in defaults. Raises ConfigError on numbers out of range."""
    args.recipe = args.recipe or ("mixture_toy" if args.quick else "celeba_beam" if args.celeba else "faces_quick")
    if args.trials is None:
        args.trials = 4 if args.quick else 12
    if args.concurrent is None:
        args.concurrent = max(1, min(8, (os.cpu_count() or 1) // max(args.workers, 1)))
    for name in ("trials", "concurrent", "workers"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)}: at least 1")
    if args.scheduler == "pbt" and args.trials < 4:
        raise ConfigError(f"--trials {args.trials}: a population needs at least 4 members")
    if args.scheduler == "pbt" and args.objectives:
        raise ConfigError("--objectives: a population has one objective, the recipe's evaluation.selection_metric")
    if args.interval is not None and (args.scheduler != "pbt" or args.interval < 1):
        raise ConfigError("--interval is at least 1, and for --scheduler pbt only")
    if args.redo_from is not None and args.redo_from not in STAGES:
        raise ConfigError(f"--from {args.redo_from!r}: the stages are {', '.join(STAGES)}")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 done, 130 interrupted (the same command goes on), 2 a user's error."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    begin, parent, status = time.perf_counter(), None, "FAILED"
    args.command = as_command("jobs.tune", argv)
    prepare_environment(args.cache.resolve())  # before anything imports ray
    from jobs.search import Interrupted

    try:
        check(args)
        wait_seconds()
        config = recipe(args.recipe, parse_settings(args.settings))
        space = space_of(config, args.space)
        objectives = parse_objectives(args.objectives, config)
        if args.scheduler == "pbt":
            changed_in_flight(config, space)  # refuses a space in which there is nothing to change
        if args.show:
            print("\n".join(f"{key} = {as_text(distribution)}" for key, distribution in space.items()))
            return 0
        folder, cache = run_folder(args.runs, args.name or f"sweep-{args.recipe}"), args.cache.resolve()
        data_dir = prepare_data(args, config, cache)
        sweep = Sweep(args, config, space, objectives, folder, cache, data_dir, read_manifest(data_dir))
        with locked(folder):
            refuse_another_sweep(folder, sweep.definition())
            stages = Stages(folder, STAGES, args.redo_from)
            forget(folder, stages.redo)
            write_json(folder / "sweep.json", sweep.definition())
            if not args.no_tracking:
                parent = tracker_at(folder / "mlflow_run_id", folder.name, sweep.definition(), tags_of(sweep))
            with interruptible():
                summary = run_sweep(sweep, stages, parent)
        status = "FINISHED"
    except (KeyboardInterrupt, Interrupted, Stopped) as stop:
        status = "KILLED"
        print(f"{str(stop) or 'interrupted'}; the same command goes on from there", file=sys.stderr)
        return 130
    except (ValueError, TrainingFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        # after an interrupt the same command sends the rest
        if parent is not None and parent.finish(status) and status != "KILLED":
            deliver_left(folder, args.command, "progress/*/*.run.spool")
    print(last_word(summary, folder, time.perf_counter() - begin))
    return 0


if __name__ == "__main__":
    from jobs.tune import main as imported_main

    sys.exit(imported_main())

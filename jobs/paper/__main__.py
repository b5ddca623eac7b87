"""`python -m jobs.paper` runs the paper's experiments and says, claim by claim, what holds; `make paper`.

Each experiment writes docs/results/<name>.json when it is done, and a later run skips it; trainings go on from their
checkpoints. The page is runs/paper/index.html, and its text docs/paper.md. With --quick everything is of toy size, for CI:
all code paths, figures that mean nothing, and nothing under docs/ is touched.
"""

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.mnist import IDXError, write_digits, write_mnist
from jobs import celeba_train
from jobs.paper import digit_experiments, divergences, faces, gans, geometry, mixing, mixtures, precision, research
from jobs.paper.bars import compare
from jobs.paper.claims import judge
from jobs.paper.experiments import Experiment, Plan, read_record, run_experiment
from jobs.paper.page import write_markdown, write_page
from jobs.paper.units import UnitFailed, start_pool
from jobs.ray_session import interruptible
from pipeline.data.manifest import ShardError
from pipeline.metrics.inception import find_inception
from pipeline.provenance import project_root
from pipeline.runs.lock import locked

EXPERIMENTS: tuple[Experiment, ...] = (
    divergences.EXPERIMENT,
    mixing.EXPERIMENT,
    *mixtures.EXPERIMENTS,
    gans.EXPERIMENT,
    geometry.EXPERIMENT,
    research.EXPERIMENT,
    *digit_experiments.EXPERIMENTS,
    precision.EXPERIMENT,
    *faces.EXPERIMENTS,
)
"""Cheapest first."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status: 0 done, 1 an experiment failed, 2 a user's error, 130 interrupted."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    names = [experiment.name for experiment in EXPERIMENTS]
    if args.list:
        for experiment in EXPERIMENTS:
            print(f"{experiment.name:20s} {experiment.figure:22s} {experiment.title}")
        return 0
    unknown = [name for name in (*args.only, *args.redo) if name not in names]
    if unknown:
        return _fail(f"no experiment {unknown[0]!r}; there are {', '.join(names)}")
    if args.processes < 1:
        return _fail(f"--processes {args.processes}: at least 1")
    runs = (args.runs / ("paper-quick" if args.quick else "paper")).resolve()
    results = runs / "results" if args.quick else project_root() / "docs" / "results"
    results.mkdir(parents=True, exist_ok=True)
    try:
        plan = _plan(args)
    except (IDXError, ShardError, ValueError, OSError) as error:
        return _fail(str(error))
    status = 0
    with locked(runs), interruptible(), start_pool(args.processes) as pool:
        for experiment in EXPERIMENTS:
            if args.only and experiment.name not in args.only:
                continue
            record = results / f"{experiment.name}.json"
            if experiment.name in args.redo and experiment.waves(plan):
                record.unlink(missing_ok=True)
                for unit in (unit for wave in experiment.waves(plan) for unit in wave):
                    shutil.rmtree(runs / (experiment.home or experiment.name) / unit.name, ignore_errors=True)
            try:
                ran = run_experiment(experiment, plan, runs, results, args.cache.resolve(), pool)
            except KeyboardInterrupt:
                print("stopped; the same command goes on from here", file=sys.stderr)
                return 130
            except UnitFailed as error:
                print(f"{experiment.name}: {error}", file=sys.stderr)
                status = 1
                continue
            state = "done" if ran else "there already" if record.exists() else f"not run: {experiment.missing}"
            print(f"{experiment.name}: {state}")
    records = {name: read_record(results / f"{name}.json") for name in names}
    records = {name: record for name, record in records.items() if record}
    verdicts, bars = judge(records), compare(records)
    homes = {e.name: (results / e.name, runs / (e.home or e.name)) for e in EXPERIMENTS}
    page = write_page(runs / "index.html", records, verdicts, bars, homes, args.quick)
    markdown = runs / "paper.md" if args.quick else project_root() / "docs" / "paper.md"
    text = write_markdown(markdown, records, verdicts, bars)
    for verdict in verdicts:
        print(f"{verdict.number:>3}  {verdict.verdict:28s} {verdict.claim}")
    print(f"bars: {sum(bar.met for bar in bars)} of {len(bars)} reached")
    print(f"page: {page}\ntext: {text}")
    return status


def _plan(args: argparse.Namespace) -> Plan:
    """Prepare the digits, MNIST where it is, and find the faces. In the quick form 8x8 digits stand in for MNIST; in the
    full one what needs MNIST is not run without it.
    """
    mnist = args.mnist or (Path(os.environ["MNIST"]) if os.environ.get("MNIST") else None)
    cache = args.cache.resolve() / "paper"
    small = (cache / "digits", cache / "digits-binary")
    for folder, binary in zip(small, (False, True)):
        write_digits(folder, binary)
    folders: tuple[Path | None, Path | None] = small if args.quick else (None, None)
    if mnist is not None and not args.quick:
        continuous, binarized = cache / "mnist", cache / "mnist-binary"
        write_mnist(mnist, continuous, False)
        write_mnist(mnist, binarized, True)
        folders = (continuous, binarized)
    find_inception()  # a wrong path is an error now, not after hours
    run = args.faces or args.runs / ("paper-faces" if args.quick else "celeba-celeba_beam")
    if args.quick and args.faces is None and (not args.only or "faces" in args.only):
        places = ["--runs", str(args.runs), "--cache", str(args.cache), "--name", run.name]
        if celeba_train.main(["--quick", "--local", *places]):
            raise ValueError("the quick faces could not be made; the error is above")
    return Plan(args.quick, *folders, small, faces.find_faces(run, args.cache))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.paper", description="the paper, experiment by experiment")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these experiments (default: all)")
    parser.add_argument(
        "--redo", nargs="*", default=[], metavar="NAME", help="forget results and trainings, and run again"
    )
    parser.add_argument("--quick", action="store_true", help="toy sizes: all code paths in minutes")
    parser.add_argument("--list", action="store_true", help="name the experiments and stop")
    parser.add_argument(
        "--mnist", type=Path, help="folder of MNIST's four IDX files (default: MNIST in the environment)"
    )
    parser.add_argument("--faces", type=Path, help="run folder of a finished `make celeba-train CELEBA=...`")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="units at a time, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where trainings lie (default: runs)")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="where prepared data lie (default: cache)")
    return parser


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

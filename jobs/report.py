"""One self-contained HTML page about a training, a run of the main job or a sweep, or about several runs compared.

Reads what the runs wrote and draws what they did not; trains nothing and changes nothing of them. What is missing is said
in its place, and the rest of the page is made. The page needs no network and holds no path of this machine.
"""

import argparse
import dataclasses
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jobs.report_data import Material
from jobs.report_page import Block, Heading, Note, Section, photographs, render
from jobs.report_pictures import (
    curves,
    final_density,
    nearest_neighbors,
    overlaid_curves,
    reconstructions,
    sample_grids,
)
from jobs.report_runs import STAND_IN, Missing, ReportError, Run, Training, find_run
from jobs.report_sweep import final_comparison, sweep_facts, sweep_pictures, trials_table, unfinished_facts
from jobs.report_tables import environment, facts, heldout_scores, problems, settings, test_scores, times
from pipeline.data.manifest import Manifest, ShardError
from pipeline.files import replacing

PAGE_NAME = "report.html"
MAX_OVERLAID = 12
"""Trials of an unfinished sweep in one plot."""
_log = logging.getLogger(__name__)


class Reporter:
    """What the sections of one page share."""

    def __init__(self, cache: Path, tracking: str | None, pictures: Path):
        self.cache, self.tracking, self.pictures = cache, tracking, pictures
        self._materials: dict[Path, Material] = {}

    def material(self, training: Training) -> Material:
        """Data and models of a training; read once."""
        return self._materials.setdefault(training.folder, Material(training, self.cache, self.tracking))

    def manifest(self, training: Training | None) -> Manifest | None:
        """Of the training's data, None where they are not here."""
        try:
            return None if training is None else self.material(training).manifest
        except (Missing, ShardError):
            return None

    def switch(self, training: Training) -> int | None:
        """The update at which the adversary came in."""
        return training.switch(self.manifest(training))

    # --- parts of several sections --------------------------------------------------------------------------------------

    def samples_of(self, training: Training) -> list[Block]:
        """The sample grids of a training on their slider; of points also a density."""
        if training.kind == "autoencoder":
            raise Missing(f"{training.name} is an autoencoder, which draws no samples")
        material = self.material(training)
        blocks = _part(lambda: sample_grids(material, self.pictures))
        manifest = self.manifest(training)
        if training.is_beam and manifest is not None and manifest.kind == "points":
            blocks += _part(lambda: final_density(material, self.pictures))
        return blocks

    def neighbors_of(self, training: Training, ratio: float | None) -> list[Block]:
        """Nearest training rows of the final samples."""
        if training.kind == "autoencoder":
            raise Missing(f"{training.name} is an autoencoder: it has no samples to look for copies among")
        if training.kind == "GAN":
            raise Missing(f"{training.name} is a GAN: copies are looked for among a BEAM's samples only")
        return nearest_neighbors(self.material(training), ratio, self.pictures)

    def named(self, trainings: Sequence[Training], make: Callable[[Training], list[Block]]) -> list[Block]:
        """The part of each training, below its name where there are several."""
        blocks: list[Block] = []
        for training in trainings:
            blocks += [Heading(training.name)] if len(trainings) > 1 else []
            blocks += _part(lambda training=training: make(training))  # type: ignore[misc]
        return blocks or [Note("No training is here to look at.", missing=True)]

    # --- pages ----------------------------------------------------------------------------------------------------------

    def one(self, run: Run) -> list[Section]:
        """The page of a training or of a run of the main job."""
        training = run.training
        manifest = self.manifest(training)
        parts = list(run.parts.values())
        beams = [part for part in parts if part.is_beam]
        others = [part for part in parts if not part.is_beam]
        score = test_scores if "comparison" in run.summary else None
        summary = [
            facts(run, manifest),
            *problems(run),
            *(_part(lambda: score(run)) if score else []),
            *_part(lambda: heldout_scores(beams or others, manifest)),
        ]
        drawn: list[Block] = self.named(parts, lambda part: curves(part, self.switch(part), run.dataset, self.pictures))
        if len(beams) > 1:
            switches = [self.switch(part) for part in beams]
            drawn = [
                Heading("With and without the adversary"),
                *_part(lambda: overlaid_curves(beams, switches, run.dataset, self.pictures)),
                *drawn,
            ]
        ratio = (run.summary.get("metrics") or {}).get("memorization_ratio")
        return [
            Section("summary", "Summary", summary),
            Section("settings", "Settings that differ", [
                *_part(lambda: settings(beams or others, with_recipe=True)),
                *([Heading("Autoencoder"), *_part(lambda: settings(others, True))] if beams and others else []),
            ]),
            Section("curves", "Curves", drawn),
            Section("samples", "Samples by epoch", [*self.named(beams or others, self.samples_of), *self._comparison(run)]),
            Section("neighbors", "Nearest training neighbors", self.named(
                [training] if training else [], lambda part: self.neighbors_of(part, ratio)
            )),
            Section("reconstructions", "Reconstructions", self.named(
                [training] if training else [], lambda part: reconstructions(self.material(part), self.pictures)
            )),
            Section("times", "Time per stage", _part(lambda: times([run]))),
            Section("environment", "Environment", _part(lambda: environment(parts, self.tracking))),
        ]  # fmt: skip

    def _comparison(self, run: Run) -> list[Block]:
        """The main job's own picture of its models beside the baselines."""
        path = run.folder / "pictures" / "comparison.png"
        if run.kind != "main" or not path.is_file():
            return []
        alt = f"Sample grids of the models and baselines side by side; data: {run.dataset}"
        return [Heading("Beside the baselines"), *_part(lambda: [photographs(path, alt)])]

    def sweep(self, run: Run) -> list[Section]:
        """The page of a sweep; what is said of a training is said of its finalists."""
        if not run.summary:
            return self.unfinished_sweep(run)
        parts = sorted(run.parts.items(), key=lambda part: part[0] != "winner")
        finalists = [part for _, part in parts]
        switches = [self.switch(part) for part in finalists]
        none = "no run of the final comparison is here"

        def several(make: Callable[[], list[Block]]) -> list[Block]:
            return _part(make) if finalists else [Note(f"Not here: {none}.", missing=True)]

        return [
            Section("summary", "Summary", [*_part(lambda: sweep_facts(run)), *problems(run)]),
            Section("final", "Winner and recipe", _part(lambda: final_comparison(run))),
            Section("pictures", "Pictures of the sweep", _part(lambda: sweep_pictures(run))),
            Section("trials", "Trials", _part(lambda: trials_table(run))),
            Section("settings", "Settings that differ", several(lambda: settings(finalists, with_recipe=False))),
            Section("curves", "Curves", several(lambda: overlaid_curves(finalists, switches, run.dataset, self.pictures))),
            Section("samples", "Samples by epoch", several(lambda: self.named(finalists, self.samples_of))),
            Section("neighbors", "Nearest training neighbors", several(
                lambda: self.named(finalists[:1], lambda part: self.neighbors_of(part, None))
            )),
            Section("reconstructions", "Reconstructions", several(
                lambda: reconstructions(self.material(finalists[0]), self.pictures)
            )),
            Section("times", "Time per stage", _part(lambda: times([run]))),
            Section("environment", "Environment", several(lambda: environment(finalists, self.tracking))),
        ]  # fmt: skip

    def unfinished_sweep(self, run: Run) -> list[Section]:
        """The page of a sweep that has no summary yet: its trials compared."""
        trials = list(run.parts.values())
        manifest = self.manifest(trials[0] if trials else None)
        drawn = trials[:MAX_OVERLAID]
        switches = [self.switch(trial) for trial in drawn]
        cut = [Note(f"The first {len(drawn)} of {len(trials)} trials are drawn.")] if len(drawn) < len(trials) else []
        curves_of = _part(lambda: overlaid_curves(drawn, switches, run.dataset, self.pictures))
        return [
            Section("summary", "Summary", [*unfinished_facts(run), *problems(run)]),
            Section("settings", "Settings that differ", _part(lambda: settings(trials, with_recipe=False))),
            Section("scores", "Scores side by side", _part(lambda: heldout_scores(trials, manifest))),
            Section("curves", "Curves", [*cut, *curves_of]),
            Section("environment", "Environment", _part(lambda: environment(trials, self.tracking))),
        ]

    def several(self, runs: Sequence[Run]) -> list[Section]:
        """The page that compares runs, each by the training that it is about."""
        pairs = [(run, _renamed(run)) for run in runs if run.training is not None]
        trainings = [training for _, training in pairs]
        manifests = [self.manifest(training) for training in trainings]
        about: list[Block] = []
        for run, manifest in zip((run for run, _ in pairs), manifests):
            about += [Heading(run.name), facts(run, manifest), *problems(run)]
        kinds, data = {t.kind == "autoencoder" for t in trainings}, {t.data_hash for t in trainings}
        if len(data) > 1:
            about.append(
                Note("These runs were not trained on the same data: their scores do not compare.", missing=True)
            )
        if len(kinds) > 1:
            about.append(Note("Some are autoencoders, which have no score in common with the others.", missing=True))
        same = manifests[0] if len(data) == 1 else None
        datasets = {run.dataset for run, _ in pairs}
        dataset = datasets.pop() if len(datasets) == 1 else None
        tested = [run for run in runs if "comparison" in run.summary]
        scores = _part(lambda: heldout_scores(trainings, same))
        for run in tested:
            scores += [Heading(f"Test scores of {run.name}"), *_part(lambda run=run: test_scores(run))]  # type: ignore[misc]
        ratios = {
            training.folder: (run.summary.get("metrics") or {}).get("memorization_ratio") for run, training in pairs
        }
        shown = list({t.data_hash: t for t in trainings}.values())  # one autoencoder is looked at once
        switches = [self.switch(t) for t in trainings]
        return [
            Section("summary", "Summary", about),
            Section("settings", "Settings that differ", _part(lambda: settings(trainings, with_recipe=False))),
            Section("scores", "Scores side by side", scores),
            Section("curves", "Curves", _part(lambda: overlaid_curves(trainings, switches, dataset, self.pictures))),
            Section("samples", "Samples by epoch", self.named(trainings, self.samples_of)),
            Section("neighbors", "Nearest training neighbors", self.named(
                trainings, lambda part: self.neighbors_of(part, ratios[part.folder])
            )),
            Section("reconstructions", "Reconstructions", self.named(
                shown, lambda part: reconstructions(self.material(part), self.pictures)
            )),
            Section("times", "Time per stage", _part(lambda: times(runs))),
            Section("environment", "Environment", _part(lambda: environment(trainings, self.tracking))),
        ]  # fmt: skip


def _renamed(run: Run) -> Training:
    """The training that a run is about, by the run's name."""
    training = run.training
    assert training is not None
    return dataclasses.replace(training, name=run.name)


def _part(make: Callable[[], list[Block]]) -> list[Block]:
    """The blocks, or one that says why there are none: a run that lacks something still gets the rest of its page."""
    try:
        return make()
    except (Missing, ShardError) as error:
        return [Note(f"Not here: {error}.", missing=True)]
    except Exception as error:
        _log.debug("a part of the page failed", exc_info=True)
        lines = str(error).strip().splitlines() or [""]
        return [Note(f"This part could not be made ({type(error).__name__}: {lines[0][:300]}).", missing=True)]


def make_report(
    names: Sequence[str], runs: Path, cache: Path, out: Path | None = None, tracking: str | None = None
) -> Path:
    """Write the page about the runs of these names and return its path.

    Args:
        names: names below `runs`, or folders; several are compared, and a sweep stands alone.
        runs: folder of the runs.
        cache: where data and fetched models lie.
        out: the page; None: report.html in the run's folder, for several in `runs`.
        tracking: MLflow's tracking URI; None: as `pipeline.tracking.tracker.tracking_uri`.

    Raises:
        ReportError: a name without a run, or a page that cannot be written there.
    """
    found = list({run.folder: run for run in (find_run(name, runs) for name in names)}.values())
    if not found:
        raise ReportError("name at least one run")
    sweeps = [run.name for run in found if run.kind == "sweep"]
    if sweeps and len(found) > 1:
        raise ReportError(f"{sweeps[0]!r} is a sweep: report on it alone, or compare its trials by their folders")
    single = found[0] if len(found) == 1 else None
    out = out or (single.folder if single else runs) / PAGE_NAME
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise ReportError(f"--out is {str(out)!r}: give a file name that ends in .html")
    with tempfile.TemporaryDirectory(prefix="report-") as pictures:
        reporter = Reporter(cache.absolute(), tracking, Path(pictures))
        if single is None:
            sections, title = reporter.several(found), f"Report: {len(found)} runs compared"
        else:
            sections = reporter.sweep(single) if single.kind == "sweep" else reporter.one(single)
            title = f"Report: {single.name}"
    datasets = {run.dataset or "" for run in found}
    warning = "The data are drawn stand-in faces, NOT CelebA." if STAND_IN in datasets else ""
    folders = [runs, runs.resolve(), cache.resolve(), Path.cwd(), Path.home(), *(run.folder.parent for run in found)]
    page = render(title, sections, warning, folders)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as file:
            file.write(page.encode())
    except OSError as error:
        raise ReportError(f"--out is {str(out)!r}: it cannot be written ({error.strerror})") from error
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 written, 2 a user's error."""
    parser = argparse.ArgumentParser(prog="python -m jobs.report", description=__doc__)
    parser.add_argument(
        "run", nargs="*", metavar="RUN", help="a name below --runs, or a run's folder; several: compared"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="default: report.html in the run's folder")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument(
        "--tracking", metavar="URI", help="MLflow's tracking URI (default: MLFLOW_TRACKING_URI or mlflow.db)"
    )
    arguments: Any = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        if not arguments.run:
            raise ReportError("name a run: python -m jobs.report RUN [RUN ...], or make report RUN=...")
        path = make_report(arguments.run, arguments.runs, arguments.cache, arguments.out, arguments.tracking)
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

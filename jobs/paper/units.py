"""Units of work: each trains or measures one thing in a folder of its own, leaves one result.json, and is done once.

A unit is a function of the module level and its settings (plain values). Its result is found again by a hash of the two,
so a run that was killed repeats only the units that had not ended, and a training among them goes on from its checkpoint.
"""

import json
import logging
import multiprocessing
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from tqdm import tqdm

from jobs.recipes import recipe
from pipeline.config import chosen_settings
from pipeline.data.manifest import read_manifest
from pipeline.files import canonical_hash, write_json

SHARDS = ("data", "latents", "pixels")
"""Settings that name a folder of shards."""

_log = logging.getLogger(__name__)


class Unit(NamedTuple):
    """`function(folder, cache, **settings)` returns the figures, a JSON-able dict; larger arrays go to files in `folder`."""

    name: str
    function: Callable[..., dict[str, Any]]
    settings: dict[str, Any]
    parents: tuple[str, ...] = ()
    """Fingerprints of the units whose folders it reads."""

    @property
    def fingerprint(self) -> str:
        """What the result depends on: the function, its settings, of a training all that its recipe chooses, the data
        themselves and not where they lie, and the units before it.
        """
        name = self.settings.get("recipe_name")
        recipes = [] if name is None else [chosen_settings(recipe(name).override(self.settings["settings"]))]
        settings = {key: read_manifest(value).hash if key in SHARDS else value for key, value in self.settings.items()}
        return canonical_hash(
            [f"{self.function.__module__}.{self.function.__qualname__}", settings, *recipes, *self.parents]
        )


class Stopped(Exception):
    """A unit that was asked to stop before its end; the same command goes on with it."""


class UnitFailed(RuntimeError):
    """A unit that ended with an error: says which, and the error."""


def read_result(folder: Path, unit: Unit) -> dict[str, Any] | None:
    """What `unit` left in <folder>/<its name>/result.json; None when it is not done with these settings."""
    try:
        found = json.loads((folder / unit.name / "result.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return found if found.get("fingerprint") == unit.fingerprint else None


class Pool(NamedTuple):
    """Processes in which units run."""

    executor: ProcessPoolExecutor
    stopping: Event
    """Once set, no further unit begins: the executor has handed some out already."""


@contextmanager
def start_pool(processes: int) -> Iterator[Pool]:
    """Processes of one thread each, until the block ends."""
    context = multiprocessing.get_context("spawn")
    stopping = context.Event()
    with ProcessPoolExecutor(processes, context, initializer=_prepare_process, initargs=(stopping,)) as executor:
        yield Pool(executor, stopping)


def run_units(units: Sequence[Unit], folder: Path, cache: Path, pool: Pool, title: str) -> None:
    """Run the units that are not done.

    Raises:
        KeyboardInterrupt: it was interrupted; trainings have written a checkpoint.
        UnitFailed: after the other units have ended, so that a failure costs only itself.
    """
    todo = [unit for unit in units if read_result(folder, unit) is None]
    if not todo:
        return
    failures: list[str] = []
    with tqdm(total=len(units), initial=len(units) - len(todo), desc=title, unit="unit") as bar:
        try:
            running: dict[Future[float], Unit] = {
                pool.executor.submit(_run, unit, folder, cache): unit for unit in todo
            }
            for future in as_completed(running):
                unit = running[future]
                try:
                    seconds = future.result()
                    _log.info("%s/%s: %.0f s", title, unit.name, seconds)
                except Stopped:
                    raise KeyboardInterrupt from None
                except Exception as error:
                    failures.append(f"{unit.name}: {type(error).__name__}: {error}")
                    _log.error("%s/%s failed: %s", title, unit.name, error)
                bar.update()
        except KeyboardInterrupt:
            pool.stopping.set()
            pool.executor.shutdown(wait=False, cancel_futures=True)
            for child in psutil.Process().children(recursive=True):
                # A training writes a checkpoint and ends. Not SIGINT: a terminal's Ctrl-C has sent that one to all, a second
                # would end the training before it has written, and in a shell's background it is ignored.
                with suppress(psutil.NoSuchProcess):
                    child.send_signal(signal.SIGTERM)
            raise
    if failures:
        raise UnitFailed(f"{len(failures)} of {len(todo)} units of {title} failed; {failures[0]}")


_stopping: Event | None = None  # of this process, when it belongs to a pool


def stop_wanted() -> bool:
    """True in a process of a pool that is to end: a signal may have come before there was a handler for it."""
    return _stopping is not None and _stopping.is_set()


def _prepare_process(stopping: Event) -> None:
    global _stopping
    _stopping = stopping
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is no training ends at once
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")


def _run(unit: Unit, folder: Path, cache: Path) -> float:
    """Run one unit and write its result; returns its seconds, those of earlier attempts included."""
    if stop_wanted():
        raise Stopped
    own = folder / unit.name
    before = _seconds_before(own, unit)
    if before is None:  # new, or what is there was made with other settings
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        before = 0.0
        _note_seconds(own, unit, before)
    start = time.perf_counter()
    try:
        figures = unit.function(own, cache, **unit.settings)
    finally:
        seconds = before + time.perf_counter() - start
        _note_seconds(own, unit, seconds)
    write_json(
        own / "result.json",
        {"fingerprint": unit.fingerprint, "settings": unit.settings, "seconds": seconds, "figures": figures},
    )
    return seconds


def _note_seconds(folder: Path, unit: Unit, seconds: float) -> None:
    write_json(folder / "seconds.json", {"fingerprint": unit.fingerprint, "seconds": seconds})


def _seconds_before(folder: Path, unit: Unit) -> float | None:
    """Seconds of earlier attempts at this unit; None when what is in `folder` belongs to no attempt at it."""
    try:
        noted = json.loads((folder / "seconds.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return float(noted["seconds"]) if noted["fingerprint"] == unit.fingerprint else None

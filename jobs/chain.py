"""The face pipeline up to a trained BEAM: where things lie, and each stage with what makes its result out of date."""

import argparse
import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from data_prep.celeba import CelebASource, PixelSettings, open_celeba, pixels_up_to_date
from data_prep.encode import encoded_up_to_date
from data_prep.synthetic_faces import draw_dataset
from jobs.prepare import encoding_by, prepare_latents, prepare_pixels
from jobs.recipes import TOYS
from jobs.registry_wait import when_there
from jobs.storage import fetch_shards_to, store_output
from jobs.train_job import run_training
from pipeline.config import Phase, RunConfig, flatten
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.device.precision import choose_precision
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.rbm import RBM
from pipeline.packages.autoencoder import PackagedAutoencoder
from pipeline.packages.models import load_package
from pipeline.registry.card import RECONSTRUCTION, measured, model_card
from pipeline.registry.fetch import fetch_model
from pipeline.registry.promotion import promote_if_better, set_candidate
from pipeline.registry.register import register_autoencoder
from pipeline.registry.versions import ModelVersionInfo, RegistryError, find_model, model_name
from pipeline.runs.job import Outcome, TrainJob, check_folder, total_updates
from pipeline.runs.lock import locked
from pipeline.runs.stages import Stages
from pipeline.runs.tracked import add_history, start_tracker
from pipeline.runs.trained import read_beam
from pipeline.samplers.gibbs import ChainState
from pipeline.tracking.server import is_away
from pipeline.training.checkpoint import load_latest, save_checkpoint
from pipeline.training.objective import part_of

FACES = {"faces_quick": 4000, "faces_toy": 500}
"""Number of synthetic faces that a recipe draws when no CelebA is given; 4 000 for any other."""
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Stopped(Exception):
    """The run was asked to stop; the same command goes on."""


@dataclasses.dataclass
class Chain:
    """One run of the main job: where things lie, what was asked for, and its stages."""

    args: argparse.Namespace
    config: RunConfig
    autoencoder_config: RunConfig
    folder: Path
    cache: Path
    stages: Stages

    def model_name(self, dataset: str, kind: str) -> str:
        """The registry's name; models of toy size have names of their own, so that none becomes a champion of real ones."""
        return model_name(f"{dataset}-toy" if self.args.recipe in TOYS else dataset, kind)

    # --- data ---------------------------------------------------------------------------------------------------------

    def source(self) -> CelebASource:
        """The photographs given, or synthetic faces, drawn if they are not there yet."""
        if self.args.celeba is not None:
            return open_celeba(self.args.celeba)
        count = FACES.get(self.args.recipe, 4000)
        folder = self.cache / f"synthetic-faces-{count}"
        with locked(self.cache, wait=True):
            outputs = self.stages.run(
                "data",
                {"count": count, "seed": 0},
                lambda: {"folder": str(draw_dataset(folder, count, 0, processes=self.args.workers, progress=True))},
                lambda out: (Path(out["folder"]) / "synthetic_faces.json").exists(),
            )
        return open_celeba(outputs["folder"])

    @contextmanager
    def shared_shards(self, folder: Path) -> Iterator[None]:
        """With STORAGE: what the block would make in `folder` is fetched if it was stored before, and else stored after it."""
        storage = self.args.storage
        url = f"{storage.rstrip('/')}/shards/{folder.parent.name}/{folder.name}" if storage else None
        if url is not None and fetch_shards_to(url, folder):
            _log.info("%s: fetched from %s", folder, url)
        yield
        if url is not None:
            store_output(url, folder)

    def pixels(self, source: CelebASource) -> tuple[Path, Manifest]:
        """Pixel shards of the source."""
        settings = PixelSettings(crop=self.args.crop)
        folder = self.cache / f"{source.dataset}-{source.content_hash[:12]}" / f"pixels-{settings.crop}"
        verify = "pixels" in self.stages.redo
        with locked(folder.parent, wait=True), self.shared_shards(folder):
            self.stages.run(
                "pixels",
                {"source": source.content_hash, "settings": settings.describe()},
                lambda: {"hash": prepare_pixels(source, folder, settings, self.cache, self.args.local, verify).hash},
                lambda _: pixels_up_to_date(source, folder, settings) is not None,
            )
        return folder, read_manifest(folder)

    # --- training -----------------------------------------------------------------------------------------------------

    def train(self, config: RunConfig, part: str, data_dir: Path, manifest: Manifest) -> tuple[Outcome, str]:
        """Train `config` in <run>/<part>; returns how it went and the id of its MLflow run (empty: not made yet)."""
        folder = self.folder / part
        check_folder(folder, config, manifest.hash)
        job = TrainJob(config.to_dict(), str(data_dir), manifest.hash, str(folder))
        first = part == "autoencoder"  # a wrong address is said before hours of training; later the server may be away
        tracker = start_tracker(folder, config, manifest.dataset, manifest.hash, self.folder.name, must_answer=first)
        status = "FAILED"
        try:
            outcome = run_training(
                job, self.args.workers, self.args.local, tracker, self.cache, part, self.args.min_workers
            )
            status = "FINISHED" if outcome.finished else "KILLED"
        finally:
            add_history(tracker, folder)
            tracker.finish(status)
        if not outcome.finished:
            raise Stopped(f"stopped after {outcome.steps} of {outcome.total_steps} updates of the {part}")
        return outcome, tracker.run_id

    def autoencoder(self, pixel_dir: Path, manifest: Manifest) -> dict[str, Any]:
        """Train and register the autoencoder; the champion of its name is what encodes."""
        name = self.model_name(manifest.dataset, "autoencoder")

        def make() -> dict[str, Any]:
            outcome, run_id = self.train(self.autoencoder_config, "autoencoder", pixel_dir, manifest)
            found = load_latest(self.folder / "autoencoder" / "checkpoints")
            assert found is not None
            model = Autoencoder(self.autoencoder_config.model)  # type: ignore[arg-type]
            model.load_state_dict(part_of(found.tensors, "model."))
            last = {k: v for k, v in outcome.history[-1].items() if k in ("reconstruction_mse", "psnr")}
            num_rows = min(self.autoencoder_config.evaluation.num_rows, manifest.splits["valid"].rows)
            precision = choose_precision(self.autoencoder_config.model.precision, "cpu")  # type: ignore[union-attr]
            packaged = PackagedAutoencoder(model, precision, manifest.dataset, last)
            card = model_card(
                name=name,
                kind="autoencoder",
                dataset=manifest.dataset,
                data_hash=manifest.hash,
                recipe=self.autoencoder_config.name,
                metrics=measured(last, num_rows=num_rows, protocol=RECONSTRUCTION),
                score_name="reconstruction_mse",
                settings=flatten(self.autoencoder_config.to_dict()),
                run_id=run_id,
            )

            def register() -> ModelVersionInfo:
                version = register_autoencoder(
                    packaged,
                    name=name,
                    run_id=run_id,
                    data_hash=manifest.hash,
                    recipe=self.autoencoder_config.name,
                    score=last["reconstruction_mse"],
                    num_rows=num_rows,
                    card=card,
                )
                set_candidate(version.name, version.version)
                promotion = promote_if_better(version.name, version.version)
                _log.info("%s version %s: %s", version.name, version.version, promotion.reason)
                return version

            version = self.when_there(register, "registering the autoencoder")
            content = version.tags["content_hash"]
            return {
                "version": version.version,
                "content": content,
                "run_id": run_id,
                "seconds": outcome.seconds,
                **last,
            }

        inputs = {"data": manifest.hash, "config": self.autoencoder_config.to_dict()}
        outputs = self.stages.run("autoencoder", inputs, make, lambda out: self.is_registered(name, out))
        return {**outputs, "name": name}

    def latents(self, pixel_dir: Path, autoencoder: dict[str, Any]) -> tuple[Path, Manifest, PackagedAutoencoder]:
        """Encode with the version that this run encoded with before; else with the champion, if it saw the same data;
        else with this run's own version.

        A champion of other photographs (or of fewer) would silently set the quality of everything after it, and one that
        came up after this run began would change the run's data under it.
        """
        name, pixels = autoencoder["name"], read_manifest(pixel_dir).hash
        before = self.stages.outputs("latents")
        champion = self.when_there(lambda: find_model(f"models:/{name}@champion"), "looking up the autoencoder")
        if before is not None and before.get("pixels") == pixels and self.is_registered(name, before):
            version = before["version"]
        elif champion.tags["data_hash"] == pixels:
            version = champion.version
        else:
            version = autoencoder["version"]
            _log.info("the champion, version %s, saw other data: encoding with version %s", champion.version, version)
        ref = f"models:/{name}/{version}"
        fetched = self.when_there(lambda: fetch_model(ref, self.cache / "models"), "fetching the autoencoder")
        encoding = encoding_by(fetched)
        version_name = encoding.settings["encoder_version"]
        folder = pixel_dir.parent / f"latents-{version_name.replace('/', '-')}"
        verify = "latents" in self.stages.redo

        def make() -> dict[str, Any]:
            made = prepare_latents(pixel_dir, folder, fetched, self.cache, self.args.local, verify)
            return {"hash": made.hash, "pixels": pixels, "version": version, "content": fetched.content_hash}

        with locked(folder.parent, wait=True), self.shared_shards(folder):
            self.stages.run(
                "latents",
                {"pixels": pixels, "encoder": version_name},
                make,
                lambda _: encoded_up_to_date(pixel_dir, folder, encoding) is not None,
            )
        packaged = load_package(fetched.folder)
        assert isinstance(packaged, PackagedAutoencoder)
        return folder, read_manifest(folder), packaged

    def beam(self, latent_dir: Path, manifest: Manifest) -> dict[str, Any]:
        """Train the BEAM."""

        def make() -> dict[str, Any]:
            outcome, run_id = self.train(self.config, "beam", latent_dir, manifest)
            rates = [
                r["updates_per_second"] for r in outcome.history if "updates_per_second" in r and "kl_forward" not in r
            ]
            return {
                "run_id": run_id,
                "seconds": outcome.seconds,
                "updates": outcome.total_steps,
                "updates_per_second": sorted(rates)[len(rates) // 2] if rates else None,
            }

        inputs = {"data": manifest.hash, "config": self.config.to_dict()}
        return self.stages.run("beam", inputs, make, lambda out: self.is_whole("beam", out["updates"]))

    def control(self, latent_dir: Path, manifest: Manifest) -> dict[str, Any] | None:
        """From the same state at the switch, go on for as long with the likelihood alone at the same learning rate."""
        adversarial = self.config.schedules.adversarial
        switch, total = total_updates(self.config, manifest.splits["train"].rows)
        if switch in (0, total) or adversarial.gamma == 1:
            return None
        phase: Phase = dataclasses.replace(adversarial, gamma=1.0)
        schedules = dataclasses.replace(self.config.schedules, adversarial=phase)
        config = dataclasses.replace(self.config, name=f"{self.config.name}_likelihood_only", schedules=schedules)

        def make() -> dict[str, Any]:
            folder = self.folder / "control"
            if load_latest(folder / "checkpoints") is None:
                at_switch = load_latest(self.folder / "beam" / "switch")
                assert at_switch is not None, "the loop keeps the state at the switch"
                meta = {**at_switch.meta, "config": config.to_dict()}
                save_checkpoint(folder / "checkpoints", at_switch.step, at_switch.tensors, meta, 2)
            outcome, run_id = self.train(config, "control", latent_dir, manifest)
            return {"run_id": run_id, "seconds": outcome.seconds}

        inputs = {"data": manifest.hash, "config": config.to_dict()}
        return self.stages.run("control", inputs, make, lambda _: self.is_whole("control", total))

    # --- registry -----------------------------------------------------------------------------------------------------

    def when_there(self, ask: Callable[[], T], what: str) -> T:
        """What `ask` returns, once the registry answers; see registry_wait.py."""
        return when_there(ask, what, self.args.command)

    def is_registered(self, name: str, outputs: dict[str, Any]) -> bool:
        """`is_registered` of this module, once the registry answers."""
        return self.when_there(lambda: is_registered(name, outputs), f"looking up {name}")

    # --- use ----------------------------------------------------------------------------------------------------------

    def is_whole(self, part: str, updates: int) -> bool:
        """True when the newest whole checkpoint of a part is its last: a damaged one must not pass an earlier one off."""
        found = load_latest(self.folder / part / "checkpoints")
        return found is not None and found.step == updates

    def load_rbm(self, part: str, checkpoints: str = "checkpoints") -> tuple[RBM, ChainState]:
        """The RBM and chains of a trained part of this run."""
        found = load_latest(self.folder / part / checkpoints)
        assert found is not None
        return read_beam(found, self.config)


def is_registered(name: str, outputs: dict[str, Any]) -> bool:
    """True when the version of a stage's record is (still) in the registry, with the same content.

    Raises:
        RegistryError: the registry is away.
    """
    try:
        return find_model(f"models:/{name}/{outputs['version']}").tags["content_hash"] == outputs.get("content")
    except RegistryError as error:
        if is_away(error):
            raise
        return False

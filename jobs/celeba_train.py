"""The main job: photographs -> pixel shards -> autoencoder -> latent shards -> BEAM -> scores -> registry -> pictures.

Without photographs it draws a stand-in data set, `synthetic-faces`, and says so wherever it shows. Every stage is skipped
when its result is there and was made from the same inputs; `--from STAGE` redoes a stage and all after it; a run that was
killed or stopped goes on with the same command.
"""

import argparse
import dataclasses
import json
import logging
import os
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from data_prep.celeba import CelebASource, PixelSettings, open_celeba, pixels_up_to_date
from data_prep.encode import latents_up_to_date
from data_prep.manifest import write_json
from data_prep.synthetic_faces import draw_dataset
from jobs.evaluate import TABLE_KEYS, TEST_ROWS, Scene, as_text, compare
from jobs.face_pictures import make_pictures
from jobs.prepare import latent_settings, prepare_latents, prepare_pixels
from jobs.ray_session import ray_session
from jobs.recipes import AUTOENCODER_OF, recipe
from jobs.stages import Stages
from jobs.tracked import start_tracker
from jobs.train import Outcome, TrainingFailed, TrainJob, check_folder, run_training, total_updates
from pipeline.config import ConfigError, Phase, RBMConfig, RunConfig, parse_settings
from pipeline.data.shards import Manifest, load_latents, read_manifest, read_whitening
from pipeline.models.autoencoder import Autoencoder, choose_precision
from pipeline.models.rbm import RBM
from pipeline.packaged import PackagedAutoencoder, PackagedBeam, load_package
from pipeline.registry import (
    RegistryError,
    fetch_model,
    find_model,
    model_name,
    promote_if_better,
    register_autoencoder,
    register_beam,
    set_candidate,
)
from pipeline.samplers.gibbs import ChainState
from pipeline.samplers.protocols import WideStart
from pipeline.training.checkpoint import load_latest, save_checkpoint
from pipeline.training.loop import pick_device
from pipeline.training.objective import NonFinite

STAGES = ("data", "pixels", "autoencoder", "latents", "beam", "control", "scores", "registry", "pictures")
FACES = {"faces_quick": 4000, "faces_toy": 500}
"""Stand-in faces that a recipe draws when no CelebA is given; 4 000 for any other."""
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
        return model_name(f"{dataset}-toy" if self.args.recipe == "faces_toy" else dataset, kind)

    # --- data ---------------------------------------------------------------------------------------------------------

    def source(self) -> CelebASource:
        """The photographs given, or the stand-in, drawn if it is not there yet."""
        if self.args.celeba is not None:
            return open_celeba(self.args.celeba)
        count = FACES.get(self.args.recipe, 4000)
        folder = self.cache / f"synthetic-faces-{count}"
        outputs = self.stages.run(
            "data",
            {"count": count, "seed": 0},
            lambda: {"folder": str(draw_dataset(folder, count, 0, processes=self.args.workers, progress=True))},
            lambda out: (Path(out["folder"]) / "synthetic_faces.json").exists(),
        )
        return open_celeba(outputs["folder"])

    def pixels(self, source: CelebASource) -> tuple[Path, Manifest]:
        """Pixel shards of the source."""
        settings = PixelSettings(crop=self.args.crop)
        folder = self.cache / f"{source.dataset}-{source.content_hash[:12]}" / f"pixels-{settings.crop}"
        verify = "pixels" in self.stages.redo
        self.stages.run(
            "pixels",
            {"source": source.content_hash, "settings": settings.describe()},
            lambda: {"hash": prepare_pixels(source, folder, settings, self.cache, self.args.local, verify).hash},
            lambda _: pixels_up_to_date(source, folder, settings) is not None,
        )
        return folder, read_manifest(folder)

    # --- training -----------------------------------------------------------------------------------------------------

    def train(self, config: RunConfig, part: str, data_dir: Path, manifest: Manifest) -> tuple[Outcome, str]:
        """Train `config` in <run>/<part>; returns how it went and the id of its MLflow run."""
        folder = self.folder / part
        check_folder(folder, config, manifest.hash)
        job = TrainJob(config.to_dict(), str(data_dir), manifest.hash, str(folder))
        tracker = start_tracker(folder, config, manifest.dataset, manifest.hash, self.folder.name)
        status = "FAILED"
        try:
            outcome = run_training(job, self.args.workers, self.args.local, tracker, self.cache, part)
            status = "FINISHED" if outcome.finished else "KILLED"
        finally:
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
            model.load_state_dict(_part(found.tensors, "model."))
            last = {k: v for k, v in outcome.history[-1].items() if k in ("reconstruction_mse", "psnr")}
            num_rows = min(self.autoencoder_config.evaluation.num_rows, manifest.splits["valid"].rows)
            precision = choose_precision(self.autoencoder_config.model.precision, "cpu")  # type: ignore[union-attr]
            packaged = PackagedAutoencoder(model, precision, manifest.dataset, last)
            version = register_autoencoder(
                packaged,
                name=name,
                run_id=run_id,
                data_hash=manifest.hash,
                recipe=self.autoencoder_config.name,
                score=last["reconstruction_mse"],
                num_rows=num_rows,
            )
            set_candidate(version.name, version.version)
            promotion = promote_if_better(version.name, version.version)
            _log.info("%s version %s: %s", version.name, version.version, promotion.reason)
            content = version.tags["content_hash"]
            return {
                "version": version.version,
                "content": content,
                "run_id": run_id,
                "seconds": outcome.seconds,
                **last,
            }

        inputs = {"data": manifest.hash, "config": self.autoencoder_config.to_dict()}
        outputs = self.stages.run("autoencoder", inputs, make, lambda out: _registered(name, out))
        return {**outputs, "name": name}

    def latents(self, pixel_dir: Path, autoencoder: dict[str, Any]) -> tuple[Path, Manifest, PackagedAutoencoder]:
        """Encode with the version that this run encoded with before; else with the champion, if it saw the same data;
        else with this run's own version.

        A champion of other photographs (or of fewer) would silently set the quality of everything after it, and one that
        came up after this run began would change the run's data under it.
        """
        name, pixels = autoencoder["name"], read_manifest(pixel_dir).hash
        before = self.stages.outputs("latents")
        champion = find_model(f"models:/{name}@champion")
        if before is not None and before.get("pixels") == pixels and _registered(name, before):
            version = before["version"]
        elif champion.tags["data_hash"] == pixels:
            version = champion.version
        else:
            version = autoencoder["version"]
            _log.info("the champion, version %s, saw other data: encoding with version %s", champion.version, version)
        fetched = fetch_model(f"models:/{name}/{version}", self.cache / "models")
        settings = latent_settings(fetched)
        folder = pixel_dir.parent / f"latents-{settings.encoder_version.replace('/', '-')}"
        verify = "latents" in self.stages.redo

        def make() -> dict[str, Any]:
            made = prepare_latents(pixel_dir, folder, fetched, self.cache, self.args.local, verify)
            return {"hash": made.hash, "pixels": pixels, "version": version, "content": fetched.content_hash}

        self.stages.run(
            "latents",
            {"pixels": pixels, "encoder": settings.encoder_version},
            make,
            lambda _: latents_up_to_date(pixel_dir, folder, settings) is not None,
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

    # --- use ----------------------------------------------------------------------------------------------------------

    def is_whole(self, part: str, updates: int) -> bool:
        """True when the newest whole checkpoint of a part is its last: a damaged one must not pass an earlier one off."""
        found = load_latest(self.folder / part / "checkpoints")
        return found is not None and found.step == updates

    def load_rbm(self, part: str, checkpoints: str = "checkpoints") -> tuple[RBM, ChainState]:
        """The RBM and chains of a trained part of this run."""
        found = load_latest(self.folder / part / checkpoints)
        assert found is not None and isinstance(self.config.model, RBMConfig)
        rbm = RBM(self.config.model)
        rbm.load_state_dict(_part(found.tensors, "model."))
        rbm.requires_grad_(False)
        return rbm, ChainState(**_part(found.tensors, "chains."))


def _registered(name: str, outputs: dict[str, Any]) -> bool:
    """True when the version of a stage's record is (still) in the registry, with the same content."""
    try:
        return find_model(f"models:/{name}/{outputs['version']}").tags["content_hash"] == outputs.get("content")
    except RegistryError:
        return False


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def run_chain(chain: Chain) -> dict[str, Any]:
    """All stages; returns the summary that is also written to <run>/summary.json."""
    source = chain.source()
    pixel_dir, pixels = chain.pixels(source)
    autoencoder = chain.autoencoder(pixel_dir, pixels)
    latent_dir, latents, packaged = chain.latents(pixel_dir, autoencoder)
    beam = chain.beam(latent_dir, latents)
    chain.control(latent_dir, latents)

    whitening = read_whitening(latent_dir)
    train, test = (whitening.apply(load_latents(latent_dir, split)) for split in ("train", "test"))
    evaluation = chain.config.evaluation
    test = test[:TEST_ROWS]
    scene = Scene.of(train, test, whitening, packaged, evaluation.num_components)
    start = WideStart.of(train)
    models = {"BEAM": chain.load_rbm("beam")[0]}
    if load_latest(chain.folder / "beam" / "switch") is not None:  # there are two phases
        models["at the switch"] = chain.load_rbm("beam", "switch")[0]
    if (chain.folder / "control" / "checkpoints").exists():
        models["gamma = 1"] = chain.load_rbm("control")[0]
    inputs = {"data": latents.hash, "config": chain.config.to_dict(), "run": beam["run_id"]}
    table = chain.stages.run("scores", inputs, lambda: compare(scene, models, start, evaluation.num_neighbors))
    metrics: dict[str, Any] = {
        **table["BEAM"],
        "reconstruction_mse": packaged.metrics["reconstruction_mse"],
        "psnr": packaged.metrics["psnr"],
        "updates_per_second": beam["updates_per_second"],
        "num_test_rows": len(test),
    }

    def register() -> dict[str, Any]:
        rbm, chains = chain.load_rbm("beam")
        package = PackagedBeam(rbm, chain.config, whitening, start, chains, packaged, latents.dataset, table["BEAM"])
        metric = evaluation.selection_metric
        tracker = start_tracker(chain.folder / "beam", chain.config, latents.dataset, latents.hash, chain.folder.name)
        tracker.finish("FINISHED")  # the run's id in this registry, whatever the record says
        version = register_beam(
            package,
            name=name,
            run_id=tracker.run_id,
            data_hash=latents.hash,  # scores of latents of two encoders do not compare
            recipe=chain.config.name,
            score=metrics[metric],
            score_name=metric,
            num_rows=len(test),
            spread=metrics[f"{metric}_spread"],
        )
        set_candidate(version.name, version.version)
        promotion = promote_if_better(version.name, version.version)
        return {
            "name": version.name,
            "version": version.version,
            "content": version.tags["content_hash"],
            "promotion": promotion.reason,
        }

    name = chain.model_name(latents.dataset, "beam")
    registered = chain.stages.run("registry", inputs, register, lambda out: _registered(name, out))

    def draw() -> dict[str, Any]:
        history = [json.loads(line) for line in (chain.folder / "beam" / "metrics.jsonl").read_text().splitlines()]
        switch = total_updates(chain.config, latents.splits["train"].rows)[0]
        made = make_pictures(
            scene, models, start, history, switch, pixel_dir, chain.folder / "pictures", latents.dataset
        )
        tracker = start_tracker(chain.folder / "beam", chain.config, latents.dataset, latents.hash, chain.folder.name)
        for path in made.values():
            tracker.log_artifact(path, "pictures")
        tracker.log_dict(table, "scores.json")
        tracker.finish("FINISHED")
        return {key: str(path) for key, path in made.items()}

    pictures = chain.stages.run("pictures", inputs, draw, lambda out: all(Path(p).exists() for p in out.values()))
    aliases = find_model(f"models:/{name}/{registered['version']}").aliases
    summary: dict[str, Any] = {
        "stages": {r.name: {"seconds": round(r.seconds, 2), "skipped": r.skipped} for r in chain.stages.reports},
        "metrics": metrics,
        "recipe": chain.config.name,
        "dataset": latents.dataset,
        "data_hash": pixels.hash,
        "latents_hash": latents.hash,
        "config": chain.config.to_dict(),
        "mlflow_run_id": beam["run_id"],
        "model": {**registered, "aliases": list(aliases)},
        "autoencoder": autoencoder,
        "comparison": table,
        "pictures": pictures,
    }
    write_json(chain.folder / "summary.json", summary)
    return summary


def last_word(summary: dict[str, Any], folder: Path, seconds: float) -> str:
    """The table for people."""
    stand_in = summary["dataset"] == "synthetic-faces"
    lines = ["", f"data set: {summary['dataset']}" + (" (drawn stand-in faces, NOT CelebA)" if stand_in else "")]
    lines += ["", "stage            seconds"]
    lines += [f"{k:14s} {v['seconds']:9.1f}{'  skipped' if v['skipped'] else ''}" for k, v in summary["stages"].items()]
    count = summary["metrics"]["num_test_rows"]
    lines += ["", f"test partition, {count} samples against {count} rows, driven protocol, E[v|h]:"]
    lines += [as_text(summary["comparison"], TABLE_KEYS)]
    model = summary["model"]
    psnr, rate = summary["metrics"]["psnr"], summary["metrics"]["updates_per_second"]
    lines += ["", f"autoencoder: PSNR {psnr:.1f} dB held out; BEAM: {rate or float('nan'):.1f} updates/s"]
    lines += [
        f"model: models:/{model['name']}/{model['version']} ({', '.join(model['aliases'])}): {model['promotion']}"
    ]
    lines += [f"MLflow run: {summary['mlflow_run_id']}"]
    lines += [f"picture: {path}" for path in summary["pictures"].values()]
    lines += [f"summary: {folder / 'summary.json'}", f"total: {seconds:.0f} s"]
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.celeba_train", description=__doc__)
    parser.add_argument(
        "--celeba", type=Path, help="folder or zip of the aligned photographs; without it: stand-in faces"
    )
    parser.add_argument("--recipe", help="default: celeba_beam with --celeba, faces_quick without")
    parser.add_argument("--quick", action="store_true", help="toy sizes (recipe faces_toy), for CI")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--local", action="store_true", help="one process, no Ray")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--set-autoencoder", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--crop", type=int, default=148, help="side of the center crop of a photograph (default 148)")
    parser.add_argument("--name", help="the run's folder under --runs (default: data set and recipe)")
    parser.add_argument("--from", dest="redo_from", metavar="STAGE", help=f"redo from: {', '.join(STAGES)}")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 done, 130 stopped (the same command goes on), 2 a user's error."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    begin = time.perf_counter()
    try:
        args.recipe = args.recipe or ("faces_toy" if args.quick else "celeba_beam" if args.celeba else "faces_quick")
        if args.workers < 1:
            raise ConfigError(f"--workers {args.workers}: at least 1")
        config = recipe(args.recipe, parse_settings(args.settings))
        autoencoder = AUTOENCODER_OF.get(args.recipe, "celeba_autoencoder")
        autoencoder_config = recipe(autoencoder, parse_settings(args.set_autoencoder))
        if not isinstance(config.model, RBMConfig):
            raise ConfigError(f"--recipe {args.recipe}: not a BEAM; train it with `python -m jobs.train`")
        if args.recipe == "faces_quick" and choose_precision("auto", pick_device()) == "float32":
            autoencoder_config = autoencoder_config.override({"epochs_scale": 0.5})
            print("no native bfloat16 here: the quick autoencoder is trained for half as long", flush=True)
        if args.celeba is None:
            print(
                "no CelebA given (CELEBA=...): drawing stand-in faces, labeled synthetic-faces everywhere", flush=True
            )
        label = "synthetic-faces" if args.celeba is None else open_celeba(args.celeba).dataset
        folder = (args.runs / (args.name or f"{label}-{args.recipe}")).resolve()
        cache = args.cache.resolve()
        stages = Stages(folder, STAGES, args.redo_from)
        for part in stages.forgotten & {"autoencoder", "beam", "control"}:
            shutil.rmtree(folder / part, ignore_errors=True)
        chain = Chain(args, config, autoencoder_config, folder, cache, stages)
        with nullcontext() if args.local else ray_session(cache, max(args.workers, os.cpu_count() or 1)):
            summary = run_chain(chain)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last finished stage", file=sys.stderr)
        return 130
    except Stopped as stop:
        print(f"{stop}; the same command goes on from there", file=sys.stderr)
        return 130
    except (ValueError, NonFinite, TrainingFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(last_word(summary, folder, time.perf_counter() - begin))
    return 0


if __name__ == "__main__":
    from jobs.celeba_train import main as imported_main

    sys.exit(imported_main())

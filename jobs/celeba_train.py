"""The main job: photographs -> pixel shards -> autoencoder -> latent shards -> BEAM -> scores -> pictures -> registry.

Without photographs it draws a stand-in data set, `synthetic-faces`, and says so wherever it shows. Every stage is skipped
when its result is there and was made from the same inputs; `--from STAGE` redoes a stage and all after it; a run that was
killed or stopped goes on with the same command.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from data_prep.celeba import open_celeba
from jobs.chain import Chain, Stopped
from jobs.face_pictures import make_pictures
from jobs.ray_session import ray_session
from jobs.recipes import AUTOENCODER_OF, recipe
from jobs.registry_wait import as_command, wait_seconds
from jobs.storage import add_storage, local_input, local_path, path_or_url, stored
from pipeline.config import ConfigError, RBMConfig, RunConfig, flatten, parse_settings
from pipeline.data.manifest import Manifest
from pipeline.data.rows import load_rows, read_scaling
from pipeline.device.precision import choose_precision
from pipeline.evaluation.scene import TEST_ROWS, Scene
from pipeline.evaluation.scores import FACE_SAMPLES, SEEDS, TABLE_KEYS, as_text, compare
from pipeline.files import write_json
from pipeline.packages.models import PackagedBeam
from pipeline.registry.card import DRIVEN_MEANS, Measured, measured, model_card
from pipeline.registry.promotion import promote_if_better, set_candidate
from pipeline.registry.register import register_beam
from pipeline.registry.versions import find_model
from pipeline.runs.job import TrainingFailed, total_updates
from pipeline.runs.lock import locked, run_folder
from pipeline.runs.stages import Stages
from pipeline.runs.tracked import deliver_left, start_tracker
from pipeline.samplers.protocols import WideStart
from pipeline.training.checkpoint import load_latest
from pipeline.training.loop import pick_device
from pipeline.training.objective import NonFinite

STAGES = ("data", "pixels", "autoencoder", "latents", "beam", "control", "scores", "pictures", "registry")


def run_chain(chain: Chain) -> dict[str, Any]:
    """All stages; returns the summary that is also written to <run>/summary.json."""
    source = chain.source()
    pixel_dir, pixels = chain.pixels(source)
    autoencoder = chain.autoencoder(pixel_dir, pixels)
    latent_dir, latents, packaged = chain.latents(pixel_dir, autoencoder)
    beam = chain.beam(latent_dir, latents)
    chain.control(latent_dir, latents)

    scaling = chain.config.data.scaling
    whitening = read_scaling(latent_dir, scaling)
    train, test = (load_rows(latent_dir, split, scaling) for split in ("train", "test"))
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

    def register() -> dict[str, Any]:
        rbm, chains = chain.load_rbm("beam")
        package = PackagedBeam(rbm, chain.config, whitening, start, chains, packaged, latents.dataset, table["BEAM"])
        metric = evaluation.selection_metric
        tracker = start_tracker(
            chain.folder / "beam", chain.config, latents.dataset, latents.hash, chain.folder.name, must_answer=True
        )
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
            card=card_of(name, chain.config, latents, table, len(test), tracker.run_id),
            pictures=[Path(pictures["samples"])],
        )
        set_candidate(version.name, version.version)
        promotion = promote_if_better(version.name, version.version)
        return {
            "name": version.name,
            "version": version.version,
            "content": version.tags["content_hash"],
            "promotion": promotion.reason,
            "run_id": tracker.run_id,
        }

    name = chain.model_name(latents.dataset, "beam")
    registered = chain.stages.run(
        "registry",
        inputs,
        lambda: chain.when_there(register, "registering the BEAM"),
        lambda out: chain.is_registered(name, out),
    )
    ref = f"models:/{name}/{registered['version']}"
    aliases = chain.when_there(lambda: find_model(ref), f"looking up {name}").aliases
    summary: dict[str, Any] = {
        "stages": {r.name: r.to_dict() for r in chain.stages.reports},
        "metrics": metrics,
        "recipe": chain.config.name,
        "dataset": latents.dataset,
        "data_hash": pixels.hash,
        "latents_hash": latents.hash,
        "config": chain.config.to_dict(),
        "mlflow_run_id": registered.get("run_id") or beam["run_id"],
        "model": {**registered, "aliases": list(aliases)},
        "autoencoder": autoencoder,
        "comparison": table,
        "pictures": pictures,
    }
    write_json(chain.folder / "summary.json", summary)
    return summary


def card_of(
    name: str, config: RunConfig, latents: Manifest, table: dict[str, dict[str, Any]], num_rows: int, run_id: str
) -> str:
    """The model card of a face run: scores, what the adversary changed, baselines."""
    shown = {row: {key: values[key] for key in TABLE_KEYS if key in values} for row, values in table.items()}
    models = {row: values for row, values in shown.items() if row in ("BEAM", "at the switch", "gamma = 1")}
    own = {key: value for key, value in table["BEAM"].items() if isinstance(value, float)}
    metrics = measured(own, num_rows=num_rows, num_seeds=len(SEEDS))
    if "face_share" in own:
        metrics["face_share"] = Measured(own["face_share"], None, FACE_SAMPLES, 1, DRIVEN_MEANS)
    return model_card(
        name=name,
        kind="beam",
        dataset=latents.dataset,
        data_hash=latents.hash,
        recipe=config.name,
        metrics=metrics,
        score_name=config.evaluation.selection_metric,
        settings=flatten(config.to_dict()),
        comparison=models if len(models) > 1 else None,
        comparison_note="One training seed. `at the switch` is where the adversary came on; `gamma = 1` went on from there "
        "for as long with the likelihood alone.",
        baselines={row: values for row, values in shown.items() if row not in models},
        pictures=["samples.png"],
        run_id=run_id,
    )


def last_word(summary: dict[str, Any], folder: Path, seconds: float) -> str:
    """The table for people."""
    stand_in = summary["dataset"] == "synthetic-faces"
    lines = ["", f"data set: {summary['dataset']}" + (" (drawn stand-in faces, NOT CelebA)" if stand_in else "")]
    lines += ["", "stage            seconds   peak MB"]
    for name, stage in summary["stages"].items():
        lines += [f"{name:14s} {stage['seconds']:9.1f} {'skipped' if stage['skipped'] else stage['peak_rss_mb']:>9}"]
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
        "--celeba",
        type=path_or_url,
        help="folder or zip of the aligned photographs, or the URL of the folder (s3://, gs://); without it: stand-in faces",
    )
    parser.add_argument("--recipe", help="default: celeba_beam with --celeba, faces_quick without")
    parser.add_argument("--quick", action="store_true", help="toy sizes (recipe faces_toy), for CI")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--min-workers",
        type=int,
        help="fewest that train while machines are away (default: 1 on a cluster, with RAY_ADDRESS, else all)",
    )
    parser.add_argument("--local", action="store_true", help="one process, no Ray")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--set-autoencoder", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--crop", type=int, default=148, help="side of the center crop of a photograph (default 148)")
    parser.add_argument("--name", help="the run's folder under --runs (default: data set and recipe)")
    parser.add_argument("--from", dest="redo_from", metavar="STAGE", help=f"redo from: {', '.join(STAGES)}")
    parser.add_argument("--runs", type=local_path, default=Path("runs"))
    parser.add_argument("--cache", type=local_path, default=Path("cache"))
    add_storage(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 done, 130 stopped (the same command goes on), 2 a user's error."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    begin = time.perf_counter()
    args.command = as_command("jobs.celeba_train", argv)
    try:
        wait_seconds()
        args.recipe = args.recipe or ("faces_toy" if args.quick else "celeba_beam" if args.celeba else "faces_quick")
        if args.workers < 1:
            raise ConfigError(f"--workers {args.workers}: at least 1")
        if args.min_workers is not None and not 1 <= args.min_workers <= args.workers:
            raise ConfigError(f"--min-workers {args.min_workers}: 1 to {args.workers}, the number of --workers")
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
        cache = args.cache.resolve()
        if args.celeba is not None:
            args.celeba = local_input(args.celeba, cache)
        label = "synthetic-faces" if args.celeba is None else open_celeba(args.celeba).dataset
        folder = run_folder(args.runs, args.name or f"{label}-{args.recipe}")
        with locked(folder), stored(folder, args.storage):
            stages = Stages(folder, STAGES, args.redo_from)
            for part in stages.forgotten & {"autoencoder", "beam", "control"}:
                shutil.rmtree(folder / part, ignore_errors=True)
            chain = Chain(args, config, autoencoder_config, folder, cache, stages)
            with nullcontext() if args.local else ray_session(cache, max(args.workers, os.cpu_count() or 1)):
                summary = run_chain(chain)
            deliver_left(folder, args.command)
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

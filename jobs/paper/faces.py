"""Fig. 7, 14, 15 and Table III: BEAMs, their controls and convolutional GANs on photographs of faces, 64x64.

All models are compared on the same test photographs, with equally many samples. Latent scores are taken in the space of the
autoencoder that the BEAM was trained in (a GAN's pictures are encoded), so they favor the BEAM; the others in a fixed space,
histograms of oriented gradients of the pixels, that no model was trained on. Both stand beside a full-covariance Gaussian of
the latents and a bootstrap of training photographs. BEAMs: driven protocol, E[v | h].

The recipes are the recommended ones: Table III's own, celeba_beam_paper, makes 100 sweeps an update for 50 epochs and was not
trained here. GANs are trained for about as long, on one thread, as autoencoder and BEAM together (see the times), on batches
of 16 in place of the table's 128.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from jobs import stack
from jobs.chain import read_beam
from jobs.evaluate import Scene, baselines, detected_faces, open_scene, score_draws, score_model, score_samples
from jobs.paper.experiments import Experiment, Finding, Plan, Table
from jobs.paper.training import mean_and_spread, read_generator, train_in
from jobs.paper.units import Stopped, Unit
from jobs.recipes import recipe
from pipeline.comm import Comm
from pipeline.config import GANConfig, RBMConfig
from pipeline.data.shards import load_split, read_manifest
from pipeline.metrics.image_scores import BOOTSTRAP, GAUSSIAN, bootstrap, score_images
from pipeline.metrics.inception import NOT_COMPUTED, fid, find_inception
from pipeline.models.autoencoder import to_pixels
from pipeline.models.gan import generate
from pipeline.pictures.grids import image_grid, reconstruction_rows
from pipeline.samplers.protocols import DRIVEN, WideStart, draw_samples
from pipeline.streams import stream
from pipeline.training.loop import read_history

SEEDS = (0, 1, 2)
COMPONENTS = 100
NEIGHBORS = 5
BEAMS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "centered BEAM": ("celeba_beam", {}, SEEDS),
    "centered, gamma 1": ("celeba_beam", {"schedules.adversarial.gamma": 1.0}, SEEDS),
    "centered, gamma .5": ("celeba_beam", {"schedules.adversarial.gamma": 0.5}, SEEDS[:2]),
    "BEAM, not centered": ("celeba_beam", {"model.center_hidden": False}, SEEDS[:2]),
}
GANS = {"DCGAN": "celeba_dcgan", "DCWGAN": "celeba_dcwgan"}
GAN_UPDATES = 4800
GAN_BATCH = 16
"""The table's 128 leaves some 850 updates in that time; after 540 of them the pictures were still noise."""
TOY_STACK = ("schedules.likelihood.updates=10", "schedules.adversarial.updates=10", "evaluation.num_rows=40")


def find_faces(run: Path, cache: Path) -> dict[str, str] | None:
    """Folders of the pixels and latents that a finished `make celeba-train` in folder `run` made; None when there is none."""
    try:
        stage = json.loads((run / "stages" / "latents.json").read_text())["outputs"]
    except (OSError, json.JSONDecodeError, KeyError):
        return None
    wanted = {"pixels": stage["pixels"], "latents": stage["hash"]}
    found: dict[str, str] = {}
    for file in cache.glob("*/*/manifest.json"):
        value = read_manifest(file.parent).hash
        found |= {name: str(file.parent.resolve()) for name, hashed in wanted.items() if hashed == value}
    return found if len(found) == len(wanted) else None


def train_beam(
    folder: Path, cache: Path, recipe_name: str, settings: dict[str, Any], latents: str, pixels: str
) -> dict[str, Any]:
    """Train one BEAM; its scores in both spaces."""
    config = recipe(recipe_name).override({**settings, "evaluation.every_updates": 10**6})
    data = Path(latents)
    found = train_in(folder / "run", config, data)
    assert isinstance(config.model, RBMConfig)
    scene = open_scene(data, cache, COMPONENTS)
    assert isinstance(scene, Scene)
    rbm, _ = read_beam(found, config.model)
    start = WideStart.of(scene.train)
    drawn = scene.pixels(draw_samples(rbm, start, DRIVEN, len(scene.test), 0).visible_mean)
    history = read_history(folder / "run")
    return {
        "latent": score_model(scene, rbm, start, NEIGHBORS),
        "pixels": score_pixels(folder, scene, Path(pixels), drawn),
        "updates": found.step,
        "score_particles": [row["score_particles"] for row in history if "score_particles" in row][-1:],
    }


def train_gan(
    folder: Path, cache: Path, recipe_name: str, settings: dict[str, Any], latents: str, pixels: str
) -> dict[str, Any]:
    """Train one GAN on pixels; its scores in both spaces."""
    config = recipe(recipe_name).override({**settings, "evaluation.every_updates": 10**6})
    found = train_in(folder / "run", config, Path(pixels))
    assert isinstance(config.model, GANConfig)
    generator = read_generator(found, config.model)
    scene = open_scene(Path(latents), cache, COMPONENTS)
    assert isinstance(scene, Scene)

    def draw(seed: int) -> Tensor:
        rows = generate(generator, len(scene.test), seed, Comm())
        return to_pixels(rows.view(len(rows), 3, 64, 64))

    return {
        "latent": score_draws(scene, lambda seed: scene.again(draw(seed)), NEIGHBORS),
        "pixels": score_pixels(folder, scene, Path(pixels), draw(0)),
        "updates": found.step,
    }


def train_autoencoder(
    folder: Path, cache: Path, recipe_name: str, settings: dict[str, Any], pixels: str
) -> dict[str, Any]:
    """Train the autoencoder once more, on one thread, for its time; its PSNR in dB on validation photographs."""
    config = recipe(recipe_name).override(settings)
    found = train_in(folder / "run", config, Path(pixels))
    psnr = [row["psnr"] for row in read_history(folder / "run") if "psnr" in row]
    return {"psnr": psnr[-1], "updates": found.step}


def train_stack(
    folder: Path, cache: Path, bottom: str, settings: Sequence[str], latents: str, pixels: str
) -> dict[str, Any]:
    """Train a tied second layer on the BEAM of the unit `bottom` (see jobs/stack.py); scores of one layer and of two."""
    arguments = [
        "--recipes",
        "celeba_stack_tied",
        "--tied",
        "--bottom",
        str(folder.parent / bottom / "run"),
        "--data",
        latents,
        *(word for setting in settings for word in ("--set", setting)),
    ]
    places = ["--name", "stack", "--runs", str(folder), "--cache", str(cache), "--local", "--no-tracking"]
    status = stack.main([*arguments, *places])
    if status == 130:
        raise Stopped
    if status:
        raise RuntimeError(f"jobs.stack ended with status {status}; its error is above")
    found = json.loads((folder / "stack" / "summary.json").read_text())["comparison"]
    return {"latent": found["2 layers"], "encoded and back": found["encoded and back"]}


def score_baselines(folder: Path, cache: Path, latents: str, pixels: str) -> dict[str, Any]:
    """The same scores of Gaussians, of training photographs, and of the test photographs' reconstructions."""
    scene = open_scene(Path(latents), cache, COMPONENTS)
    assert isinstance(scene, Scene)
    n = len(scene.test)
    shown = load_split(pixels, "test")[:n]
    reconstruction_rows(shown[:12], scene.pixels(scene.test[:12]), folder / "reconstructions.png")
    figures: dict[str, Any] = {}
    for name, rows in baselines(scene).items():
        drawn = scene.pixels(rows)
        figures[name] = {
            "latent": score_samples(scene, rows, NEIGHBORS),
            "pixels": score_pixels(folder, scene, Path(pixels), drawn),
        }
    figures["test reconstructions"] = {"pixels": score_pixels(folder, scene, Path(pixels), scene.pixels(scene.test))}
    again = bootstrap(load_split(pixels, "train"), n, stream(0, "training photographs"))
    figures["training photographs"] = {"pixels": score_pixels(folder, scene, Path(pixels), again)}
    return figures


def score_pixels(folder: Path, scene: Scene, pixels: Path, drawn: Tensor) -> dict[str, float | None]:
    """Scores of pictures uint8 [n, 64, 64, 3] in the fixed feature space; 36 of them as a grid in `folder`."""
    n = len(drawn)
    real, train = load_split(pixels, "test")[:n], load_split(pixels, "train")
    generator = stream(0, "image baselines")
    gaussian = scene.pixels(baselines(scene)["full Gaussian"])
    others = {GAUSSIAN: gaussian, BOOTSTRAP: bootstrap(train, n, generator)}
    scores = score_images(real, {"model": drawn, **others}, train_pixels=train)["model"]
    network = find_inception()
    image_grid(drawn[:36], 6, folder / "faces.png")
    np.save(folder / "faces.npy", drawn[:36].numpy())
    return {
        "mmd": scores.polynomial.squared,
        "mmd_error": scores.polynomial.standard_error,
        "precision": scores.manifold.precision,
        "recall": scores.manifold.recall,
        "two_sample": scores.neighbors.overall,
        "real_accuracy": scores.neighbors.real,
        "generated_accuracy": scores.neighbors.generated,
        "novelty": scores.novelty,
        "face_share": detected_faces(drawn),
        "sharpness": sharpness(drawn) / sharpness(scene.pixels(scene.test)),
        "fid": None if network is None else fid(real, drawn, network),
    }


def sharpness(pixels: Tensor) -> float:
    """Mean absolute Laplacian of the gray values of pictures uint8 [n, H, W, 3]."""
    gray = pixels.float().mean(3)
    inner = gray[:, 1:-1, 1:-1]
    around = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
    return float((around - 4 * inner).abs().mean())


# --- the experiment -----------------------------------------------------------------------------------------------------


def _waves(plan: Plan) -> list[list[Unit]]:
    if plan.faces is None:
        return []
    places = plan.faces
    seeds = SEEDS[:1] if plan.quick else SEEDS
    autoencoder: dict[str, Any] = {
        "recipe_name": "faces_toy_autoencoder" if plan.quick else "celeba_autoencoder",
        "settings": {},
    }
    units = [
        Unit("baselines", score_baselines, dict(places)),
        Unit("autoencoder", train_autoencoder, {**autoencoder, "pixels": places["pixels"]}),
    ]
    beams: dict[str, Unit] = {}
    for name, (recipe_name, settings, own_seeds) in BEAMS.items():
        if plan.quick and name == "centered, gamma 1":
            continue  # no other path through the code
        for seed in (s for s in own_seeds if s in seeds):
            what = {
                "recipe_name": "faces_toy" if plan.quick else recipe_name, "settings": {**settings, "seed": seed}, **places
            }  # fmt: skip
            beams[f"{name}-{seed}"] = Unit(_slug(f"{name}-{seed}"), train_beam, what)
    gans = []
    for name, recipe_name in GANS.items():
        updates = 2 if plan.quick else GAN_UPDATES
        length = {"schedules.likelihood.epochs": None, "schedules.likelihood.updates": updates}
        settings = {**length, "data.batch_size": 8 if plan.quick else GAN_BATCH, "seed": 0}
        gans.append(Unit(_slug(f"{name}-0"), train_gan, {"recipe_name": recipe_name, "settings": settings, **places}))
    stacks = []
    for seed in seeds:
        bottom = beams[f"centered BEAM-{seed}"]
        what = {"bottom": bottom.name, "settings": [f"2:seed={seed}", *(TOY_STACK if plan.quick else ())], **places}
        stacks.append(Unit(f"two_layers_tied-{seed}", train_stack, what, (bottom.fingerprint,)))
    return [[*units, *beams.values(), *gans], stacks]


def _slug(name: str) -> str:
    return name.replace(" ", "_").replace(",", "")


_LATENT = ("frechet_latent", "recall", "precision", "duplicates", "variance_ratio", "kl_forward", "kl_reverse")
_PIXELS = (
    "mmd",
    "precision",
    "recall",
    "two_sample",
    "generated_accuracy",
    "novelty",
    "sharpness",
    "face_share",
    "fid",
)


def _finish(figures: dict[str, dict[str, Any]], folder: Path, plan: Plan) -> Finding:
    models: dict[str, list[dict[str, Any]]] = {name: [row] for name, row in figures["baselines"].items()}
    for name in figures:
        if name not in ("baselines", "autoencoder"):
            models.setdefault(name.rpartition("-")[0].replace("_", " "), []).append(figures[name])
    tables = [
        _table("Latent space of the autoencoder", models, "latent", _LATENT),
        _table("Oriented gradients of the pixels", models, "pixels", _PIXELS),
    ]
    pictures = ["baselines/reconstructions.png: test photographs and their reconstructions (Fig. 14), faces"]
    drawn = [name for name in figures if name.endswith("-0") and (folder / name / "faces.png").exists()]
    pictures += [f"{name}/faces.png: 36 samples, {name}" for name in drawn]
    if "two_layers_tied-0" in figures:
        pictures.append("two_layers_tied-0/stack/samples.png: samples of the stack, faces")
    back = [figures[name]["encoded and back"] for name in figures if "encoded and back" in figures[name]]
    if back:
        tables.append(
            _table(
                "Photographs up and down again: what a perfect second layer would give",
                {"two layers": [{"latent": row} for row in back]},
                "latent",
                _LATENT,
            )
        )
    notes = [__doc__ or ""] if find_inception() else [__doc__ or "", f"{NOT_COMPUTED}."]
    notes.append(
        f"Autoencoder: {figures['autoencoder']['psnr']:.1f} dB on validation photographs. Data: "
        f"{read_manifest(plan.faces['pixels']).dataset if plan.faces else ''}."
    )
    return Finding(tables, {}, pictures, notes)


def _table(title: str, models: dict[str, list[dict[str, Any]]], part: str, keys: tuple[str, ...]) -> Table:
    rows = []
    for name, runs in models.items():
        found = [run[part] for run in runs if part in run]
        if found:
            rows.append([name, str(len(found)), *(_cell([row.get(key) for row in found]) for key in keys)])
    return Table(title, ("model", "seeds", *keys), rows)


def _cell(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean, spread = mean_and_spread(known)
    return f"{mean:.3g}" + (f" +- {spread:.2g}" if len(known) > 1 else "")


EXPERIMENTS = (
    Experiment(
        "faces",
        "Fig. 7, 14, 15, Table III",
        "Photographs of faces: BEAM, centered BEAM, DCGAN, DCWGAN",
        _waves,
        _finish,
        "run `make celeba-train CELEBA=...` first: its shards and autoencoder are used",
        photographs=True,
    ),
)

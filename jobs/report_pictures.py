"""The pictures of a report: curves, samples by update, nearest training rows, reconstructions, densities of points.

Each function gives the blocks of its part. It raises Missing (or ShardError, PackageError) where what it shows is not here.
"""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jobs.evaluate import MEMORIZATION_ROWS, SEEDS
from jobs.face_pictures import PANELS
from jobs.report_data import Material, read_rows
from jobs.report_page import Block, Gallery, Heading, Note, Picture, Slider, photographs, plot
from jobs.report_runs import STAND_IN, Missing, Training
from pipeline.critics.search import search_torch
from pipeline.data.shards import ShardError, load_split
from pipeline.metrics.images import memorization_ratio, project
from pipeline.models.gan import rows_to_pixels
from pipeline.pictures.curves import point_density, training_curves
from pipeline.pictures.grids import image_grid, reconstruction_rows

AUTOENCODER_PANELS = {
    "held-out PSNR, dB": ["psnr"],
    "squared error, held out and of the batch": ["reconstruction_mse", "batch_mse"],
    "gradient norm": ["gradient_norm"],
}
GAN_PANELS = {
    **PANELS,
    "losses": ["critic_loss", "generator_loss"],
    "critic: mean value": ["critic_on_data", "critic_on_samples"],
    "gradient norms": ["critic_gradient_norm", "generator_gradient_norm"],
}
COMPARED = {
    "Frechet distance, top components": "frechet_latent",
    "forward KL divergence per dimension, held out": "kl_forward",
    "reverse KL divergence per dimension, held out": "kl_reverse",
    "reconstruction error": "reconstruction_error",
    "critic: mean T of the particles": "score_particles",
    "held-out PSNR, dB": "psnr",
}
"""Panels in which several trainings are overlaid: title -> metric."""
MAX_FRAMES = 24
"""Sample grids on a slider; of more evaluations so many are shown, evenly spread, the last among them."""
NUM_SHOWN, NUM_REFERENCE, NUM_NEIGHBORS = 12, 4, 3
NUM_POINTS = 2000


def curves(training: Training, switch: int | None, dataset: str | None, folder: Path) -> list[Block]:
    """One plot per group of metrics, with the phase change."""
    panels = {"BEAM": PANELS, "autoencoder": AUTOENCODER_PANELS, "GAN": GAN_PANELS}[training.kind]
    logged = {key for row in training.history for key in row}
    pictures = [
        _curve({title: keys}, training.history, switch, dataset, folder)
        for title, keys in panels.items()
        if logged & set(keys)
    ]
    if not pictures:
        raise Missing(f"{training.name} reported none of the metrics that are drawn")
    return [Gallery(pictures, wide=True)]


def overlaid_curves(
    trainings: Sequence[Training], switches: Sequence[int | None], dataset: str | None, folder: Path
) -> list[Block]:
    """One plot per metric with a line per training."""
    pictures = []
    known = {t.name: s for t, s in zip(trainings, switches) if s is not None}
    line = next(iter(known.values())) if len(set(known.values())) == 1 else None
    for title, metric in COMPARED.items():
        # matplotlib would read a dollar as mathematics
        names = [f"{t.name}: {metric}".replace("$", r"\$") for t in trainings]
        rows = [
            {"step": row["step"], name: row[metric]}
            for name, training in zip(names, trainings)
            for row in training.history
            if metric in row
        ]
        if rows:
            pictures.append(_curve({title: names}, rows, line, dataset, folder))
    if not pictures:
        raise Missing("the runs reported none of the metrics that are compared")
    said = ", ".join(f"{name} at update {switch:,}" for name, switch in known.items())
    all_the_same = line is not None and len(known) == len(trainings)
    note = [Note(f"The adversary came in: {said}.")] if said and not all_the_same else []
    return [*note, Gallery(pictures, wide=True)]


def _curve(
    panel: Mapping[str, Sequence[str]],
    rows: Sequence[Mapping[str, float]],
    switch: int | None,
    dataset: str | None,
    folder: Path,
) -> Picture:
    (title, keys), last = next(iter(panel.items())), max(row["step"] for row in rows)
    change = "" if switch is None else f"; the adversary comes in at update {switch:,}"
    try:
        path = training_curves(rows, _new(folder), panel, switch, dataset=dataset)
    except ValueError as error:  # nothing finite to draw
        raise Missing(f"{title}: {error}") from error
    return plot(path, f"{title}: curves of {', '.join(keys)} over {last:,} updates{change}.")


def sample_grids(material: Material, folder: Path) -> list[Block]:
    """The samples that each evaluation kept, decoded, on a slider."""
    training = material.training
    kept = _kept_samples(training)
    if not kept:
        drawn, step = material.draw(36), material.checkpoint.step
        said = "This run kept no samples (its folder has no samples/; runs made before they were kept have none)."
        now = f"Drawn now from its checkpoint of update {step:,}, driven protocol, seed {SEEDS[0]}."
        label = _moment(training, step, material.manifest.splits["train"].rows)
        grid = _picture_of_rows(material, drawn.visible if _is_points(material) else drawn.visible_mean, label, folder)
        return [Note(said, missing=True), Note(now), grid]
    places = sorted({round(i) for i in np.linspace(0, len(kept) - 1, min(len(kept), MAX_FRAMES))})
    train_rows = material.manifest.splits["train"].rows
    frames = []
    for step, rows in [kept[i] for i in places]:
        label = _moment(training, step, train_rows)
        frames.append(_picture_of_rows(material, rows, label, folder))
    what = "v, with its noise" if _is_points(material) else "E[v|h], decoded"
    skipped = f" {len(places)} of {len(kept)} evaluations are shown." if len(places) < len(kept) else ""
    how = f"driven protocol, one seed, {what}" if training.is_beam else "one seed"
    many = f"{len(kept[-1][1])} samples of each evaluation: {how}. None was selected.{skipped}"
    return [Note(many), Slider("Evaluation", frames)]


def _kept_samples(training: Training) -> list[tuple[int, Tensor]]:
    """(step, rows) of <run>/samples, ascending; a file that cannot be read, or is not of the run's history, is left out."""
    kept = []
    for path in sorted((training.folder / "samples").glob("step_*.npy")):
        try:
            rows = torch.from_numpy(np.load(path, allow_pickle=False)).float()
            step = int(path.stem.removeprefix("step_"))
        except (OSError, ValueError, EOFError, TypeError):
            continue
        if rows.ndim == 2 and len(rows) and step <= training.steps and bool(torch.isfinite(rows).all()):
            kept.append((step, rows))
    return kept


def _moment(training: Training, step: int, train_rows: int) -> str:
    """`update 500, epoch 9.98, likelihood phase (gamma 1)`."""
    row = next((row for row in training.history if row["step"] == step), {})
    batch = training.settings.get("data", {}).get("batch_size", 1)
    epoch = row.get("epoch", step / -(-train_rows // batch))
    gamma = row.get("gamma")
    phase = f"{'likelihood' if gamma == 1 else 'adversarial'} phase (gamma {gamma:g})" if gamma is not None else ""
    return ", ".join(part for part in (f"update {step:,}", f"epoch {epoch:.4g}", phase or "before training") if part)


def _is_points(material: Material) -> bool:
    return material.manifest.kind == "points"


def _picture_of_rows(material: Material, rows: Tensor, label: str, folder: Path) -> Picture:
    """A grid of decoded rows, or points beside the density of the data."""
    if not _is_points(material):
        dataset, gan = material.manifest.dataset, material.manifest.kind == "pixels"
        pixels = rows_to_pixels(rows) if gan else material.scene.pixels(rows)
        path = image_grid(pixels, 6, _new(folder), scale=1, dataset=dataset)
        return photographs(path, f"{len(rows)} sample pictures, {label}; data: {dataset}", label, shown=1.5)
    if rows.shape[1] > 2:
        raise Missing(f"points of {rows.shape[1]} dimensions have no picture here; those of 1 or 2 have")
    data = material.train_rows[:NUM_POINTS]
    path = point_density(data, rows, _new(folder), dataset=material.manifest.dataset)
    return plot(path, f"{len(rows)} samples, {label}, beside {len(data)} training points", label)


def final_density(material: Material, folder: Path) -> list[Block]:
    """Points only: many samples of the newest checkpoint beside as many training rows."""
    picture = _picture_of_rows(material, material.draw(NUM_POINTS).visible, f"{NUM_POINTS:,} samples", folder)
    step = material.checkpoint.step
    said = f"{NUM_POINTS:,} samples (v, driven protocol, seed {SEEDS[0]}) of the checkpoint of update {step:,}:"
    return [Note(said), picture]


def nearest_neighbors(material: Material, known_ratio: float | None, folder: Path) -> list[Block]:
    """Samples of the final model, each with its nearest training photographs, and test photographs with theirs."""
    scene = material.scene
    samples = material.draw(len(scene.test) if known_ratio is None else NUM_SHOWN).visible_mean
    train = project(scene.space, scene.train)
    points, test = project(scene.space, scene.again(scene.pixels(samples))), project(scene.space, scene.test)
    some = train[:MEMORIZATION_ROWS]
    said = (
        f"Distances are Euclidean, in the {train.shape[1]} leading principal components of the whitened training latents "
        f"(the space of the scores); samples are decoded and encoded again before they are compared. All {len(train):,} "
        "training rows are searched."
    )
    count = f"{len(samples):,} samples, {len(test):,} test rows, {len(some):,} training rows"
    if known_ratio is None:
        ratio = f"{memorization_ratio(points, test, some):.3f} (computed now: {count})"
    else:
        ratio = f"{known_ratio:.3f} (from the run's scores)"
    meaning = "the samples' median distance to the nearest training row over that of test rows: 1 as new, 0 copies"
    blocks: list[Block] = [Note(f"Memorization ratio {ratio}: {meaning}."), Note(said)]
    blocks += _strips(material, f"{NUM_SHOWN} samples", samples[:NUM_SHOWN], points[:NUM_SHOWN], train, folder)
    reference = scene.test[:NUM_REFERENCE]
    named = f"For comparison: {len(reference)} test photographs"
    blocks += _strips(material, named, reference, test[:NUM_REFERENCE], train, folder, split="test")
    return blocks


def _strips(
    material: Material, name: str, rows: Tensor, points: Tensor, train: Tensor, folder: Path, split: str | None = None
) -> list[Block]:
    """A heading and one small picture per row: what it is, then its nearest training rows."""
    near = search_torch(points, train, min(NUM_NEIGHBORS, len(train)))
    distances = (train[near] - points[:, None]).norm(dim=2)
    try:
        shown = read_rows(material.pixels, "train", near.flatten().tolist())
        first = (
            material.scene.pixels(rows) if split is None else read_rows(material.pixels, split, list(range(len(rows))))
        )
        kind = "photographs" if material.manifest.dataset != STAND_IN else "drawn faces"
    except (Missing, ShardError):
        shown, first = material.scene.pixels(material.scene.train[near.flatten()]), material.scene.pixels(rows)
        kind = "rows, decoded (their pixels are not here)"
    neighbors = shown.reshape(len(rows), near.shape[1], *shown.shape[1:])
    pictures = []
    for number, (picture, others, values) in enumerate(zip(first, neighbors, distances), start=1):
        path = image_grid(torch.cat([picture[None], others]), 1 + len(others), _new(folder), scale=1)
        said = ", ".join(f"{value:.1f}" for value in values)
        one = "sample" if split is None else "test photograph"
        alt = f"{one} {number} and its {len(others)} nearest training pictures, at distances {said}"
        pictures.append(photographs(path, alt, f"{one} {number}; distances {said}"))
    return [Heading(f"{name}, then the {near.shape[1]} nearest training {kind}"), Gallery(pictures)]


def reconstructions(material: Material, folder: Path) -> list[Block]:
    """Pictures of the test partition and what the autoencoder makes of them."""
    originals = load_split(material.pixels, "test", verify=False)[:20]
    if not len(originals):
        raise Missing("the test partition has no pictures")
    decoded = material.autoencoder.decode(material.autoencoder.encode(originals))
    dataset = material.manifest.dataset
    path = reconstruction_rows(originals, decoded, _new(folder), columns=5, scale=1, dataset=dataset)
    error = ((originals.float() - decoded.float()) / 255).square().mean()
    said = f"The first {len(originals)} pictures of the test partition: {float(-10 * error.log10()):.1f} dB PSNR."
    alt = f"{len(originals)} test pictures, each with the autoencoder's reconstruction below it; data: {dataset}"
    return [Note(said), photographs(path, alt, shown=1.5)]


def _new(folder: Path) -> Path:
    return folder / f"{uuid.uuid4().hex}.png"

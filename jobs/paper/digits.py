"""Fig. 5, 6, 9 to 12 and Table II: MNIST, continuous and binary. From one likelihood checkpoint every second phase starts.

Two readings of Table II, `literal` (mnist_beam_paper) and `recommended` (mnist_beam). Their second phases, from the *same*
checkpoint: `beam`; `control`, the likelihood alone at the adversary's learning rate, without which the fall after the switch
is mostly the lower rate; `keep`, the likelihood with its own rate going on; `flipped`, the critic's sign turned around.

1 000 rows of the model against 1 000 test rows; kNN KL in nats per dimension, k = 5. Protocols: `fresh` and `driven` as
everywhere; `persistent` is the training chains, 10 snapshots 100 sweeps of the training sampler apart, each after the
recipe's own sweeps at beta = 1. `noisy` is v, `mean` is E[v | h]. Rows without noise of their own (E[v | h], binary v, a GAN's)
and the test rows beside them get normal noise of standard deviation .02 (binary: .05) before a distance is taken: two equal
rows would decide the whole estimate, at 14 nats per dimension each. `floored` counts rows that it still decides. Classes: exp
of the entropy of a small classifier's mean prediction on the means. Updates are half of Table II's.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.paper.digit_classes import (
    TrainedClassifier,
    class_scores,
    load_classifier,
    save_classifier,
    train_digit_classifier,
)
from jobs.paper.training import read_generator, read_measured, train_in
from jobs.recipes import recipe
from pipeline.comm import Comm
from pipeline.config import GANConfig, RBMConfig, RunConfig
from pipeline.data.rows import load_labels, load_rows
from pipeline.metrics.divergences import forward_reverse_kl
from pipeline.metrics.gaussians import sample_full_gaussian
from pipeline.metrics.image_features import to_pixels
from pipeline.metrics.image_scores import BOOTSTRAP, GAUSSIAN, bootstrap, score_images
from pipeline.metrics.images import precision_recall
from pipeline.metrics.likelihood import estimate_log_likelihood, estimate_log_partition
from pipeline.models.gan import generate
from pipeline.models.rbm import RBM
from pipeline.runs.trained import read_beam
from pipeline.samplers.driven import DrivenGibbs, GammaProcess, plain_gibbs
from pipeline.samplers.gibbs import ChainState
from pipeline.samplers.protocols import DRIVEN, FRESH, WideStart, draw_samples
from pipeline.streams import stream
from pipeline.training.checkpoint import Checkpoint, load_latest
from pipeline.training.loop import read_history

ROWS = 1000
NEIGHBORS = 5
SNAPSHOTS, SWEEPS_APART = 10, 100
EPOCHS_SCALE = 0.5
"""Half of Table II's updates: an epoch of the tables here is 270 updates."""
JITTER_MEANS, JITTER_BINARY = 0.02, 0.05
"""Noise on rows that have none, and on the test rows that they are compared with."""
SHOWN = 16
"""Images of a grid, as in Fig. 6."""


def fit_classifier(folder: Path, cache: Path, data: str) -> dict[str, Any]:
    """The classifier that counts the classes of samples; its accuracy on test rows."""
    rows, labels = ([load(data, split) for split in ("train", "test")] for load in (load_rows, load_labels))
    fitted = train_digit_classifier(rows[0], labels[0], rows[1], labels[1])
    save_classifier(fitted, folder / "classifier")
    truth = class_scores(fitted, rows[1][:ROWS])
    return {"accuracy": fitted.accuracy, "classes": truth.effective_classes, "confidence": truth.confidence}


def train_digits(
    folder: Path,
    cache: Path,
    recipe_name: str,
    settings: dict[str, Any],
    data: str,
    measure_every: int,
    until: int | None = None,
    fork: str | None = None,
    compared: int = ROWS,
    classifier: str = "classifier",
) -> dict[str, Any]:
    """Train one model, or one second phase from the folder `fork` beside this one; figures at every measured checkpoint."""
    config = recipe(recipe_name).override(settings)
    fitted = load_classifier(folder.parent / classifier / "classifier")
    test = load_rows(data, "test", config.data.scaling)[:compared]
    train = load_rows(data, "train", config.data.scaling)

    def measure(found: Checkpoint) -> dict[str, Any]:
        drawn = draw_digits(found, config, train, len(test))
        figures = {name: score_digits(test, rows, fitted, name.endswith("mean")) for name, rows in drawn.items()}
        shown = {name: rows[:SHOWN].numpy() for name, rows in drawn.items()}
        np.savez_compressed(folder / f"shown_{found.step:08d}.npz", **shown)  # type: ignore[arg-type]
        return figures

    origin = None if fork is None else folder.parent / fork / "run" / "switch"
    found = train_in(
        folder / "run", config, Path(data), until=until, fork=origin, measure_every=measure_every, measure=measure
    )
    history = read_history(folder / "run")
    rates = sorted(
        row["updates_per_second"] for row in history if "updates_per_second" in row and "kl_forward" not in row
    )
    scores = [row["score_particles"] for row in history if "score_particles" in row]
    return {
        "measured": read_measured(folder / "run"),
        "updates": found.step,
        "updates_per_second": rates[len(rates) // 2] if rates else None,
        "score_particles": [scores[0], scores[-1]] if scores else None,
        "visible_std": next((row["visible_std"] for row in reversed(history) if "visible_std" in row), None),
    }


def draw_digits(found: Checkpoint, config: RunConfig, train: Tensor, count: int) -> dict[str, Tensor]:
    """Rows [count, V] by protocol and kind, "driven noisy", "driven mean", ...; a GAN has "generator mean" alone."""
    if isinstance(config.model, GANConfig):
        return {"generator mean": generate(read_generator(found, config.model), count, 1, Comm())}
    assert isinstance(config.model, RBMConfig)
    rbm, chains = read_beam(found, config)
    start = WideStart.of(train)
    drawn: dict[str, Tensor] = {}
    for protocol in (FRESH, DRIVEN):
        samples = draw_samples(rbm, start, protocol, count, 1)
        drawn |= {f"{protocol.name} noisy": samples.visible, f"{protocol.name} mean": samples.visible_mean}
    visible, mean = draw_persistent(rbm, chains, config, count)
    return {**drawn, "persistent noisy": visible, "persistent mean": mean}


@torch.no_grad()
def draw_persistent(rbm: RBM, chains: ChainState, config: RunConfig, count: int) -> tuple[Tensor, Tensor]:
    """Rows v and E[v | h] [count, V] of a copy of the training chains, at SNAPSHOTS times, as the statistics see them."""
    s = config.sampler
    assert s is not None
    sampler = DrivenGibbs(GammaProcess(s.beta_std, s.beta_momentum), SWEEPS_APART, s.min_beta)
    cool = plain_gibbs(s.statistics_sweeps)
    generator = stream(1, "persistent snapshots")
    visible, means = [], []
    for _ in range(SNAPSHOTS):
        chains = sampler.run(rbm, chains, generator)
        seen = cool.run(rbm, chains, generator)
        visible.append(seen.visible)
        means.append(rbm.visible_mean(seen.hidden))
    order = torch.randperm(len(chains.visible) * SNAPSHOTS, generator=stream(1, "snapshot order"))[:count]
    return torch.cat(visible)[order], torch.cat(means)[order]


def score_digits(test: Tensor, rows: Tensor, classifier: TrainedClassifier, is_mean: bool) -> dict[str, float]:
    """Divergences per dimension, kNN precision and recall, and of means the classes and the classifier's confidence.

    Rows that are means or hold nothing but 0 and 1 get noise, and so do the test rows; see the module's docstring.
    """
    n = min(len(test), len(rows))
    real, compared = test[:n], rows[:n]
    binary = bool(((real == 0) | (real == 1)).all())
    if is_mean or binary:
        noise = stream(1, "jitter")
        std = JITTER_BINARY if binary else JITTER_MEANS
        real, compared = (x + std * torch.randn(x.shape, generator=noise) for x in (real, compared))
    forward, reverse = forward_reverse_kl(real, compared, NEIGHBORS)
    covered = precision_recall(real, compared)
    figures = {
        "forward": forward.per_dimension,
        "reverse": reverse.per_dimension,
        "precision": covered.precision,
        "recall": covered.recall,
        "floored": forward.num_floored + reverse.num_floored,
        "rows": n,
    }
    if is_mean:
        found = class_scores(classifier, rows)
        figures |= {"classes": found.effective_classes, "confidence": found.confidence}
    return figures


def score_references(folder: Path, cache: Path, data: str, compared: int = ROWS) -> dict[str, Any]:
    """What the scores are worth: those of other real rows, of a full-covariance Gaussian, and of training rows drawn again."""
    fitted = load_classifier(folder.parent / "classifier" / "classifier")
    train, test = (load_rows(data, split) for split in ("train", "test"))
    generator = stream(1, "reference rows")
    binary = bool(((test == 0) | (test == 1)).all())
    gaussian = sample_full_gaussian(train, compared, generator)
    drawn = {
        "other real rows": load_rows(data, "valid")[:compared],
        GAUSSIAN: gaussian.gt(0.5).to(gaussian) if binary else gaussian,
        BOOTSTRAP: bootstrap(train, compared, generator),
    }
    return {name: score_digits(test[:compared], rows, fitted, is_mean=True) for name, rows in drawn.items()}


def score_pictures(folder: Path, cache: Path, data: str, runs: list[str], compared: int = ROWS) -> dict[str, Any]:
    """Scores of finished runs' pictures in the fixed space of oriented gradients, with what a Gaussian and memory get.

    Driven chains, E[v | h]; a GAN's samples. `runs` are the folders beside this one.
    """
    train, test = (load_rows(data, split) for split in ("train", "test"))
    test = test[:compared]
    generator = stream(1, "picture baselines")
    drawn = {
        GAUSSIAN: sample_full_gaussian(train, len(test), generator).clamp(0, 1),
        BOOTSTRAP: bootstrap(train, len(test), generator),
    }
    for run in runs:
        found, config = _finished(folder.parent / run)
        rows = draw_digits(found, config, train, len(test))
        drawn[run] = rows["generator mean"] if isinstance(config.model, GANConfig) else rows["driven mean"]
    pictures = {name: _enlarged(rows.clamp(0, 1)) for name, rows in drawn.items()}
    scores = score_images(_enlarged(test), pictures, train_pixels=_enlarged(train[:10_000]))
    return {
        name: {
            "mmd": found.polynomial.squared,
            "mmd_error": found.polynomial.standard_error,
            "precision": found.manifold.precision,
            "recall": found.manifold.recall,
            "two_sample": found.neighbors.overall,
            "generated_accuracy": found.neighbors.generated,
            "novelty": found.novelty,
        }
        for name, found in scores.items()
    }


def score_likelihoods(folder: Path, cache: Path, data: str, runs: list[str], compared: int = ROWS) -> dict[str, Any]:
    """Log-likelihood of test rows under finished binary RBMs, nats per row, by annealed importance sampling (or exactly)."""
    train, test = (load_rows(data, split) for split in ("train", "test"))
    out = {}
    for run in runs:
        found, config = _finished(folder.parent / run)
        assert isinstance(config.model, RBMConfig)
        rbm, _ = read_beam(found, config)
        partition = estimate_log_partition(rbm, train, 100, 1000)
        estimate = estimate_log_likelihood(rbm, test[:compared], partition)
        out[run] = {
            "nats": estimate.nats,
            "data_error": estimate.data_error,
            "partition_error": estimate.partition_error,
            "method": partition.method,
            "effective_sample_size": partition.effective_sample_size,
        }
    return out


def _enlarged(rows: Tensor) -> Tensor:
    """Pictures uint8 [n, s, s] of rows [n, V]; 8x8 ones are four times as large, since a gradient's cell has eight pixels."""
    side = round(rows.shape[1] ** 0.5)
    times = 4 if side < 16 else 1
    return to_pixels(rows, side).repeat_interleave(times, 1).repeat_interleave(times, 2)


def _finished(folder: Path) -> tuple[Checkpoint, RunConfig]:
    found = load_latest(folder / "run" / "checkpoints")
    assert found is not None, f"{folder.name} comes first"
    return found, RunConfig.from_dict(found.meta["config"])

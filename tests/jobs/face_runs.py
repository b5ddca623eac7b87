"""Small real runs for reports: pictures, their latents through a packaged autoencoder, and BEAMs trained on them."""

import shutil
from pathlib import Path

import torch

from data_prep.encode import finish_encoded, latent_encoding, plan_encoded_shards, write_encoded_shard
from jobs.train import main as train
from pipeline.data.manifest import Manifest, SplitEntry, write_manifest
from pipeline.data.shards import write_shard
from pipeline.models.autoencoder import from_pixels
from pipeline.packages.autoencoder import PackagedAutoencoder
from pipeline.streams import stream

SETTINGS = (
    "model.num_hidden=8 sampler.num_chains=8 sampler.gibbs_steps=1 data.batch_size=16 critic.search=torch "
    "critic.num_neighbors=3 schedules.likelihood.updates=4 schedules.adversarial.updates=4 evaluation.every_updates=2 "
    "evaluation.num_rows=12 evaluation.num_components=5 evaluation.num_neighbors=3 checkpoint.log_every_updates=1"
)
UPDATES, SWITCH, EVALUATIONS = 8, 4, 5


def write_faces(cache: Path, autoencoder: PackagedAutoencoder, seed: int = 0) -> Path:
    """Pictures of plain colors with noise as pixel shards, their latents, and the autoencoder where jobs fetch it to."""
    pixels, latents = cache / f"faces-{seed}" / "pixels", cache / f"faces-{seed}" / "latents"
    pixels.mkdir(parents=True)
    splits = {}
    for name, count in (("train", 48), ("valid", 12), ("test", 12)):
        generator = stream(seed, name)
        colors = torch.randint(40, 200, (count, 1, 1, 3), generator=generator)
        noise = torch.randint(0, 50, (count, 64, 64, 3), generator=generator)
        splits[name] = SplitEntry(count, (write_shard(pixels / f"{name}-00000.tar", (colors + noise).byte().numpy()),))
    write_manifest(pixels, Manifest("pixels", "synthetic-faces", "0" * 64, {"seed": seed}, (64, 64, 3), splits))
    content = autoencoder.save(cache / "package")
    package = cache / "models" / f"synthetic-faces-autoencoder-v1-{content[:12]}"
    shutil.rmtree(package, ignore_errors=True)
    package.parent.mkdir(exist_ok=True)
    (cache / "package").rename(package)
    name = f"synthetic-faces-autoencoder/{content[:12]}"
    encoding = latent_encoding(name, 1024, lambda _: lambda rows, _first: autoencoder.model.encode(from_pixels(rows)))
    specs = plan_encoded_shards(pixels, latents, encoding)
    finish_encoded(pixels, latents, specs, [write_encoded_shard(spec) for spec in specs])
    return latents


def train_beam(
    data: Path, runs: Path, name: str, *settings: str, recipe: str = "faces_toy", given: str = SETTINGS
) -> Path:
    """A BEAM trained on `data` in this process; its folder."""
    command = [recipe, "--data", str(data), "--runs", str(runs), "--name", name, "--local", "--no-tracking"]
    for setting in (*given.split(), *settings):
        command += ["--set", setting]
    assert train(command) == 0
    return runs / name

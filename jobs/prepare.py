"""Raw data to shards: photographs to pixel shards, pixel shards through the autoencoder to latent shards, on Ray.

One Ray task owns one output shard and is retried when its worker dies; what is finished is skipped, so a killed run
continues and a second run does nothing. With `local=True` the same tasks run in this process.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from data_prep.celeba import (
    CelebASource,
    PixelSettings,
    finish_pixels,
    open_celeba,
    pixels_up_to_date,
    plan_pixel_shards,
    write_pixel_shard,
)
from data_prep.encode import (
    LatentSettings,
    LatentShardSpec,
    finish_latents,
    latents_up_to_date,
    plan_latent_shards,
    write_latent_shard,
)
from data_prep.manifest import ShardResult
from data_prep.mixtures import draw_mixture
from jobs.ray_session import ray_session
from jobs.summary import as_table, write_summary
from pipeline.data.mixtures import MIXTURES
from pipeline.data.shards import Manifest
from pipeline.models.autoencoder import computing_in
from pipeline.packaged import PackagedAutoencoder, load_package
from pipeline.registry import FetchedModel, fetch_model

MAX_RETRIES = 3
Spec = TypeVar("Spec")


def prepare_pixels(
    source: CelebASource, out_dir: Path, settings: PixelSettings, cache: Path, local: bool, verify: bool = False
) -> Manifest:
    """Pixel shards and manifest of a CelebA in `out_dir`; does nothing when they are there and match (`verify`: by hash)."""
    if (found := pixels_up_to_date(source, out_dir, settings, verify)) is not None:
        return found
    specs = plan_pixel_shards(source, out_dir, settings)
    results = run_tasks(write_pixel_shard, specs, "pixel shards", cache, local)
    return finish_pixels(source, out_dir, specs, results)


def latent_settings(fetched: FetchedModel) -> LatentSettings:
    """Latents are named by the encoder's content, not by its version: another registry may number it otherwise."""
    return LatentSettings(encoder_version=f"{fetched.name}/{fetched.content_hash[:12]}")


def prepare_latents(
    pixel_dir: Path, out_dir: Path, fetched: FetchedModel, cache: Path, local: bool, verify: bool = False
) -> Manifest:
    """Latent shards and manifest in `out_dir`, by a fetched autoencoder; skips what is there (`verify`: by hash)."""
    settings = latent_settings(fetched)
    if (found := latents_up_to_date(pixel_dir, out_dir, settings, verify)) is not None:
        return found
    specs = plan_latent_shards(pixel_dir, out_dir, settings)
    results = run_tasks(partial(encode_shard, model_dir=str(fetched.folder)), specs, "latent shards", cache, local)
    return finish_latents(pixel_dir, out_dir, specs, results)


def encode_shard(spec: LatentShardSpec, model_dir: str) -> ShardResult:
    """Encode one shard with the packaged autoencoder in `model_dir` (verified when loaded)."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the bits of a convolution depend on it
    try:
        packaged = load_package(model_dir, device)
        if not isinstance(packaged, PackagedAutoencoder):
            raise ValueError(f"{model_dir} holds no autoencoder but a {type(packaged).__name__}")

        def encode(images: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), computing_in(packaged.precision, device):
                return packaged.model.encode(images.to(device))

        return write_latent_shard(spec, encode)
    finally:
        torch.set_num_threads(threads)


def run_tasks(
    function: Callable[[Spec], ShardResult], specs: Iterable[Spec], what: str, cache: Path, local: bool
) -> list[ShardResult]:
    """The results of `function` on each spec, in order; a Ray task each (one CPU), or a plain loop."""
    specs = list(specs)
    if local:
        return [function(spec) for spec in tqdm(specs, desc=what, unit="shard")]
    with ray_session(cache, os.cpu_count() or 1):
        import ray

        gpus = 1 if what.startswith("latent") and ray.cluster_resources().get("GPU", 0) else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=MAX_RETRIES)(_call)
        references = [task.remote(function, spec) for spec in specs]
        for _ in tqdm(_as_done(references), total=len(specs), desc=what, unit="shard"):
            pass
        try:
            return ray.get(references)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # the task's own error, which says what and where


def _call(function: Callable[[Any], ShardResult], spec: Any) -> ShardResult:
    return function(spec)


def _as_done(references: list[Any]) -> Iterator[Any]:
    import ray

    waiting = list(references)
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1)
        yield from done


def _modified(out: Path) -> int | None:
    """When the manifest of a folder was last written; None without one."""
    manifest = out / "manifest.json"
    return manifest.stat().st_mtime_ns if manifest.exists() else None


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jobs.prepare", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    pixels = kinds.add_parser("pixels", help="photographs to uint8 64x64 pixel shards")
    pixels.add_argument("--celeba", required=True, type=Path, help="folder or zip of aligned CelebA photographs")
    pixels.add_argument("--crop", type=int, default=148, help="side of the center crop (default 148)")
    pixels.add_argument(
        "--max-bad-share", type=float, default=0.01, help="share of bad images that stops (default 0.01)"
    )
    latents = kinds.add_parser("latents", help="pixel shards to latent shards through a registered autoencoder")
    latents.add_argument("--pixels", required=True, type=Path)
    latents.add_argument("--model", default="models:/celeba-autoencoder@champion")
    mixture = kinds.add_parser("mixture", help="rows drawn from a Gaussian mixture of Table I")
    mixture.add_argument("--name", required=True, help=f"one of {', '.join(MIXTURES)}")
    mixture.add_argument("--rows", type=int, default=10_000, help="rows to train on (default 10000)")
    mixture.add_argument("--seed", type=int, default=0)
    for sub in (pixels, latents, mixture):
        sub.add_argument("--out", required=True, type=Path)
        sub.add_argument("--cache", type=Path, default=Path("cache"))
        sub.add_argument("--local", action="store_true", help="in this process, no Ray")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    cache = args.cache.resolve()
    begin, before = time.perf_counter(), _modified(args.out)
    try:
        if args.kind == "pixels":
            settings = PixelSettings(crop=args.crop, max_bad_share=args.max_bad_share)
            manifest = prepare_pixels(open_celeba(args.celeba), args.out.resolve(), settings, cache, args.local)
        elif args.kind == "mixture":
            manifest = draw_mixture(args.name, args.out.resolve(), args.rows, args.seed)
        else:
            fetched = fetch_model(args.model, cache / "models")
            manifest = prepare_latents(args.pixels.resolve(), args.out.resolve(), fetched, cache, args.local)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    skipped = before is not None and before == _modified(args.out)
    rows = {f"{name} rows": split.rows for name, split in manifest.splits.items()}
    metrics = {**rows, "problems": len(manifest.problems)}
    stage = {args.kind: {"seconds": round(time.perf_counter() - begin, 2), "skipped": skipped}}
    path = write_summary(args.out, None, stage, metrics, dataset=manifest.dataset, data_hash=manifest.hash)
    print(
        as_table(
            {"data set": manifest.dataset, "shards": manifest.kind, **metrics, "skipped": skipped, "summary": path}
        )
    )
    return 0


if __name__ == "__main__":
    from jobs.prepare import main as imported_main

    sys.exit(imported_main())

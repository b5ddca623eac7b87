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
    Encode,
    EncodedShardSpec,
    Encoding,
    encoded_up_to_date,
    finish_encoded,
    latent_encoding,
    plan_encoded_shards,
    write_encoded_shard,
)
from data_prep.mixtures import draw_mixture
from data_prep.mnist import CHECKSUMS, DIGITS, read_checksums, write_digits, write_mnist
from data_prep.tasks import ShardResult
from jobs.ray_session import ray_session
from jobs.storage import local_input, local_output, local_path, path_or_url, store_output
from pipeline.data.manifest import Manifest
from pipeline.data.mixtures import MIXTURES, GaussianMixture, make_mixture, moved
from pipeline.device.precision import computing_in
from pipeline.models.autoencoder import NUM_FEATURES, from_pixels
from pipeline.packages.autoencoder import PackagedAutoencoder
from pipeline.packages.models import load_package
from pipeline.registry.fetch import FetchedModel, fetch_model
from pipeline.runs.summary import as_table, write_summary
from pipeline.training.loop import pick_device

MAX_RETRIES = 3
GEOMETRY: dict[str, tuple[type, str]] = {
    "modes": (int, "modes on the ring"),
    "radius": (float, "of the ring"),
    "separation": (float, "between the two modes of bimodal"),
    "grid-rows": (int, "modes along y"),
    "grid-columns": (int, "modes along x"),
    "spacing": (float, "between neighbors on the grid"),
    "std": (float, "standard deviation of a mode"),
}
"""Flags of a mixture's geometry; `--rows` is the number of rows to draw."""
_SETTINGS = {"modes": "num_modes", "grid_rows": "rows", "grid_columns": "columns"}
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


def encoding_by(fetched: FetchedModel) -> Encoding:
    """Latents are named by the encoder's content, not by its version: another registry may number it otherwise."""
    version = f"{fetched.name}/{fetched.content_hash[:12]}"
    return latent_encoding(version, NUM_FEATURES, partial(load_encoder, model_dir=str(fetched.folder)))


def prepare_latents(
    pixel_dir: Path, out_dir: Path, fetched: FetchedModel, cache: Path, local: bool, verify: bool = False
) -> Manifest:
    """Latent shards and manifest in `out_dir`, by a fetched autoencoder; skips what is there (`verify`: by hash)."""
    encoding = encoding_by(fetched)
    if (found := encoded_up_to_date(pixel_dir, out_dir, encoding, verify)) is not None:
        return found
    specs = plan_encoded_shards(pixel_dir, out_dir, encoding)
    results = run_tasks(write_encoded_shard, specs, "latent shards", cache, local)
    return finish_encoded(pixel_dir, out_dir, specs, results)


def load_encoder(_spec: EncodedShardSpec, model_dir: str) -> Encode:
    """Return the encoder of the packaged autoencoder in `model_dir` (verified when loaded)."""
    device = pick_device()
    packaged = load_package(model_dir, device)
    if not isinstance(packaged, PackagedAutoencoder):
        raise ValueError(f"{model_dir} holds no autoencoder but a {type(packaged).__name__}")

    def encode(pixels: torch.Tensor, _first: int) -> torch.Tensor:
        with computing_in(packaged.precision, device):
            return packaged.model.encode(from_pixels(pixels).to(device))

    return encode


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


def find_mnist(given: Path | None) -> Path:
    """The folder of MNIST's files: the one given, else the environment's MNIST. Raises ValueError without either."""
    named = given or os.environ.get("MNIST")
    if not named:
        raise ValueError(
            f"no MNIST given: name the folder that holds {', '.join(CHECKSUMS)} with --mnist DIR, or in the environment as "
            f"MNIST; `python -m jobs.prepare digits` makes the small {DIGITS} instead, which are always at hand"
        )
    return Path(named)


def _mixture_of(args: argparse.Namespace) -> GaussianMixture:
    """The density of the command line."""
    given = {flag.replace("-", "_"): getattr(args, flag.replace("-", "_")) for flag in GEOMETRY}
    settings = {_SETTINGS.get(key, key): value for key, value in given.items() if value is not None}
    return moved(make_mixture(args.name, settings), args.shift or 0.0, args.scale)


def _numbers(text: str) -> float | list[float]:
    values = [float(part) for part in text.split(",")]
    return values[0] if len(values) == 1 else values


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jobs.prepare", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    pixels = kinds.add_parser("pixels", help="photographs to uint8 64x64 pixel shards")
    pixels.add_argument(
        "--celeba",
        required=True,
        type=path_or_url,
        help="folder or zip of CelebA's photographs, or URL",
    )
    pixels.add_argument("--crop", type=int, default=148, help="side of the center crop (default 148)")
    pixels.add_argument(
        "--max-bad-share", type=float, default=0.01, help="share of bad images that stops (default 0.01)"
    )
    latents = kinds.add_parser("latents", help="pixel shards to latent shards through a registered autoencoder")
    latents.add_argument("--pixels", required=True, type=path_or_url)
    latents.add_argument("--model", default="models:/celeba-autoencoder@champion")
    mixture = kinds.add_parser("mixture", help="rows drawn from a Gaussian mixture of Table I")
    mixture.add_argument("--name", required=True, help=f"one of {', '.join(MIXTURES)}")
    for flag, (kind, what) in GEOMETRY.items():
        mixture.add_argument(f"--{flag}", type=kind, help=f"{what} (default: Table I's)")
    mixture.add_argument(
        "--shift", type=_numbers, help="added to all rows after scaling: a number, or one per column: 5,-3"
    )
    mixture.add_argument("--scale", type=float, default=1.0, help="all rows are multiplied by it (default 1)")
    mixture.add_argument("--label", help="name of another geometry's data set (default: the mixture's)")
    mixture.add_argument("--rows", type=int, default=10_000, help="rows to train on (default 10000)")
    mixture.add_argument("--seed", type=int, default=0)
    mnist = kinds.add_parser("mnist", help="MNIST's four IDX files to rows in [0, 1], with labels")
    mnist.add_argument("--mnist", type=Path, help="folder with the four files (default: the environment's MNIST)")
    mnist.add_argument("--checksums", type=Path, help="another set of this layout: its sha256sum lines; needs --label")
    mnist.add_argument("--label", default="mnist", help="name of that other set, such as fashion-mnist")
    digits = kinds.add_parser("digits", help="scikit-learn's real 8x8 digits (not MNIST), with labels")
    for sub in (mnist, digits):
        sub.add_argument("--binary", action="store_true", help="a pixel is 1 above 0.5, else 0")
    for sub in (pixels, latents, mixture, mnist, digits):
        sub.add_argument("--out", required=True, type=path_or_url, help="folder, or a URL (s3://, gs://)")
        sub.add_argument("--cache", type=local_path, default=Path("cache"))
        sub.add_argument("--local", action="store_true", help="in this process, no Ray")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    cache = args.cache.resolve()
    begin = time.perf_counter()
    try:
        out = local_output(args.out, cache).resolve()
        before = _modified(out)
        if args.kind == "pixels":
            settings = PixelSettings(crop=args.crop, max_bad_share=args.max_bad_share)
            manifest = prepare_pixels(open_celeba(local_input(args.celeba, cache)), out, settings, cache, args.local)
        elif args.kind == "mixture":
            manifest = draw_mixture(*(_mixture_of(args), out, args.rows, args.seed), label=args.label or args.name)
        elif args.kind == "mnist":
            checksums = None if args.checksums is None else read_checksums(args.checksums)
            manifest = write_mnist(find_mnist(args.mnist), out, args.binary, checksums, args.label)
        elif args.kind == "digits":
            print(f"{DIGITS}: scikit-learn's 1 797 digits of 8x8 pixels, not MNIST", flush=True)
            manifest = write_digits(out, args.binary)
        else:
            fetched = fetch_model(args.model, cache / "models")
            manifest = prepare_latents(local_input(args.pixels, cache).resolve(), out, fetched, cache, args.local)
        store_output(args.out, out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    skipped = before is not None and before == _modified(out)
    rows = {f"{name} rows": split.rows for name, split in manifest.splits.items()}
    metrics = {**rows, "problems": len(manifest.problems)}
    stage = {args.kind: {"seconds": round(time.perf_counter() - begin, 2), "skipped": skipped}}
    path = write_summary(out, None, stage, metrics, dataset=manifest.dataset, data_hash=manifest.hash)
    print(
        as_table(
            {"data set": manifest.dataset, "shards": manifest.kind, **metrics, "skipped": skipped, "summary": path}
        )
    )
    return 0


if __name__ == "__main__":
    from jobs.prepare import main as imported_main

    sys.exit(imported_main())

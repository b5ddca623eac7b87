"""Draw pictures from a registered BEAM: `python -m jobs.sample --model models:/celeba-beam@champion --n 36 --out samples.png`.

Prints the path of the PNG. What a user can get wrong is one line on standard error and exit code 2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from pipeline.packaged import PROTOCOLS, SAMPLE_DEFAULTS, PackagedBeam
from pipeline.pictures import image_grid
from pipeline.registry import load_model


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the usage text."""
        raise ValueError(f"{message} (--help lists the options)")


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = _Parser(prog="jobs.sample", allow_abbrev=False, description="Draw samples of a trained BEAM as one PNG.")
    parser.add_argument(
        "--model", required=True, help="models:/NAME@ALIAS, models:/NAME/NUMBER, runs:/RUN/NAME or a folder"
    )
    parser.add_argument("--n", type=int, default=SAMPLE_DEFAULTS["n_samples"], help="number of pictures (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="PNG to write (%(default)s)")
    parser.add_argument(
        "--gibbs-steps", type=int, default=SAMPLE_DEFAULTS["gibbs_steps"], help="sweeps of the main stage (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=SAMPLE_DEFAULTS["seed"], help="the same seed, the same pictures")
    parser.add_argument("--protocol", choices=PROTOCOLS, default=SAMPLE_DEFAULTS["protocol"], help="(%(default)s)")
    parser.add_argument("--columns", type=int, help="pictures per row (about the square root of their number)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    return parser


def draw(arguments: argparse.Namespace) -> Path:
    """Write the picture that the options ask for, and return its path.

    Raises:
        ValueError: an unknown or damaged model, no BEAM, or a value out of its range.
    """
    if arguments.out.suffix.lower() != ".png":
        raise ValueError(f"--out is {str(arguments.out)!r}: give a name that ends in .png")
    if arguments.columns is not None and arguments.columns < 1:
        raise ValueError(f"--columns is {arguments.columns}: must be at least 1")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but torch finds no GPU here; use cpu")
    model = load_model(arguments.model, arguments.device)
    if not isinstance(model, PackagedBeam):
        raise ValueError(
            f"{arguments.model!r} is no BEAM but an autoencoder, which draws nothing; give a ...-beam model"
        )
    pixels = model.sample(arguments.n, arguments.gibbs_steps, arguments.seed, arguments.protocol)
    local = Path(arguments.model).is_dir()
    name = Path(arguments.model).resolve().name if local else arguments.model.removeprefix("models:/")
    sweeps = f"{arguments.protocol}, {arguments.gibbs_steps} sweeps, seed {arguments.seed}"
    title = f"{name}: {arguments.n} samples, {sweeps}"
    columns = arguments.columns or max(1, round(arguments.n**0.5))
    return image_grid(pixels, columns, arguments.out, title=title, dataset=model.dataset)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        print(draw(build_parser().parse_args(argv)))
    except (ValueError, OSError) as error:
        print(f"jobs.sample: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

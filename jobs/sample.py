"""Pictures from a registered BEAM: drawn anew, or made of photographs.

    python -m jobs.sample --model models:/celeba-beam@champion --n 36 --out samples.png
    python -m jobs.sample --model ... --task reconstruct --input photographs/
    python -m jobs.sample --model ... --task inpaint --input a.jpg b.jpg --cells top
    python -m jobs.sample --model ... --task interpolate --input a.jpg b.jpg --space hidden

A model of points reads and writes rows in .npy or .csv files instead. Prints the path of what it wrote. What a user can
get wrong is one line on standard error and exit code 2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from jobs.handed_in import parse_cells, parse_numbers, read_photographs, read_rows, write_rows
from pipeline.model_inputs import PROTOCOLS, SAMPLE_DEFAULTS, SPACES, as_pixels, cell_mask, clamped_pixels
from pipeline.packaged import PackagedBeam
from pipeline.pictures.grids import image_grid, reconstruction_rows
from pipeline.registry import load_model

TASKS = ("sample", "reconstruct", "inpaint", "interpolate")
_HIDDEN_GRAY = 200  # of pixels that the model has to fill in
_MAX_COLUMNS = 12


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the usage text."""
        raise ValueError(f"{message} (--help lists the options)")


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = _Parser(prog="jobs.sample", allow_abbrev=False, description="Use a trained BEAM; writes one PNG.")
    add = parser.add_argument
    add("--model", required=True, help="models:/NAME@ALIAS, models:/NAME/NUMBER, runs:/RUN/NAME or a folder")
    add("--task", choices=TASKS, default="sample", help="(%(default)s)")
    add("--out", type=Path, help="PNG to write (samples.png); of a model of points .npy or .csv (samples.npy)")
    add("--seed", type=int, default=SAMPLE_DEFAULTS["seed"], help="the same seed, the same pictures")
    add("--gibbs-steps", type=int, default=SAMPLE_DEFAULTS["gibbs_steps"], help="sweeps of sampling (%(default)s)")
    add("--columns", type=int, help="pictures per row (chosen by their number)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    sample = parser.add_argument_group("task sample")
    sample.add_argument("--n", type=int, default=SAMPLE_DEFAULTS["n_samples"], help="number of samples (%(default)s)")
    sample.add_argument("--protocol", choices=PROTOCOLS, default=SAMPLE_DEFAULTS["protocol"], help="(%(default)s)")
    given = parser.add_argument_group("the other tasks")
    given.add_argument(
        "--input", type=Path, nargs="+", help="photographs or folders of them; of points one .npy or .csv"
    )
    given.add_argument(
        "--crop", type=int, help="side in pixels of the centered square (148 for CelebA's 178x218, else the largest)"
    )
    given.add_argument(
        "--cells",
        help="inpaint: cells of 16x16 pixels that are kept, 0 to 15 row by row (0,1,4-7), or top, bottom, left, right",
    )
    given.add_argument("--units", help="inpaint, for a model of points: visible units that are kept (0,3-5)")
    given.add_argument("--paste", action="store_true", help="inpaint: show the kept pixels themselves, seams and all")
    given.add_argument("--steps", type=int, default=10, help="interpolate: pictures from the first to the second input")
    given.add_argument("--space", choices=SPACES, default=SPACES[0], help="interpolate: where the way is straight")
    return parser


def draw(arguments: argparse.Namespace) -> Path:
    """Write what the options ask for, and return its path.

    Raises:
        ValueError: an unknown or damaged model, no BEAM, an input that cannot be used, or a value out of its range.
    """
    _check_options(arguments)
    model = load_model(arguments.model, arguments.device)
    if not isinstance(model, PackagedBeam):
        raise ValueError(
            f"{arguments.model!r} is no BEAM but an autoencoder, which draws nothing; give a ...-beam model"
        )
    return _write_points(model, arguments) if model.autoencoder is None else _write_picture(model, arguments)


def _check_options(arguments: argparse.Namespace) -> None:
    """What can be refused without the model. Raises ValueError."""
    task = arguments.task
    if arguments.columns is not None and arguments.columns < 1:
        raise ValueError(f"--columns is {arguments.columns}: must be at least 1")
    if arguments.crop is not None and arguments.crop < 1:
        raise ValueError(f"--crop is {arguments.crop}: must be at least 1")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but torch finds no GPU here; use cpu")
    if (arguments.input is None) != (task == "sample"):
        raise ValueError("--task sample takes no --input" if task == "sample" else f"--task {task} needs --input")
    for name in ("cells", "units", "paste"):
        if getattr(arguments, name) and task != "inpaint":
            raise ValueError(f"--{name} is for --task inpaint, and the task is {task}")


def _write_picture(model: PackagedBeam, arguments: argparse.Namespace) -> Path:
    out = arguments.out or Path("samples.png")
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out is {str(out)!r}: give a name that ends in .png")
    if arguments.units:
        raise ValueError("--units is for models of points; name the --cells of the picture that are kept")
    name = _name(arguments.model)
    shown: dict[str, Any] = {"dataset": model.dataset}
    if arguments.task == "sample":
        pixels = model.sample(arguments.n, arguments.gibbs_steps, arguments.seed, arguments.protocol)
        sweeps = f"{arguments.protocol}, {arguments.gibbs_steps} sweeps, seed {arguments.seed}"
        columns = arguments.columns or max(1, round(arguments.n**0.5))
        return image_grid(pixels, columns, out, title=f"{name}: {arguments.n} samples, {sweeps}", **shown)
    photographs = as_pixels(read_photographs(arguments.input, arguments.crop))
    columns = arguments.columns or min(len(photographs), _MAX_COLUMNS)
    if arguments.task == "reconstruct":
        title = f"{name}: what the hidden units keep"
        return reconstruction_rows(photographs, model.reconstruct(photographs), out, title, columns, **shown)
    if arguments.task == "inpaint":
        if not arguments.cells:
            raise ValueError("--task inpaint needs --cells: those that are kept, such as top or 0-7")
        cells = parse_cells(arguments.cells)
        pixels = model.inpaint(photographs, cells, arguments.gibbs_steps, arguments.seed, arguments.paste)
        kept = torch.where(clamped_pixels(cell_mask(cells)[None]), photographs, _HIDDEN_GRAY)
        title = f"{name}: original, kept, filled in; {arguments.gibbs_steps} sweeps, seed {arguments.seed}"
        pictures = _in_turn([photographs, kept, pixels], columns)
        return image_grid(pictures, columns if columns > 1 else 3, out, title=title, **shown)  # one photograph: a row
    pixels = model.interpolate(photographs, arguments.steps, arguments.space)
    title = f"{name}: {arguments.steps} steps from one photograph to the other, {arguments.space} space"
    row = torch.cat([photographs[:1], pixels, photographs[1:]])
    return image_grid(row, arguments.columns or min(len(row), _MAX_COLUMNS), out, title=title, **shown)


def _write_points(model: PackagedBeam, arguments: argparse.Namespace) -> Path:
    out = arguments.out or Path("samples.npy")
    if arguments.cells or arguments.paste or arguments.crop or arguments.columns:
        raise ValueError(
            f"{arguments.model!r} is a model of points: --cells, --paste, --crop and --columns are for pictures"
        )
    if arguments.task == "sample":
        rows = model.sample(arguments.n, arguments.gibbs_steps, arguments.seed, arguments.protocol)
        return write_rows(rows.numpy(), out)
    given = np.concatenate([np.atleast_2d(read_rows(file)) for file in arguments.input])
    if arguments.task == "reconstruct":
        rows = model.reconstruct(given)
    elif arguments.task == "interpolate":
        rows = model.interpolate(given, arguments.steps, arguments.space)
    elif arguments.units:
        units = parse_numbers(arguments.units, "--units")
        rows = model.inpaint(given, units, arguments.gibbs_steps, arguments.seed)
    else:
        raise ValueError("--task inpaint needs --units: those that are kept, such as 0 or 0,3-5")
    return write_rows(rows.numpy(), out)


def _name(model: str) -> str:
    """How a title calls the model."""
    return Path(model).resolve().name if Path(model).is_dir() else model.removeprefix("models:/")


def _in_turn(kinds: Sequence[torch.Tensor], columns: int) -> torch.Tensor:
    """Rows of pictures of each kind below each other, `columns` of them, then the next columns; short rows end white."""
    parts = []
    for start in range(0, len(kinds[0]), columns):
        for pictures in kinds:
            part = pictures[start : start + columns]
            parts += [part, torch.full((columns - len(part), *part.shape[1:]), 255, dtype=torch.uint8)]
    return torch.cat(parts)


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

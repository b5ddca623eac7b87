"""`python -m jobs.sample`: a picture from a registered model, and one line for whatever a user gets wrong."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from point_models import point_model

from data_prep.images import crop_photograph
from jobs.sample import main
from pipeline.packages.autoencoder import PackagedAutoencoder
from pipeline.packages.models import PackagedBeam
from pipeline.registry.promotion import promote_if_better
from pipeline.registry.register import register_autoencoder, register_beam

MODEL = "models:/synthetic-faces-beam@champion"


@pytest.fixture(scope="module")
def registered(
    packaged_beam: PackagedBeam,
    packaged_autoencoder: PackagedAutoencoder,
    migrated_database: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{shutil.copy(migrated_database, folder / 'mlflow.db')}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        register_models(uri, folder, packaged_beam, packaged_autoencoder)
        yield


def register_models(uri: str, folder: Path, beam: PackagedBeam, autoencoder: PackagedAutoencoder) -> None:
    client = MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("tests", (folder / "artifacts").as_uri())).info.run_id
    score = {"run_id": run_id, "data_hash": "d", "recipe": "r", "score": 1.0, "num_rows": 9}
    register_beam(beam, **score)  # type: ignore[arg-type]
    register_autoencoder(autoencoder, **score)  # type: ignore[arg-type]
    promote_if_better("synthetic-faces-beam", "1")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.usefixtures("registered")
def test_the_picture_holds_the_samples_in_a_grid(
    packaged_beam: PackagedBeam, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "samples.png"
    options = ["--model", MODEL, "--n", "5", "--columns", "3", "--gibbs-steps", "2", "--seed", "8", "--out", str(out)]
    assert main(options) == 0
    assert capsys.readouterr().out.strip() == str(out)
    drawn = packaged_beam.sample(5, 2, 8).numpy()
    sheet = pixels(out)[-(2 * (128 + 2) - 2) - 12 : -12, 12 : 12 + 3 * 130 - 2]  # below the title: 2 rows of 3, scale 2
    for place, image in enumerate(drawn):
        top, left = place // 3 * 130, place % 3 * 130
        assert np.array_equal(sheet[top : top + 128 : 2, left : left + 128 : 2], image)
    assert (sheet[130:, 260:] == 255).all()  # no sixth picture

    assert main([*options[:-1], str(tmp_path / "again.png")]) == 0
    assert np.array_equal(pixels(tmp_path / "again.png"), pixels(out))
    assert main([*options[:-1], str(tmp_path / "other.png"), "--seed", "9"]) == 0
    assert not np.array_equal(pixels(tmp_path / "other.png"), pixels(out))


def test_a_local_folder_is_a_model_and_the_default_is_36(packaged_beam: PackagedBeam, tmp_path: Path) -> None:
    packaged_beam.save(tmp_path / "package")
    out = tmp_path / "samples.png"
    assert main(["--model", str(tmp_path / "package"), "--gibbs-steps", "1", "--out", str(out)]) == 0
    assert pixels(out).shape[1] == 6 * 130 - 2 + 2 * 12


def grid_of(path: Path, rows: int, columns: int) -> np.ndarray:
    """The pictures [rows, columns, 64, 64, 3] of a PNG at scale 2."""
    sheet = pixels(path)[-(rows * 130 - 2) - 12 : -12, 12 : 12 + columns * 130 - 2]
    return np.array(
        [[sheet[130 * r : 130 * r + 128 : 2, 130 * c : 130 * c + 128 : 2] for c in range(columns)] for r in range(rows)]
    )


@pytest.fixture
def photographs(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A folder of three photographs of two sizes, and their pixels as training takes them."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    noise = np.random.default_rng(1).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "b.png")
    Image.fromarray(noise[:100]).save(folder / "a.jpg", quality=95)
    Image.fromarray(noise[:64, :64]).save(folder / "c.png")
    (folder / "notes.txt").write_text("no photograph")
    crops = [("a.jpg", 100), ("b.png", 148), ("c.png", 64)]
    return folder, np.stack([crop_photograph((folder / name).read_bytes(), crop) for name, crop in crops])


@pytest.mark.usefixtures("registered")
def test_photographs_are_filled_in_reconstructed_and_joined(
    packaged_beam: PackagedBeam, photographs: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    folder, given = photographs
    out, options = tmp_path / "out.png", ["--model", MODEL, "--input", str(folder), "--gibbs-steps", "2"]
    assert main([*options, "--task", "inpaint", "--cells", "top", "--seed", "3", "--out", str(out)]) == 0
    original, kept, filled = grid_of(out, 3, 3)
    assert np.array_equal(original, given)
    assert np.array_equal(kept[:, :32], given[:, :32]) and (kept[:, 32:] == 200).all()
    assert np.array_equal(filled, packaged_beam.inpaint(given, list(range(8)), 2, 3))

    assert (
        main([*options, "--task", "inpaint", "--cells", "0-3,5", "--paste", "--columns", "2", "--out", str(out)]) == 0
    )
    pictures = grid_of(out, 6, 2)  # two photographs, then the third
    assert np.array_equal(pictures[2, :, :16], given[:2, :16])
    assert np.array_equal(pictures[5, 0], packaged_beam.inpaint(given, [0, 1, 2, 3, 5], 2, paste=True)[2])
    assert (pictures[3:, 1] == 255).all()

    assert main([*options, "--task", "reconstruct", "--out", str(out)]) == 0
    sheet = pixels(out)[-12 - 128 : -12 : 2, -12 - 3 * 130 + 2 : -12]
    again = np.stack([sheet[:, 130 * c : 130 * c + 128 : 2] for c in range(3)])
    assert np.array_equal(again, packaged_beam.reconstruct(given))

    two = ["--model", MODEL, "--input", str(folder / "a.jpg"), str(folder / "b.png"), "--out", str(out)]
    assert main([*two, "--task", "interpolate", "--steps", "3", "--space", "hidden"]) == 0
    row = grid_of(out, 1, 5)[0]
    assert np.array_equal(row[[0, -1]], given[:2])
    assert np.array_equal(row[1:-1], packaged_beam.interpolate(given[:2], 3, "hidden"))


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_a_model_of_points_reads_and_writes_rows(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beam = point_model("gaussian", dtype=torch.float32)
    beam.save(tmp_path / "ring")
    load = np.load if suffix == ".npy" else lambda path: np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2)
    drawn, out = tmp_path / f"drawn{suffix}", tmp_path / f"out{suffix}"
    model = ["--model", str(tmp_path / "ring")]
    assert main([*model, "--n", "5", "--seed", "4", "--out", str(drawn)]) == 0
    rows = load(drawn)
    assert np.array_equal(rows, beam.sample(5, seed=4))
    inpaint = ["--task", "inpaint", "--units", "1", "--input", str(drawn), str(drawn), "--out", str(out)]
    assert main([*model, *inpaint]) == 0
    assert np.array_equal(load(out), beam.inpaint(np.concatenate([rows, rows]), [1]))
    assert main([*model, "--task", "reconstruct", "--input", str(drawn), "--out", str(out)]) == 0
    assert np.array_equal(load(out), beam.reconstruct(rows))
    capsys.readouterr()
    wrong = {
        ("--out", "x.png"): "this is a model of points; give a name that ends in .npy or .csv",
        (
            "--task",
            "inpaint",
            "--cells",
            "top",
            "--input",
            str(drawn),
        ): "--columns are for pictures",
        ("--task", "inpaint", "--input", str(drawn)): "needs --units",
        ("--task", "reconstruct", "--input", str(tmp_path / "none.npy")): "cannot be read as rows of numbers",
        ("--task", "reconstruct", "--input", str(tmp_path / "ring" / "config.json")): "read from .npy or .csv",
        ("--task", "inpaint", "--units", "2", "--input", str(drawn)): "units has 2: must be whole numbers from 0 to 1",
    }
    for options, message in wrong.items():
        assert main([*model, *options]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "draw"], "argument --task: invalid choice: 'draw'"),
        (["--task", "reconstruct"], "--task reconstruct needs --input"),
        (["--input", "{folder}"], "--task sample takes no --input"),
        (["--cells", "top"], "--cells is for --task inpaint, and the task is sample"),
        (["--task", "reconstruct", "--input", "{folder}/none.jpg"], "none.jpg is not there: give image files"),
        (["--task", "reconstruct", "--input", "{folder}/notes.txt"], "notes.txt is not an image"),
        (["--task", "reconstruct", "--input", "{folder}/.."], "holds no photographs"),
        (["--task", "reconstruct", "--input", "{folder}", "--crop", "120"], "smaller than the crop of 120x120"),
        (["--task", "inpaint", "--input", "{folder}"], "--task inpaint needs --cells"),
        (["--task", "inpaint", "--input", "{folder}", "--cells", "middle"], "or one of top, bottom, left, right"),
        (["--task", "inpaint", "--input", "{folder}", "--cells", "9-3"], "a range goes upward"),
        (["--task", "inpaint", "--input", "{folder}", "--cells", "3,16"], "cells has 16: must be whole numbers"),
        (["--task", "inpaint", "--input", "{folder}", "--units", "3"], "--units is for models of points"),
        (["--task", "interpolate", "--input", "{folder}"], "has 3 rows: interpolation goes between two"),
        (["--task", "reconstruct", "--input", *["{folder}"] * 34], "102 photographs: one picture shows at most 100"),
    ],
)  # fmt: skip
def test_photographs_and_options_that_do_not_fit_are_one_line(
    options: list[str], message: str, photographs: tuple[Path, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", MODEL, *(option.format(folder=photographs[0]) for option in options)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "models:/synthetic-faces-beam@best"], "has @champion (version 1); versions: 1"),
        (["--model", "models:/celeba-beam@champion"], "there is no model 'celeba-beam'"),
        (["--model", "models:/synthetic-faces-autoencoder/1"], "is no BEAM but an autoencoder"),
        (["--model", "nowhere"], "'nowhere' is no model"),
        (["--model", MODEL, "--n", "0"], "n_samples = 0: must be a whole number from 1 to 10000"),
        (["--model", MODEL, "--n", "many"], "argument --n: invalid int value: 'many'"),
        (["--model", MODEL, "--gibbs-steps", "0"], "gibbs_steps = 0"),
        (["--model", MODEL, "--seed", "-1"], "seed = -1"),
        (["--model", MODEL, "--n", "42", "--protocol", "persistent"], "41 chains"),
        (["--model", MODEL, "--protocol", "x"], "argument --protocol: invalid choice: 'x'"),
        (["--model", MODEL, "--columns", "0"], "--columns is 0"),
        (["--model", MODEL, "--out", "samples.jpg"], "--out is 'samples.jpg': give a name that ends in .png"),
        (["--model", MODEL, "--n", "1", "--out", "/dev/null/x.png"], "/dev/null"),
        (["--model", MODEL, "--quick"], "unrecognized arguments: --quick"),
        ([], "the following arguments are required: --model"),
    ],
)  # fmt: skip
def test_what_a_user_gets_wrong_is_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(options) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and not list(tmp_path.glob("*.png"))
    assert captured.err.startswith("jobs.sample: ") and captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.usefixtures("registered")
def test_the_command_from_a_shell(tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    command = [
        sys.executable,
        "-m",
        "jobs.sample",
        "--model",
        MODEL,
        "--n",
        "4",
        "--gibbs-steps",
        "1",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(out), "")
    assert out.is_file()

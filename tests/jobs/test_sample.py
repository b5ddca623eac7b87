"""`python -m jobs.sample`: a picture from a registered model, and one line for whatever a user gets wrong."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from jobs.sample import main
from pipeline.packaged import PackagedAutoencoder, PackagedBeam
from pipeline.registry import promote_if_better, register_autoencoder, register_beam

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

"""`python -m jobs.models`: the registry as people use it, and one line for whatever they get wrong."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from registering import BEAM, register, start_run

from jobs.models import main
from pipeline.packages.autoencoder import PackagedAutoencoder
from pipeline.packages.models import PackagedBeam
from pipeline.registry.fetch import load_model
from pipeline.registry.promotion import promote_if_better
from pipeline.registry.register import register_autoencoder

CODER = "synthetic-faces-autoencoder"


@pytest.fixture(scope="module")
def store(
    packaged_beam: PackagedBeam,
    packaged_autoencoder: PackagedAutoencoder,
    migrated_database: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str]:
    """A database with an autoencoder, and BEAMs with scores 50 (champion), 40, 49 and, on other data, 30; the run."""
    file = Path(shutil.copy(migrated_database, tmp_path_factory.mktemp("store") / "mlflow.db"))
    uri = f"sqlite:///{file}"
    run = start_run(uri)
    more = dataclasses.replace(
        packaged_beam, run=packaged_beam.run.override({"sampler.gibbs_steps": 7}), metrics={"recall": 0.5}
    )
    for beam, score, data in (
        (packaged_beam, 50.0, "data one"),
        (more, 40.0, "data one"),
        (packaged_beam, 49.0, "data one"),
        (packaged_beam, 30.0, "data two"),
    ):
        register(beam, run, score, data, tracking=uri)
    given: dict[str, Any] = {"run_id": run, "data_hash": "d", "recipe": "r", "score": 0.01, "num_rows": 9}
    register_autoencoder(packaged_autoencoder, **given, tracking=uri)
    promote_if_better(BEAM, "1", tracking=uri)
    return file, run


@pytest.fixture
def run(store: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of the database as the default, and the id of its run."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(store[0], tmp_path / 'mlflow.db')}")
    monkeypatch.chdir(tmp_path)
    return store[1]


def told(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(options) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def document(capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    return json.loads(told(capsys, *options, "--json"))


@pytest.mark.usefixtures("run")
def test_list_shows_every_version_with_its_score(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in told(capsys, "list").splitlines()]
    assert [line[:2] for line in lines[1:]] == [[CODER, "1"], *([BEAM, n] for n in "4321")]
    assert lines[-1][2:] == [
        "champion",
        "synthetic-faces",
        "data",
        "one",
        "tiny",
        "frechet_latent",
        "50",
        "±",
        "2",
        "500",
        *lines[-1][-2:],
    ]
    assert [v["version"] for v in document(capsys, "list", "--name", "*-beam")] == ["4", "3", "2", "1"]
    last = document(capsys, "list")[-1]
    assert (last["score"], last["spread"], last["aliases"]) == (50.0, 2.0, ["champion"])
    assert last["tags"]["data_hash"] == "data one"


def test_show_names_one_version_however_it_is_named(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    for ref in (BEAM, f"{BEAM}@champion", f"models:/{BEAM}/1"):
        assert document(capsys, "show", ref)["version"] == "1"
    assert document(capsys, "show", f"runs:/{run}/beam")["version"] == "4"
    text = told(capsys, "show", BEAM, "--verify")
    for part in (
        f"models:/{BEAM}/1",
        "frechet_latent 50 ± 2, 500 rows",
        "every file's hash",
        "there was no champion",
        run,
    ):
        assert part in text
    assert told(capsys, "show", BEAM, "--card").startswith(f"# {BEAM}\n")
    shown = document(capsys, "show", BEAM, "--verify")
    assert shown["verified"] is True and shown["card"].startswith("# ")
    assert [change["kind"] for change in shown["champions"]] == ["promoted"]


@pytest.mark.usefixtures("run")
def test_compare_says_which_is_better_and_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "compare", BEAM, f"{BEAM}/2")
    assert f"models:/{BEAM}/2 is better than models:/{BEAM}/1 by 10, beyond the spread 2" in text
    (line,) = [line.split() for line in text.splitlines() if line.startswith("sampler.gibbs_steps")]
    assert line[1:] == ["100", "7"]
    both = document(capsys, "compare", f"{BEAM}/1", f"{BEAM}/2")
    assert (both["comparable"], both["better"], both["difference"]) == (True, f"models:/{BEAM}/2", -10.0)
    assert both["settings"] == {"sampler.gibbs_steps": [100, 7]} and both["metrics"][1] == {"recall": 0.5}
    assert "by 1, within the spread 2" in told(capsys, "compare", f"{BEAM}/3", f"{BEAM}/1")
    assert "equal scores" in told(capsys, "compare", BEAM, BEAM)
    text = told(capsys, "compare", f"{BEAM}/4", BEAM)
    assert "is not comparable with" in text and "another data" in text and "their settings are the same" in text
    assert document(capsys, "compare", CODER + "/1", BEAM)["comparable"] is False


@pytest.mark.usefixtures("run")
def test_promote_and_rollback(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"champion of {BEAM}: version 2: frechet_latent 40 is below 50" in told(capsys, "promote", f"{BEAM}/2")
    assert told(capsys, "promote", f"{BEAM}/2") == f"champion of {BEAM}: version 2: already\n"
    for worse, reason in ((3, "49 is not below 40"), (4, "another data")):
        assert main(["promote", f"{BEAM}/{worse}", "--json"]) == 2
        captured = capsys.readouterr()
        assert json.loads(captured.out)["promoted"] is False and captured.err.count("\n") == 1
        assert f"models:/{BEAM}/{worse} is not promoted: " in captured.err and reason in captured.err
    forced = document(capsys, "promote", f"{BEAM}/4", "--force", "--why", "new data")
    assert forced["forced"] and forced["promoted"] and "forced: new data" in forced["reason"]
    text = told(capsys, "show", BEAM)
    assert "promotion forced" in text and "promoted, forced  2       new data" in text
    assert told(capsys, "rollback", BEAM) == f"champion of {BEAM}: version 2 again; it was version 4\n"
    assert document(capsys, "rollback", f"models:/{BEAM}") == {"name": BEAM, "version": "1", "replaced": "2"}
    assert main(["rollback", BEAM]) == 2 and "no champion before version 1" in capsys.readouterr().err


@pytest.mark.usefixtures("run")
def test_pull_makes_a_folder_that_says_how_to_load_it(
    packaged_beam: PackagedBeam, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys, "pull", f"{BEAM}/1", "--out", "my model")
    assert f"load_model({str(tmp_path / 'my model')!r})" in text and "jobs.sample --model" in text
    loaded = load_model(str(tmp_path / "my model"), tracking="http://127.0.0.1:9")
    assert isinstance(loaded, PackagedBeam) and loaded.metrics == packaged_beam.metrics
    again = document(capsys, "pull", f"{BEAM}/1", "--out", "my model")
    assert again["folder"] == str(tmp_path / "my model") and again["version"] == "1"
    assert "jobs.sample" not in told(capsys, "pull", f"{CODER}/1", "--out", "coder")


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["list", "--name", "beam"], f"no model is named 'beam'; there is {BEAM}"),
        (["show", "synthetic-face-beam"], f"there is no model 'synthetic-face-beam'; there is {BEAM}"),
        (["show", f"{BEAM}@best"], "has @champion (version 1); versions: 1, 2, 3, 4"),
        (["show", f"{BEAM}/9"], "versions: 1, 2, 3, 4"),
        (["show", CODER], "has no aliases; versions: 1"),
        (["show", "a/b/c"], "'a/b/c' names no version: write"),
        (["show", ""], "'' names no version: write"),
        (["show", "run:0"], "newest runs with versions"),
        (["compare", BEAM], "required: OTHER"),
        (["promote", BEAM, "--force"], "--force needs --why TEXT"),
        (["promote", BEAM, "--why", "x"], "--why goes with --force"),
        (["promote", f"{BEAM}/2", "--force", "--why", " "], "why has 0 characters"),
        (["rollback", f"{BEAM}/2"], "rollback takes the name of a model"),
        (["rollback", CODER], "had no champion yet"),
        (["pull", BEAM], "required: --out"),
        (["pull", BEAM, "--out", "mlflow.db"], "'mlflow.db' is a file"),
        (["pull", BEAM, "--out", "."], "'.' is not empty"),
        (["pull", BEAM, "--out", "/dev/null/x"], "/dev/null"),
        (["drop", BEAM], "invalid choice: 'drop'"),
        ([], "required: COMMAND"),
    ],
)  # fmt: skip
def test_what_a_user_gets_wrong_is_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("jobs.models: ") and captured.err.count("\n") == 1
    assert message in captured.err


def test_a_server_that_is_away_is_named_without_its_password(
    dead_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "--tracking", dead_server.replace("//", "//me:secret@")]) == 2
    error = capsys.readouterr().err
    assert dead_server.replace("//", "//***@") in error and "secret" not in error and error.count("\n") == 1


def test_an_empty_registry_is_no_error_and_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"sqlite:///{tmp_path / 'new.db'}"
    assert told(capsys, "list", "--tracking", uri) == f"no models at {uri}\n"
    assert document(capsys, "list", "--tracking", uri) == []
    for options in (["rollback", BEAM], ["show", BEAM], ["promote", BEAM], ["list", "--name", "x"]):
        assert main([*options, "--tracking", uri]) == 2
        assert "no model" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_damaged_version_is_found_by_verify(
    packaged_beam: PackagedBeam, tracking: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = register(packaged_beam, start_run(tracking))
    (file,) = (tmp_path / "my store").rglob("chains.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    assert "verified" not in told(capsys, "show", version.uri)
    for options in (["show", version.uri, "--verify"], ["pull", version.uri, "--out", str(tmp_path / "out")]):
        assert main(options) == 2
        error = capsys.readouterr().err
        assert f"'{version.uri}' cannot be used" in error and "chains.safetensors is damaged" in error
    assert not (tmp_path / "out").exists()


def test_a_tag_with_a_password_does_not_show_it(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    MlflowClient().set_model_version_tag(BEAM, "1", "from", "https://me:secret@host/data")
    for options in (["show", BEAM], ["show", BEAM, "--json"], ["list", "--json"]):
        assert "secret" not in told(capsys, *options)


@pytest.mark.usefixtures("run")
def test_the_command_from_a_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.models", "list", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and len(json.loads(done.stdout)) == 5

"""The registry: what is registered with which card, what is found by which name, and models that load in a clean process."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from registering import BEAM, register, start_run

from pipeline.packages.autoencoder import PackagedAutoencoder
from pipeline.packages.files import PackageError
from pipeline.packages.models import PackagedBeam, load_package, verify_package
from pipeline.registry.fetch import fetch_model, load_model, pull_model
from pipeline.registry.promotion import promote_if_better, set_candidate
from pipeline.registry.register import register_autoencoder, register_beam
from pipeline.registry.versions import RegistryError, find_model, find_version, list_versions, model_name


@pytest.fixture
def run_id(tracking: str) -> str:
    return start_run(tracking)


def test_names_depend_on_the_data_set() -> None:
    assert model_name("celeba", "beam") == "celeba-beam"
    assert model_name("synthetic-faces", "autoencoder") == "synthetic-faces-autoencoder"
    for dataset, kind in (("celeba", "gan"), ("Celeb A", "beam"), ("", "beam"), ("a/b", "beam")):
        with pytest.raises(ValueError, match=r"kind 'gan' is unknown|label .* must be words"):
            model_name(dataset, kind)


def test_a_registered_version_is_found_by_number_tags_alias_and_run(
    packaged_beam: PackagedBeam, run_id: str, tmp_path: Path
) -> None:
    assert find_version(BEAM, "1") is None
    version = register(packaged_beam, run_id, 50.0)
    assert (version.name, version.version, version.aliases, version.run_id) == (BEAM, "1", (), run_id)
    assert version.uri == "models:/synthetic-faces-beam/1"
    tags = {"data_hash": "data one", "dataset": "synthetic-faces", "recipe": "tiny", "score_name": "frechet_latent"}
    assert version.tags == {
        **tags, "score": "50.0", "score_rows": "500", "score_spread": "2.0", "content_hash": version.tags["content_hash"]
    }  # fmt: skip
    set_candidate(BEAM, "1")
    assert promote_if_better(BEAM, "1").promoted
    for wanted in ("1", tags, {}):
        found = find_version(BEAM, wanted)
        assert found is not None and found.version == "1" and found.aliases == ("candidate", "champion")
    assert find_version(BEAM, "2") is None and find_version(BEAM, {**tags, "recipe": "x"}) is None
    assert find_model(f"models:/{BEAM}@candidate").version == "1"
    expected = packaged_beam.sample(2, 1)
    for uri in (f"models:/{BEAM}@champion", f"models:/{BEAM}/1", f"runs:/{run_id}/beam"):
        loaded = load_model(uri)
        assert isinstance(loaded, PackagedBeam) and torch.equal(loaded.sample(2, 1), expected)
    files = [path for path in (tmp_path / "my store" / "mlartifacts").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {"", ".md", ".txt", ".yaml", ".json", ".safetensors"}
    assert [path.name for path in files if not path.suffix] == ["MLmodel"]
    for path in files:  # no place of this machine in what travels
        assert path.suffix == ".safetensors" or str(tmp_path) not in path.read_text()


def test_the_same_model_is_registered_once(packaged_beam: PackagedBeam, run_id: str) -> None:
    assert register(packaged_beam, run_id).version == register(packaged_beam, run_id).version == "1"
    assert register(packaged_beam, run_id, score=49.0).version == "2"
    assert register(packaged_beam, run_id, data_hash="data two").version == "3"


def test_models_of_two_data_sets_never_meet(
    packaged_beam: PackagedBeam, packaged_autoencoder: PackagedAutoencoder, run_id: str
) -> None:
    photographs = dataclasses.replace(packaged_beam, dataset="celeba")
    names = [register(model, run_id).name for model in (packaged_beam, photographs)]
    assert names == ["synthetic-faces-beam", "celeba-beam"]
    a = register_autoencoder(packaged_autoencoder, run_id=run_id, data_hash="d", recipe="r", score=0.01, num_rows=9)
    assert a.name == "synthetic-faces-autoencoder" and a.tags["score_name"] == "reconstruction_mse"
    assert isinstance(load_model(a.uri), PackagedAutoencoder)
    assert promote_if_better("celeba-beam", "1").promoted
    assert find_version("synthetic-faces-beam", "1").aliases == ()  # type: ignore[union-attr]


def test_a_wrong_uri_says_what_there_is(packaged_beam: PackagedBeam, run_id: str) -> None:
    for score in (50.0, 60.0):
        register(packaged_beam, run_id, score)
    promote_if_better(BEAM, "1")
    wrong = {
        f"models:/{BEAM}@champoin": r"models:/.* is not there; .* has @champion \(version 1\); versions: 1, 2",
        f"models:/{BEAM}/7": r"is not there; .* versions: 1, 2",
        f"models:/{BEAM}": r"is not there; .* versions: 1, 2",
        "models:/synthetic-face-beam@champion": r"is no model 'synthetic-face-beam'; there is synthetic-faces-beam",
        "models:/zzz/1": r"there is no model 'zzz'; there is synthetic-faces-beam",
        "models:/a/b/c": r"names no version: write models:/NAME@ALIAS or models:/NAME/NUMBER",
        f"runs:/{run_id}/bean": r"has no model 'bean'; its models: beam",
        "runs:/" + "0" * 32 + "/beam": r"not found",
        "no/such/folder": r"is no model: give models:/NAME@ALIAS",
    }
    for uri, message in wrong.items():
        with pytest.raises(RegistryError, match=message):
            load_model(uri)


def test_looking_up_makes_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new.db")
    for uri in (f"models:/{BEAM}@champion", "runs:/" + "0" * 32 + "/beam"):
        with pytest.raises(RegistryError, match="there is no model"):
            load_model(uri)
    assert find_version(BEAM, "1") is None
    assert not list(tmp_path.iterdir())


def test_an_unreachable_server_is_one_clear_error(dead_server: str) -> None:
    with pytest.raises(RegistryError, match=r"cannot be looked up .* check the server"):
        load_model(f"models:/{BEAM}@champion", tracking=dead_server)


def test_a_server_given_by_argument_needs_no_default(
    packaged_beam: PackagedBeam, run_id: str, tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/another.db")
    monkeypatch.chdir(tmp_path)
    version = register(packaged_beam, run_id, tracking=tracking)
    assert promote_if_better(BEAM, version.version, tracking=tracking).promoted
    for uri in (f"models:/{BEAM}@champion", f"runs:/{run_id}/beam"):
        assert isinstance(load_model(uri, tracking=tracking), PackagedBeam)
    assert fetch_model(version.uri, "cache", tracking=tracking).version == "1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "my store"]


def test_a_damaged_registered_model_is_named(packaged_beam: PackagedBeam, run_id: str, tmp_path: Path) -> None:
    register(packaged_beam, run_id)
    (file,) = (tmp_path / "my store").rglob("rbm.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 0x80
    file.write_bytes(bytes(data))
    with pytest.raises(PackageError, match=r"rbm.safetensors is damaged"):
        load_model(f"models:/{BEAM}/1")
    with pytest.raises(PackageError, match=r"rbm.safetensors is damaged"):
        fetch_model(f"models:/{BEAM}/1", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_fetched_model_is_kept_verified_and_repaired(
    packaged_beam: PackagedBeam, run_id: str, tmp_path: Path
) -> None:
    version = register(packaged_beam, run_id)
    fetched = fetch_model(version.uri, tmp_path / "cache")
    assert (fetched.name, fetched.version, fetched.aliases) == (BEAM, "1", ())
    assert fetched.content_hash == version.tags["content_hash"] == verify_package(fetched.folder)
    written = (fetched.folder / "rbm.safetensors").stat().st_mtime_ns
    assert fetch_model(version.uri, tmp_path / "cache") == fetched
    assert (fetched.folder / "rbm.safetensors").stat().st_mtime_ns == written
    (fetched.folder / "rbm.safetensors").write_bytes(b"damaged")
    assert fetch_model(version.uri, tmp_path / "cache") == fetched
    assert isinstance(load_package(fetched.folder), PackagedBeam)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [fetched.folder.name]


CLEAN_PROCESS = """
import hashlib, json, sys
import mlflow
from mlflow import MlflowClient
run = sys.argv[1]
assert "pipeline" not in sys.modules
beam = mlflow.pyfunc.load_model("models:/synthetic-faces-beam@champion")
draw = lambda **params: hashlib.sha256(beam.predict(None, params={"n_samples": 4, "gibbs_steps": 3, **params}).tobytes())
defaults = beam.metadata.get_params_schema().to_dict()
images = beam.predict(None, params={"n_samples": 2})
try:
    beam.predict(None, params={"n_samples": 0})
except ValueError as error:
    refused = str(error)
coder = mlflow.pyfunc.load_model("models:/synthetic-faces-autoencoder/1")
again = coder.predict(images)
print(json.dumps({
    "same": [draw(seed=1).hexdigest(), draw(seed=1).hexdigest()], "other": draw(seed=2).hexdigest(),
    "shape": [str(images.dtype), *images.shape], "again": [str(again.dtype), *again.shape],
    "defaults": {d["name"]: d["default"] for d in defaults}, "refused": refused,
}))
"""


def test_models_load_in_a_clean_process_with_the_installed_package_only(
    packaged_beam: PackagedBeam, packaged_autoencoder: PackagedAutoencoder, run_id: str, tmp_path: Path
) -> None:
    version = register(packaged_beam, run_id)
    register_autoencoder(packaged_autoencoder, run_id=run_id, data_hash="d", recipe="r", score=0.01, num_rows=9)
    promote_if_better(version.name, version.version)
    elsewhere = tmp_path / "my store"  # the folder of the database: MLflow's own default finds it
    kept = ("PATH", "HOME", "LANG", "TMPDIR")
    environment = {key: value for key, value in os.environ.items() if key in kept}
    command = [sys.executable, "-c", CLEAN_PROCESS, run_id]
    dead = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        command, cwd=elsewhere, env={**environment, "OMP_NUM_THREADS": "1", **dead}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["same"][0] == told["same"][1] != told["other"]
    assert told["shape"] == ["uint8", 2, 64, 64, 3] == told["again"]
    assert told["defaults"].items() >= {"n_samples": 36, "gibbs_steps": 100, "seed": 0, "protocol": "driven"}.items()
    assert "n_samples = 0: must be a whole number" in told["refused"]


def test_one_version_has_many_names(packaged_beam: PackagedBeam, run_id: str) -> None:
    first, second = register(packaged_beam, run_id, 50.0), register(packaged_beam, run_id, 40.0)
    with pytest.raises(RegistryError, match=rf"'{BEAM}' is not there; .* has no aliases; versions: 1, 2"):
        find_model(BEAM)
    promote_if_better(BEAM, "1")
    for ref in (BEAM, f"{BEAM}@champion", f"{BEAM}/1", f"models:/{BEAM}/1"):
        assert find_model(ref).version == first.version
    for ref in (f"run:{run_id}", f"runs:/{run_id}/beam"):
        assert find_model(ref).version == second.version
    assert [v.version for v in list_versions()] == ["2", "1"] == [v.version for v in list_versions("synthetic-*")]
    assert list_versions()[1].aliases == ("champion",)
    for ref in ("run:" + "0" * 32, "runs:/" + "0" * 32 + "/beam", "run:x' OR 1"):
        with pytest.raises(RegistryError, match=rf"newest runs with versions: {run_id} \({BEAM}/2\)"):
            find_model(ref)
    with pytest.raises(RegistryError, match=r"no model is named 'beam'; there is synthetic-faces-beam"):
        list_versions("beam")
    register(dataclasses.replace(packaged_beam, dataset="celeba"), run_id)
    with pytest.raises(RegistryError, match=r"produced versions of 2 models: name one of"):
        find_model(f"run:{run_id}")


def test_the_card_goes_with_the_version_and_is_no_part_of_its_identity(
    packaged_beam: PackagedBeam, run_id: str, tmp_path: Path
) -> None:
    picture = tmp_path / "a b.png"
    picture.write_bytes(b"a picture")
    given = {"run_id": run_id, "data_hash": "d", "recipe": "r", "score": 1.0, "num_rows": 9}
    long = "# card\n" + "a line of text\n" * 600
    version = register_beam(packaged_beam, card=long, pictures=[picture], **given)  # type: ignore[arg-type]
    assert register_beam(packaged_beam, card="# other", **given).version == version.version  # type: ignore[arg-type]
    card = find_model(version.uri).card
    assert card == version.card and len(card) <= 5000 and card.startswith("# card\na line of text\n")
    assert card.endswith("a line of text\n\n(cut here; whole in MODEL_CARD.md beside the model)")
    folder = pull_model(version.uri, tmp_path / "pulled").folder
    assert (folder / "MODEL_CARD.md").read_text() == long and (folder / "a b.png").read_bytes() == b"a picture"

    made = register_beam(packaged_beam, **{**given, "score": 2.0}).card  # type: ignore[arg-type]
    for text in (
        "drawn stand-in faces, not photographs",
        "| frechet_latent (the score) | 2 | 9 |",
        "`model.num_hidden`",
    ):
        assert text in made
    for wrong in ([tmp_path / "gone.png"], [tmp_path / "x.pkl"], [picture, picture]):
        with pytest.raises(RegistryError, match=r"is not there|pictures of the types|two pictures are named"):
            register_beam(packaged_beam, pictures=wrong, **{**given, "score": 3.0})  # type: ignore[arg-type]


def test_the_snippets_of_a_card_run(
    packaged_beam: PackagedBeam, packaged_autoencoder: PackagedAutoencoder, run_id: str, tracking: str
) -> None:
    given = {"run_id": run_id, "data_hash": "d", "recipe": "r", "score": 1.0, "num_rows": 9}
    beam, coder = register_beam(packaged_beam, **given), register_autoencoder(packaged_autoencoder, **given)  # type: ignore[arg-type]
    for version, shape in ((beam, (36, 64, 64, 3)), (coder, (1, 64, 64, 3))):
        promote_if_better(version.name, version.version)
        snippets = re.findall(r"```python\n(.*?)```", version.card, flags=re.S)
        assert len(snippets) == 2
        for snippet in snippets:
            names: dict = {}
            exec(snippet, names)
            assert tuple(names["rows"].shape) == shape and "uint8" in str(names["rows"].dtype)

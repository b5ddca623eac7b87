"""The registry: who becomes champion, what is found by which name, and models that load in a clean process."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from pipeline.data.shards import canonical_hash
from pipeline.packaged import PackagedAutoencoder, PackagedBeam, PackageError, load_package, verify_package
from pipeline.registry import (
    ModelVersionInfo,
    RegistryError,
    champion_history,
    fetch_model,
    find_model,
    find_version,
    list_versions,
    load_model,
    model_name,
    promote,
    promote_if_better,
    pull_model,
    register_autoencoder,
    register_beam,
    rollback,
    set_candidate,
    verify_model,
)
from pipeline.scores import compare_scores, score_tags

BEAM = "synthetic-faces-beam"


@pytest.fixture
def run_id(tracking: str) -> str:
    client = MlflowClient(tracking)
    place = Path(tracking.removeprefix("sqlite:///")).parent / "mlartifacts"
    return client.create_run(client.create_experiment("tests", place.as_uri())).info.run_id


def register(
    beam: PackagedBeam, run_id: str, score: float = 50.0, data_hash: str = "data one", tracking: str | None = None
) -> ModelVersionInfo:
    return register_beam(
        beam,
        run_id=run_id,
        data_hash=data_hash,
        recipe="tiny",
        score=score,
        num_rows=500,
        spread=2.0,
        tracking=tracking,
    )


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


def test_the_champion_is_the_best_on_the_same_data(packaged_beam: PackagedBeam, run_id: str) -> None:
    def champion() -> str:
        return find_model(f"models:/{BEAM}@champion").version

    tries = [  # score, data, promoted, champion afterwards, reason
        (50.0, "data one", True, "1", "there was no champion"),
        (55.0, "data one", False, "1", r"55 is not below 50 of the champion \(version 1\)"),
        (50.0 - 1e-9, "data one", True, "3", "within the spread 2"),
        (40.0, "data two", False, "3", r"not comparable .* another data \(data_hash data two, its is data one\)"),
        (30.0, "data one", True, "5", "30 is below 50"),
        (float("nan"), "data one", False, "5", "not a finite number"),
    ]
    for number, (score, data, promoted, after, reason) in enumerate(tries, start=1):
        version = register(packaged_beam, run_id, score, data)
        assert version.version == str(number)
        result = promote_if_better(BEAM, version.version)
        assert result.promoted is promoted and champion() == after, result
        assert re.search(reason, result.reason), result.reason
        assert find_model(version.uri).tags["promotion"] == result.reason
    assert promote_if_better(BEAM, "5") == (True, find_model(f"models:/{BEAM}/5").tags["promotion"])


def test_scores_of_other_kinds_or_numbers_of_rows_are_not_compared() -> None:
    champion = score_tags("d", "r", "frechet_latent", 50.0, 500, None)
    for changes in ({"score_name": "kl_sum"}, {"score_rows": "400"}, {"data_hash": "e"}):
        result = compare_scores({**champion, "score": "1.0", **changes}, champion, "4")
        assert not result.promoted and next(iter(changes)) in result.reason
    assert compare_scores({**champion, "score": "49.0"}, champion).promoted
    assert not compare_scores(champion, champion).promoted
    assert not compare_scores({**champion, "score": "inf"}, None).promoted
    assert compare_scores({**champion, "score": repr(50.0 - 1e-14)}, champion).promoted  # read back exactly


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


def test_beyond_the_spread_is_more_than_below() -> None:
    champion = score_tags("d", "r", "frechet_latent", 50.0, 500, 1.0)
    for score, spread, below, beyond in ((47.0, 2.0, True, True), (48.0, 2.0, True, False), (51.0, None, False, False)):
        new = score_tags("d", "r", "frechet_latent", score, 500, spread)
        assert compare_scores(new, champion).promoted is below
        assert compare_scores(new, champion, beyond_spread=True).promoted is beyond
    bare = {key: value for key, value in champion.items() if key != "score_spread"}
    result = compare_scores({**bare, "score": "1.0"}, bare, beyond_spread=True)
    assert not result.promoted and "no spread is known" in result.reason
    assert compare_scores(champion, None, beyond_spread=True).promoted
    edited = compare_scores(champion, {**champion, "score": "best"})
    assert edited.promoted and "no finite number" in edited.reason


@pytest.fixture
def versions(run_id: str, tracking: str) -> MlflowClient:
    """Five versions with scores 50, 40, 30, 20, 60, without files."""
    client = MlflowClient(tracking)
    client.create_registered_model(BEAM)
    for score in (50.0, 40.0, 30.0, 20.0, 60.0):
        client.create_model_version(BEAM, "/nowhere", run_id, score_tags("d", "r", "frechet_latent", score, 500, 2.0))
    return client


def champion() -> str:
    return find_model(f"models:/{BEAM}@champion").version


def test_rollbacks_go_back_one_champion_at_a_time(versions: MlflowClient) -> None:
    for version in "123":
        assert promote_if_better(BEAM, version).promoted
    assert rollback(BEAM) == ("2", "3") and champion() == "2"
    assert rollback(BEAM) == ("1", "2") and champion() == "1"
    with pytest.raises(RegistryError, match=r"had no champion before version 1: promote a version"):
        rollback(BEAM)
    assert promote_if_better(BEAM, "4").promoted  # on top of 1: what was rolled back is not returned to
    assert rollback(BEAM) == ("1", "4")
    again = promote_if_better(BEAM, "3")
    assert again.promoted and "it had been rolled back (20" in again.reason
    assert rollback(BEAM) == ("1", "3")
    kinds = [(change.version, change.kind, change.before) for change in champion_history(BEAM)]
    assert kinds[:5] == [
        ("1", "promoted", None),
        ("2", "promoted", "1"),
        ("3", "promoted", "2"),
        ("2", "rolled back", "3"),
        ("1", "rolled back", "2"),
    ]
    tags = versions.get_registered_model(BEAM).tags
    assert len(tags) == len(kinds) == 9 and json.loads(tags["champion.0001"])["time"].endswith("+00:00")


def test_a_forced_promotion_says_so(versions: MlflowClient) -> None:
    assert promote_if_better(BEAM, "2").promoted
    result = promote(BEAM, "5", why="its pictures\nare better")
    assert result.promoted and champion() == "5"
    tags = find_model(f"models:/{BEAM}/5").tags
    assert tags["promotion"] == result.reason == (
        "forced: its pictures are better (by the scores: frechet_latent 60 is not below 40 of the champion (version 2))"
    )
    assert tags["promotion_forced"] == "true" and re.fullmatch(r"20\d\d-.*\+00:00", tags["promotion_time"])
    assert champion_history(BEAM)[-1].forced and champion_history(BEAM)[-1].why == "its pictures are better"
    assert rollback(BEAM) == ("2", "5")
    assert not promote_if_better(BEAM, "5").promoted
    assert find_model(f"models:/{BEAM}/5").tags["promotion_forced"] == "false"
    for why in ("", "  ", "x" * 1001):
        with pytest.raises(ValueError, match=r"why has \d+ characters: say in 1 to 1000"):
            promote(BEAM, "1", why=why)
    for call in (lambda: promote(BEAM, "9", why="x"), lambda: promote_if_better(BEAM, "9"), lambda: rollback("zzz")):
        with pytest.raises(RegistryError, match=r"versions: 1, 2, 3, 4, 5|there is no model 'zzz'"):
            call()


def test_champions_made_elsewhere_and_versions_deleted_are_seen(versions: MlflowClient) -> None:
    with pytest.raises(RegistryError, match=r"had no champion yet"):
        rollback(BEAM)
    versions.set_registered_model_alias(BEAM, "champion", "1")  # as before there was a history, or in MLflow's pages
    assert champion_history(BEAM) == [("1", "", "found", "", False, None)]
    assert promote_if_better(BEAM, "2").promoted
    versions.set_registered_model_alias(BEAM, "champion", "4")
    assert rollback(BEAM) == ("2", "4") and rollback(BEAM) == ("1", "2")
    for version in "23":
        promote_if_better(BEAM, version)
    versions.delete_model_version(BEAM, "2")
    assert rollback(BEAM) == ("1", "3")
    promote_if_better(BEAM, "4")
    versions.delete_model_version(BEAM, "4")  # and its alias with it
    assert rollback(BEAM) == ("1", None) and champion() == "1"


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
    for text in ("drawn stand-in faces, not photographs", "| frechet_latent (the score) | 2 | 9 |", "`model.num_hidden`"):
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


@pytest.fixture(scope="module")
def pulled(packaged_beam: PackagedBeam, migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pulled BEAM; copy it before it is changed."""
    folder = tmp_path_factory.mktemp("pulled")
    tracking = f"sqlite:///{shutil.copy(migrated_database, folder / 'mlflow.db')}"
    client = MlflowClient(tracking)
    run = client.create_run(client.create_experiment("tests", (folder / "artifacts").as_uri())).info.run_id
    version = register(packaged_beam, run, tracking=tracking)
    return pull_model(version.uri, folder / "model", tracking=tracking).folder


def edit_mlmodel(folder: Path, old: str, new: str) -> None:
    text = (folder / "MLmodel").read_text()
    assert old in text
    (folder / "MLmodel").write_text(text.replace(old, new))


def edit_package(folder: Path, changes: dict) -> None:
    """As somebody would who knows the format: the hash fits."""
    path = folder / "data/package/config.json"
    config = json.loads(path.read_text()) | changes
    config["hash"] = canonical_hash({k: v for k, v in config.items() if k != "hash"})
    path.write_text(json.dumps(config))


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 0x80
    file.write_bytes(bytes(data))


TAMPERED = {
    "another loader": (
        lambda f: edit_mlmodel(f, "loader_module: pipeline.registry", "loader_module: mlflow.sklearn"),
        r"MLmodel names the loader 'mlflow.sklearn'; this program knows only 'pipeline.registry'",
    ),
    "another flavor": (
        lambda f: edit_mlmodel(f, "flavors:\n", "flavors:\n  sklearn:\n    pickled_model: model.pkl\n"),
        r"MLmodel has the flavor 'sklearn'",
    ),
    "code": (lambda f: edit_mlmodel(f, "code: null", "code: code"), r"brings code of its own \(code: 'code'\)"),
    "python_model": (
        lambda f: edit_mlmodel(f, "    code: null", "    code: null\n    python_model: model.pkl"),
        r"MLmodel has 'python_model', which this program does not know",
    ),
    "model_code_path": (
        lambda f: edit_mlmodel(f, "    code: null", "    model_code_path: x.py"),
        r"MLmodel has 'model_code_path'",
    ),
    "data elsewhere": (
        lambda f: edit_mlmodel(f, "data: data/package", "data: ../../package"),
        r"its data in '../../package'",
    ),
    "YAML with a tag": (
        lambda f: (f / "MLmodel").write_text("!!python/object/apply:os.system ['touch /tmp/never']"),
        r"MLmodel cannot be read \(ConstructorError\)",
    ),
    "MLmodel is no YAML": (lambda f: (f / "MLmodel").write_text("[1"), r"MLmodel cannot be read"),
    "MLmodel is a list": (lambda f: (f / "MLmodel").write_text("[1]"), r"MLmodel cannot be read"),
    "a pickle beside it": (lambda f: (f / "python_model.pkl").touch(), r"the file 'python_model.pkl', which"),
    "code beside it": (lambda f: (f / "code").mkdir(), r"the folder 'code', which this program does not know"),
    "a pickle in data": (lambda f: (f / "data/x.pkl").touch(), r"the file 'x.pkl'"),
    "a pickle in the package": (lambda f: (f / "data/package/rbm.pkl").touch(), r"the file 'rbm.pkl'"),
    "a link": (
        lambda f: ((f / "data/package/rbm.safetensors").rename(f.parent / "w"),
                   (f / "data/package/rbm.safetensors").symlink_to(f.parent / "w")),
        r"'rbm.safetensors' is a link",
    ),
    "damage": (lambda f: flip_a_bit(f / "data/package/rbm.safetensors"), r"file rbm.safetensors is damaged"),
    "a file lost": (lambda f: (f / "data/package/rbm.safetensors").unlink(), r"file rbm.safetensors is missing"),
    "no package": (lambda f: shutil.rmtree(f / "data"), r"there is no config.json"),
    "another format": (lambda f: edit_package(f, {"format_version": 9}), r"format_version is 9"),
    "another config": (lambda f: edit_package(f, {"run": {"config_version": 9, "name": "x"}}), r"config_version = 9"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_tampered_with_is_refused_by_name(what: str, pulled: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pulled, tmp_path / "model"))
    assert isinstance(load_model(str(folder)), PackagedBeam)
    change, message = TAMPERED[what]
    change(folder)
    with pytest.raises(PackageError, match=message) as error:
        load_model(str(folder))
    assert str(folder) in str(error.value) and not Path("/tmp/never").exists()


def test_every_way_to_a_version_checks_it(packaged_beam: PackagedBeam, run_id: str, tmp_path: Path) -> None:
    version = register(packaged_beam, run_id)
    other = register(dataclasses.replace(packaged_beam, metrics={}), run_id)
    (place,) = {p.parent for p in (tmp_path / "my store").rglob("MLmodel") if version.tags["content_hash"] in (p.parent / "data/package/config.json").read_text()}
    (theirs,) = {p.parent for p in (tmp_path / "my store").rglob("MLmodel")} - {place}
    ways = (
        lambda: load_model(version.uri),
        lambda: verify_model(version.uri),
        lambda: fetch_model(version.uri, tmp_path / "cache"),
        lambda: pull_model(version.uri, tmp_path / "out" / "pulled"),
    )

    def refused(message: str) -> None:
        for way in ways:
            with pytest.raises((PackageError, RegistryError), match=message) as error:
                way()
            assert version.uri in str(error.value)
        assert not list((tmp_path / "cache").iterdir()) and not list((tmp_path / "out").iterdir())

    assert verify_model(version.uri) == version
    kept = shutil.copytree(place, tmp_path / "kept")
    edit_mlmodel(place, "loader_module: pipeline.registry", "loader_module: os")
    refused(r"cannot be used: .*MLmodel names the loader 'os'")
    shutil.rmtree(place)
    shutil.copytree(theirs, place)  # a sound model, but another one
    refused(rf"content hash is {other.tags['content_hash'][:12]}, registered was {version.tags['content_hash'][:12]}")
    (place / "MLmodel").unlink()
    refused(r"there is no MLmodel among its files")
    shutil.rmtree(place)
    refused(r"cannot be fetched")
    shutil.copytree(kept, place)
    for way in ways:
        way()


def test_a_pull_is_whole_or_not_there(packaged_beam: PackagedBeam, run_id: str, tmp_path: Path) -> None:
    version = register(packaged_beam, run_id)
    out = tmp_path / "new" / "model"
    done = pull_model(BEAM + "/1", out)
    assert done == (out, BEAM, "1", (), version.tags["content_hash"])
    assert [p.name for p in out.parent.iterdir()] == ["model"] and (out / "MODEL_CARD.md").is_file()
    written = (out / "MLmodel").stat().st_mtime_ns
    assert pull_model(version.uri, out) == done and (out / "MLmodel").stat().st_mtime_ns == written
    (tmp_path / "empty").mkdir()
    assert isinstance(load_model(str(pull_model(version.uri, tmp_path / "empty").folder)), PackagedBeam)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    flip_a_bit(out / "data/package/rbm.safetensors")
    for folder in (tmp_path / "mine", tmp_path / "file", out):
        with pytest.raises(RegistryError, match=r"is not empty, and is not models:/.*/1|is a file: name a folder"):
            pull_model(version.uri, folder)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


OFFLINE = """
import sys
seen = []
sys.addaudithook(lambda event, args: seen.append((event, str(args[-1]))) if event in ("socket.connect", "pickle.find_class") else None)
import mlflow
from pipeline.registry import load_model
seen.clear()
model = load_model(sys.argv[1])
print(model.sample(2, 1, seed=3).sum().item())
print(mlflow.pyfunc.load_model(sys.argv[1]).predict(None, params={"n_samples": 2, "gibbs_steps": 1, "seed": 3}).sum(dtype=int))
print(seen)
"""


def test_a_pulled_model_needs_no_server_and_no_pickle(
    packaged_beam: PackagedBeam, pulled: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", OFFLINE, str(pulled)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours, through_mlflow, seen = done.stdout.splitlines()
    assert int(ours) == int(through_mlflow) == packaged_beam.sample(2, 1, seed=3).sum().item()
    assert seen == "[]"

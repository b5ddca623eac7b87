"""Packaged models and the registry: what is written is verified and loads anywhere; who becomes champion."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from pipeline.data.shards import canonical_hash
from pipeline.packaged import PackagedAutoencoder, PackagedBeam, PackageError, load_package, verify_package
from pipeline.registry import (
    ModelVersionInfo,
    RegistryError,
    fetch_model,
    find_model,
    find_version,
    load_model,
    model_name,
    promote_if_better,
    register_autoencoder,
    register_beam,
    set_candidate,
)
from pipeline.samplers.protocols import DRIVEN, FRESH, draw_samples
from pipeline.scores import compare_scores, score_tags

BEAM = "synthetic-faces-beam"
FILES = ("autoencoder.safetensors", "chains.safetensors", "rbm.safetensors", "statistics.safetensors")


@pytest.fixture
def run_id(tracking: str) -> str:
    client = MlflowClient(tracking)
    place = Path(tracking.removeprefix("sqlite:///")).parent / "mlartifacts"
    return client.create_run(client.create_experiment("tests", place.as_uri())).info.run_id


@pytest.fixture
def package(packaged_beam: PackagedBeam, tmp_path: Path) -> Path:
    packaged_beam.save(tmp_path / "package")
    return tmp_path / "package"


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


def edit_config(folder: Path, changes: dict, rehash: bool = True) -> None:
    """Change config.json; with `rehash` as somebody would who knows the format."""
    config = json.loads((folder / "config.json").read_text()) | changes
    if rehash:
        config["hash"] = canonical_hash({k: v for k, v in config.items() if k != "hash"})
    (folder / "config.json").write_text(json.dumps(config))


# --- packages ---------------------------------------------------------------------------------------------------------


def test_a_package_gives_back_every_bit(packaged_beam: PackagedBeam, package: Path) -> None:
    loaded = load_package(package)
    assert isinstance(loaded, PackagedBeam)
    assert loaded.run == packaged_beam.run and loaded.dataset == "synthetic-faces"
    assert loaded.metrics == packaged_beam.metrics
    for name, value in packaged_beam.rbm.state_dict().items():
        assert torch.equal(loaded.rbm.state_dict()[name], value)
    for mine, theirs in ((packaged_beam.chains, loaded.chains), (packaged_beam.whitening, loaded.whitening)):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs))
    assert torch.equal(loaded.sample(5, 3, seed=4), packaged_beam.sample(5, 3, seed=4))
    assert sorted(p.name for p in package.iterdir()) == sorted([*FILES, "config.json"])


def test_equal_content_has_one_hash_and_other_content_another(packaged_beam: PackagedBeam, tmp_path: Path) -> None:
    first, again = packaged_beam.save(tmp_path / "a"), packaged_beam.save(tmp_path / "b")
    assert first == again == verify_package(tmp_path / "a")
    assert dataclasses.replace(packaged_beam, metrics={}).save(tmp_path / "c") != first


def test_an_autoencoder_package_gives_back_every_bit(packaged_autoencoder: PackagedAutoencoder, tmp_path: Path) -> None:
    packaged_autoencoder.save(tmp_path)
    loaded = load_package(tmp_path)
    assert isinstance(loaded, PackagedAutoencoder)
    assert loaded.precision == "float32" and loaded.metrics == {"reconstruction_mse": 0.25, "psnr": None}
    pixels = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8)
    latents = loaded.encode(pixels)
    assert latents.shape == (3, 1024) and torch.equal(latents, packaged_autoencoder.encode(pixels))
    assert torch.equal(loaded.decode(latents), packaged_autoencoder.decode(latents))
    assert np.array_equal(loaded.predict(pixels.numpy()), loaded.decode(latents).numpy())
    with pytest.raises(ValueError, match=r"must be torch.uint8"):
        loaded.predict(np.zeros((1, 64, 64, 3), np.float32))


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found_and_the_file_named(package: Path, name: str) -> None:
    data = bytearray((package / name).read_bytes())
    data[len(data) // 2] ^= 1
    (package / name).write_bytes(bytes(data))
    with pytest.raises(PackageError, match=f"file {name} is damaged"):
        load_package(package)


def test_a_missing_file_is_named(package: Path) -> None:
    (package / "chains.safetensors").unlink()
    with pytest.raises(PackageError, match=r"file chains.safetensors is missing"):
        load_package(package)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, r"format_version is 2; this program knows 1"),
        ({"format_version": None}, r"format_version is None"),
        ({"kind": "gan"}, r"kind is 'gan'; the known kinds are autoencoder, beam"),
        ({"kind": ["beam"]}, r"kind is \['beam'\]"),
        ({"surprise": 1}, r"config.json has 'surprise', which this program does not know"),
        ({"files": {"../x.safetensors": "0"}}, r"files has '../x.safetensors', which this program does not know"),
        ({"files": {}}, r"a field is missing or wrong"),
        ({"run": {"config_version": 1}}, r"a field is missing or wrong"),
        ({"run": {"config_version": 9, "name": "x"}}, r"config_version = 9"),
        ({"autoencoder": {"precision": "float16", "config": {}}}, r"autoencoder.precision is 'float16'"),
        ({"autoencoder": {"precision": "float32", "config": {"layers": 3}}}, r"layers"),
        ({"autoencoder": {"precision": "float32", "config": {}, "trick": 1}}, r"'trick'"),
    ],
)
def test_what_is_unknown_is_refused_by_name(package: Path, changes: dict, message: str) -> None:
    edit_config(package, changes)
    with pytest.raises(PackageError, match=message) as error:
        load_package(package)
    assert str(package) in str(error.value)


def test_a_changed_setting_is_found(package: Path) -> None:
    edit_config(package, {"metrics": {"frechet_latent": 1.0}}, rehash=False)
    with pytest.raises(PackageError, match=r"config.json was changed after it was written"):
        load_package(package)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"[1]", b"{}"])
def test_a_folder_without_a_config_is_no_package(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(PackageError, match=r"no config.json|cannot be read|format_version is None"):
        load_package(tmp_path)


def test_parts_that_do_not_fit_are_refused(packaged_beam: PackagedBeam, tmp_path: Path) -> None:
    wrong = packaged_beam.chains._replace(hidden=torch.zeros(41, 8))
    dataclasses.replace(packaged_beam, chains=wrong).save(tmp_path)
    with pytest.raises(
        PackageError, match=r"hidden of chains.safetensors has shape \(41, 8\), its settings say \(41, 7\)"
    ):
        load_package(tmp_path)


def test_values_that_are_not_finite_are_not_packaged(packaged_beam: PackagedBeam, tmp_path: Path) -> None:
    bad = packaged_beam.whitening.mean.clone()
    bad[5] = float("nan")
    model = dataclasses.replace(packaged_beam, whitening=packaged_beam.whitening._replace(mean=bad))
    with pytest.raises(PackageError, match=r"whitening.mean of statistics.safetensors has values that are not finite"):
        model.save(tmp_path)


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [DRIVEN, FRESH])
def test_the_default_is_the_evaluation_protocol_itself(packaged_beam: PackagedBeam, protocol) -> None:
    b = packaged_beam
    expected = draw_samples(b.rbm, b.wide_start, protocol, 34, seed=5).visible_mean
    assert torch.equal(b.sample_latents(34, seed=5, protocol=protocol.name), expected)
    pixels = b.sample(34, seed=5, protocol=protocol.name)
    assert torch.equal(pixels, b.autoencoder.decode(b.whitening.invert(expected)))
    assert pixels.dtype == torch.uint8 and pixels.shape == (34, 64, 64, 3)


def test_gibbs_steps_and_protocol_change_the_pictures(packaged_beam: PackagedBeam) -> None:
    asked = [(3, "driven"), (4, "driven"), (3, "fresh"), (3, "persistent"), (4, "persistent")]
    drawn = [packaged_beam.sample_latents(4, steps, 0, protocol) for steps, protocol in asked]
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_persistent_goes_on_from_the_chains_of_training(packaged_beam: PackagedBeam) -> None:
    b = packaged_beam
    one_sweep, all_rows = b.sample_latents(41, 1, 0, "persistent"), b.sample_latents(41, 2, 0, "persistent")
    assert torch.equal(b.sample_latents(41, 2, 0, "persistent"), all_rows)
    assert not torch.equal(b.sample_latents(41, 2, 1, "persistent"), all_rows)
    # the same noise from other states, or at other temperatures, gives other rows
    for moved in (b.chains._replace(visible=-b.chains.visible), b.chains._replace(beta=b.chains.beta * 3)):
        assert not torch.equal(dataclasses.replace(b, chains=moved).sample_latents(41, 1, 0, "persistent"), one_sweep)
    with pytest.raises(ValueError, match="n_samples = 42: protocol 'persistent' goes on with the 41 chains"):
        b.sample(42, protocol="persistent")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_samples": 0}, "n_samples = 0: must be a whole number from 1 to 10000"),
        ({"n_samples": 10_001}, "n_samples = 10001"),
        ({"n_samples": 2.0}, "n_samples = 2.0"),
        ({"n_samples": True}, "n_samples = True"),
        ({"gibbs_steps": 0}, "gibbs_steps = 0: must be a whole number from 1 to 100000"),
        ({"seed": -1}, "seed = -1: must be a whole number from 0 to 2147483647"),
        ({"seed": 2**31}, "seed = 2147483648"),
        ({"protocol": "drive"}, "protocol = 'drive': must be one of driven, fresh, persistent"),
        ({"sead": 1}, "unknown parameter 'sead'; the nearest is 'seed'"),
    ],
)
def test_parameters_out_of_range_are_refused(packaged_beam: PackagedBeam, params: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        packaged_beam.predict(None, params)


# --- registry ---------------------------------------------------------------------------------------------------------


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
    assert {path.suffix for path in files} == {"", ".txt", ".yaml", ".json", ".safetensors"}
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


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (f"models:/{BEAM}@champoin", r"models:/.* is not there; .* has @champion \(version 1\); versions: 1, 2"),
        (f"models:/{BEAM}/7", r"is not there; .* versions: 1, 2"),
        (f"models:/{BEAM}", r"is not there; .* versions: 1, 2"),
        ("models:/synthetic-face-beam@champion", r"there is no model 'synthetic-face-beam'; there is synthetic-faces-beam"),
        ("models:/zzz/1", r"there is no model 'zzz'; there is synthetic-faces-beam"),
        ("models:/a/b/c", r"names no version: write models:/NAME@ALIAS or models:/NAME/NUMBER"),
        ("runs:/RUN/bean", r"has no model 'bean'; its models: beam"),
        ("runs:/" + "0" * 32 + "/beam", r"not found"),
        ("no/such/folder", r"is no model: give models:/NAME@ALIAS"),
    ],
)  # fmt: skip
def test_a_wrong_uri_says_what_there_is(packaged_beam: PackagedBeam, run_id: str, uri: str, message: str) -> None:
    for score in (50.0, 60.0):
        register(packaged_beam, run_id, score)
    promote_if_better(BEAM, "1")
    with pytest.raises(RegistryError, match=message):
        load_model(uri.replace("RUN", run_id))


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
    assert told["defaults"] == {"n_samples": 36, "gibbs_steps": 100, "seed": 0, "protocol": "driven"}
    assert "n_samples = 0: must be a whole number" in told["refused"]

"""Only what this program wrote is loaded: changed, unknown and damaged models are refused by name, in every way to them."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from registering import BEAM, register, start_run

from pipeline.files import canonical_hash
from pipeline.packages.files import PackageError
from pipeline.packages.models import PackagedBeam, verify_package
from pipeline.registry.fetch import fetch_model, load_model, pull_model, verify_model
from pipeline.registry.versions import RegistryError


@pytest.fixture
def run_id(tracking: str) -> str:
    return start_run(tracking)


@pytest.fixture(scope="module")
def pulled(packaged_beam: PackagedBeam, migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pulled BEAM; copy it before it is changed."""
    folder = tmp_path_factory.mktemp("pulled")
    tracking = f"sqlite:///{shutil.copy(migrated_database, folder / 'mlflow.db')}"
    version = register(packaged_beam, start_run(tracking), tracking=tracking)
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
    "no package": (lambda f: shutil.rmtree(f / "data"), r"there is no folder data/package"),
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
    places = [path.parent for path in (tmp_path / "my store").rglob("MLmodel")]
    place, theirs = sorted(places, key=lambda p: verify_package(p / "data/package") != version.tags["content_hash"])
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
seen, watched = [], ("socket.connect", "pickle.find_class")
sys.addaudithook(lambda event, args: seen.append((event, str(args[-1]))) if event in watched else None)
import mlflow
from pipeline.registry.fetch import load_model
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

"""Packaged models: what is written is verified when it is read; sampling parameters; the fixed protocols."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from point_models import point_model

from pipeline.files import canonical_hash
from pipeline.packages.autoencoder import PackagedAutoencoder
from pipeline.packages.files import PackageError
from pipeline.packages.models import PackagedBeam, load_package, verify_package
from pipeline.samplers.protocols import DRIVEN, FRESH, Protocol, draw_samples

FILES = ("autoencoder.safetensors", "chains.safetensors", "rbm.safetensors", "statistics.safetensors")


@pytest.fixture
def package(packaged_beam: PackagedBeam, tmp_path: Path) -> Path:
    packaged_beam.save(tmp_path / "package")
    return tmp_path / "package"


def edit_config(folder: Path, changes: dict, rehash: bool = True) -> None:
    """Change config.json; with `rehash` as somebody would who knows the format."""
    config = json.loads((folder / "config.json").read_text()) | changes
    if rehash:
        config["hash"] = canonical_hash({k: v for k, v in config.items() if k != "hash"})
    (folder / "config.json").write_text(json.dumps(config))


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
    assert torch.equal(loaded.reconstruct(pixels.numpy().astype(float)), loaded.decode(latents))
    with pytest.raises(ValueError, match=r"a pixel is 0.5: pixels must be whole numbers"):
        loaded.reconstruct(torch.full((1, 64, 64, 3), 0.5))


@pytest.mark.parametrize(("visible", "dtype"), [("gaussian", torch.float32), ("bernoulli", torch.float64)])
def test_a_model_of_points_has_no_autoencoder(visible: str, dtype: torch.dtype, tmp_path: Path) -> None:
    beam = point_model(visible, dtype=dtype)
    beam.save(tmp_path)
    assert not (tmp_path / "autoencoder.safetensors").exists()
    assert json.loads((tmp_path / "config.json").read_text())["autoencoder"] is None
    loaded = load_package(tmp_path)
    assert isinstance(loaded, PackagedBeam) and loaded.autoencoder is None and loaded.rbm.weights.dtype == dtype
    drawn = loaded.sample(40, 3, seed=4)
    assert drawn.shape == (40, len(beam.rbm.visible.bias)) and torch.equal(drawn, beam.sample(40, 3, seed=4))


def test_a_beam_of_pictures_without_its_autoencoder_is_refused(package: Path, tmp_path: Path) -> None:
    edit_config(package, {"autoencoder": None})
    with pytest.raises(PackageError, match=r"files has 'autoencoder.safetensors', which this program does not know"):
        load_package(package)
    point_model().save(tmp_path / "points")
    autoencoder = {"config": {}, "precision": "float32"}
    edit_config(tmp_path / "points", {"autoencoder": autoencoder})
    with pytest.raises(PackageError, match=r"file autoencoder.safetensors is missing"):
        load_package(tmp_path / "points")


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


@pytest.mark.parametrize("protocol", [DRIVEN, FRESH])
def test_the_default_is_the_evaluation_protocol_itself(packaged_beam: PackagedBeam, protocol: Protocol) -> None:
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
    # strong weights: under weak ones, chains that share their noise meet within a few sweeps
    rbm = copy.deepcopy(packaged_beam.rbm)
    rbm.weights.data.mul_(10)
    b = dataclasses.replace(packaged_beam, rbm=rbm)
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
    ],
)
def test_parameters_out_of_range_are_refused(packaged_beam: PackagedBeam, params: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        packaged_beam.sample(**params)

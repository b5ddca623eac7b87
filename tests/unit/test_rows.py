"""Scaling by one number: a recipe sees the same rows wherever the data lie, and a packaged model gives them back there."""

from pathlib import Path

import pytest
import torch

from data_prep.mixtures import draw_mixture
from data_prep.tasks import Moments, finish, merge_moments, shard_name
from jobs.recipes import recipe
from pipeline.comm import Comm
from pipeline.config import AutoencoderConfig, ConfigError, RunConfig
from pipeline.data.manifest import Manifest, ShardError, SplitEntry
from pipeline.data.mixtures import moved, ring
from pipeline.data.rows import load_rows, read_scaling
from pipeline.data.shards import load_split, write_shard
from pipeline.evaluation.scene import PointScene, Scene, open_scene
from pipeline.models.autoencoder import Autoencoder
from pipeline.packages.autoencoder import PackagedAutoencoder
from pipeline.packages.models import PackagedBeam
from pipeline.runs.job import TrainJob, make_objective
from pipeline.samplers.gibbs import ChainState
from pipeline.samplers.protocols import WideStart
from pipeline.streams import stream

SHIFT, SCALE = [5.0, -3.0], 16.0


@pytest.fixture
def places(tmp_path) -> tuple[Path, Path]:
    """A ring, and the same rows shifted and scaled (other draws would need many rows to compare)."""
    draw_mixture("ring", tmp_path / "near", 500)
    draw_mixture(moved(ring(), SHIFT, SCALE), tmp_path / "far", 500)
    return tmp_path / "near", tmp_path / "far"


def config_of(scaling: str) -> RunConfig:
    settings = {"data.scaling": scaling, "model.num_visible": "2", "evaluation.num_rows": "64"}
    return recipe("mixture_toy", {**settings, "evaluation.minibatch_rows": "64"})


def test_isotropic_is_centered_by_column_and_divided_by_one_number(places) -> None:
    near = places[0]
    raw, rows = load_split(near, "train").double(), load_rows(near, "train", "isotropic").double()
    size = raw.var(0, unbiased=False).mean().sqrt()
    assert torch.allclose(rows, (raw - raw.mean(0)) / size, atol=1e-6)
    assert float(rows.var(0, unbiased=False).mean()) == pytest.approx(1, abs=1e-5)
    valid = load_rows(near, "valid", "isotropic").double()  # by the train split's numbers
    assert torch.allclose(valid, (load_split(near, "valid").double() - raw.mean(0)) / size, atol=1e-6)
    scaling = read_scaling(near, "isotropic")
    assert torch.allclose(scaling.invert(scaling.apply(raw.float())), raw.float(), atol=1e-6)
    assert scaling.std.unique().numel() == 1


def test_rows_do_not_depend_on_shift_and_scale(places) -> None:
    near, far = places
    assert torch.allclose(load_split(far, "train"), SCALE * load_split(near, "train") + torch.tensor(SHIFT), atol=1e-4)
    for split in ("train", "valid", "test"):
        assert torch.allclose(load_rows(near, split, "isotropic"), load_rows(far, split, "isotropic"), atol=1e-5)
    assert not torch.allclose(load_rows(near, "train"), load_rows(far, "train"), atol=1)


def test_training_starts_alike_on_moved_data_and_evaluation_sees_the_same_rows(places, tmp_path) -> None:
    near, far = (
        make_objective(TrainJob(config_of("isotropic").to_dict(), str(place), "", str(tmp_path)), Comm())
        for place in places
    )
    for (name, one), (_, other) in zip(near.rbm.named_parameters(), far.rbm.named_parameters()):
        assert torch.allclose(one, other, atol=1e-5), name
    scenes = [open_scene(place, tmp_path, 2, "isotropic") for place in places]
    assert all(isinstance(scene, PointScene) for scene in scenes)
    assert torch.allclose(scenes[0].test, scenes[1].test, atol=1e-5)
    assert torch.allclose(scenes[0].train, near.batches.rows.cpu(), atol=0)


def test_models_of_few_training_rows_are_scored_in_fewer_components(tmp_path: Path) -> None:
    draw_mixture("ring", tmp_path / "two", 2)
    assert open_scene(tmp_path / "two", tmp_path, 100).space.components.shape == (2, 1)
    train, test = (torch.randn(n, 200, generator=stream(0, "rows", n)) for n in (50, 150))
    whitening = read_scaling(tmp_path / "two", "isotropic")
    scene = Scene.of(
        train, test, whitening, PackagedAutoencoder(Autoencoder(AutoencoderConfig()), "float32", "faces"), 100
    )
    assert scene.space.components.shape == (200, 49)


def test_a_packaged_model_speaks_the_datas_own_units(places, tmp_path) -> None:
    config = config_of("isotropic")
    rbm = make_objective(TrainJob(config.to_dict(), str(places[0]), "", str(tmp_path)), Comm()).rbm
    train = load_rows(places[0], "train", "isotropic")
    start, chains = WideStart.of(train), ChainState(train[:8], torch.zeros(8, 10), torch.ones(8, 1))
    near, far = (
        PackagedBeam(rbm, config, read_scaling(place, "isotropic"), start, chains, None, "ring", {}) for place in places
    )
    drawn = near.sample(200, 5, 0)
    expected = SCALE * drawn + torch.tensor(SHIFT)
    assert torch.allclose(far.sample(200, 5, 0), expected, rtol=1e-4, atol=1e-3) and drawn.std() > 0.2
    raw = load_split(places[1], "train")[:4]
    mean = rbm.visible_mean(rbm.hidden_mean(train[:4]))
    assert torch.allclose(far.reconstruct(raw.numpy()), read_scaling(places[1], "isotropic").invert(mean), atol=1e-2)


def write_latents(folder: Path, rows: torch.Tensor) -> None:
    folder.mkdir()
    values = rows.double()
    moments = Moments(
        len(rows),
        tuple(values.mean(0).tolist()),
        tuple(((values - values.mean(0)) ** 2).sum(0).tolist()),
    )
    mean, std = merge_moments([moments])
    entry = SplitEntry(len(rows), (write_shard(folder / shard_name("train", 0), rows.numpy()),), mean, std)
    finish(folder, Manifest("latents", "test", "", {}, (rows.shape[1],), {"train": entry}))


def test_latents_scale_by_their_manifest(tmp_path) -> None:
    rows = torch.randn(300, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 5.0]) + 7
    write_latents(tmp_path / "latents", rows)
    whitened, isotropic = (load_rows(tmp_path / "latents", "train", how) for how in ("manifest", "isotropic"))
    assert torch.allclose(whitened.std(0, unbiased=False), torch.ones(3), atol=1e-5)
    expected = rows.std(0, unbiased=False) / rows.var(0, unbiased=False).mean().sqrt()
    assert torch.allclose(isotropic.std(0, unbiased=False), expected, atol=1e-5)


def test_what_cannot_be_scaled_is_refused(tmp_path) -> None:
    write_latents(tmp_path / "alike", torch.full((5, 2), 3.0))
    with pytest.raises(ShardError, match="alike"):
        read_scaling(tmp_path / "alike", "isotropic")
    with pytest.raises(ConfigError, match=r"data.scaling = 'both'"):
        config_of("both")
    old = config_of("manifest").to_dict()
    del old["data"]["scaling"]
    assert RunConfig.from_dict(old) == config_of("manifest")

"""`jobs.stack`: two layers at toy size, encoded rows as a stack encodes them, stages skipped, wrong inputs refused."""

import json
from pathlib import Path

import pytest
import torch

from jobs.stack import main, parse_layer_settings
from jobs.stack_layers import read_layer
from pipeline.config import ConfigError
from pipeline.data.manifest import Manifest, SplitEntry, read_manifest, write_manifest
from pipeline.data.rows import load_rows
from pipeline.data.shards import load_split, write_shard
from pipeline.models.stack import RBMStack, encode, parameters_hash, transpose
from pipeline.streams import stream
from pipeline.training.checkpoint import load_latest

SETTINGS = (
    "1:model.num_visible=6",
    "1:schedules.likelihood.epochs=1",
    "1:schedules.adversarial.epochs=1",
    "sampler.gibbs_steps=2",
    "sampler.num_chains=20",
    "data.batch_size=50",
    "evaluation.num_rows=40",
    "evaluation.minibatch_rows=40",
    "checkpoint.every_updates=20",
)


def write_points(folder: Path, seed: int = 0) -> Manifest:
    """Correlated rows [., 6] in two train shards and one of each other split, away from zero."""
    folder.mkdir(parents=True, exist_ok=True)
    mix = torch.randn(6, 6, generator=stream(seed, "mix"))
    splits = {}
    for split, sizes in (("train", (256, 90)), ("valid", (60,)), ("test", (60,))):
        shards = []
        for index, count in enumerate(sizes):
            rows = 3 + torch.randn(count, 6, generator=stream(seed, split, index)) @ mix
            shards.append(write_shard(folder / f"{split}-{index:05d}.tar", rows.numpy()))
        splits[split] = SplitEntry(sum(sizes), tuple(shards))
    manifest = Manifest("points", "test-points", str(seed), {}, (6,), splits)
    write_manifest(folder, manifest)
    return manifest


def command(folder: Path, name: str = "deep", recipes: str = "mixture_toy,stack_toy", *extra: str) -> list[str]:
    first = 2 if "--bottom" in extra else 1
    settings = [s for s in SETTINGS if first == 1 or not s.startswith("1:")]
    where = ["--data", str(folder / "data"), "--runs", str(folder), "--name", name, "--cache", str(folder / "cache")]
    return ["--recipes", recipes, *where, *(x for s in settings for x in ("--set", s)), "--no-tracking", *extra]


def final(folder: Path) -> dict[str, torch.Tensor]:
    found = load_latest(folder / "checkpoints")
    assert found is not None
    return {name: value.clone() for name, value in found.tensors.items()}  # the file's own bytes otherwise


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def skipped(folder: Path) -> dict[str, bool]:
    return {k: v["skipped"] for k, v in json.loads((folder / "summary.json").read_text())["stages"].items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a trained stack of two layers, `deep`."""
    folder = tmp_path_factory.mktemp("stack")
    write_points(folder / "data")
    assert main(command(folder, "deep", "mixture_toy,stack_toy", "--local")) == 0
    return folder


def test_two_layers_are_trained_on_their_own_rows_and_scored(trained):
    deep = trained / "deep"
    assert skipped(deep) == {"layer_1": False, "rows_2": False, "layer_2": False, "scores": False}
    bottom, top = read_layer(deep / "layer_1"), read_layer(deep / "layer_2")
    rows = read_manifest(deep / "rows_2")
    assert (rows.kind, rows.row_shape, rows.source_hash) == ("points", (10,), read_manifest(trained / "data").hash)
    assert top.data_hash == rows.hash and rows.settings["parameters"] == parameters_hash(bottom.rbm)
    stack = RBMStack([bottom.rbm, top.rbm])
    for split in ("train", "valid", "test"):
        seen = load_rows(trained / "data", split, bottom.config.data.scaling)
        assert torch.equal(load_split(deep / "rows_2", split), encode(stack, seen, 1, split=split))
    summary = json.loads((deep / "summary.json").read_text())
    assert set(summary["comparison"]) == {"1 layer", "2 layers", "encoded and back"}
    assert summary["metrics"]["frechet_latent"] == summary["comparison"]["2 layers"]["frechet_latent"]


def test_the_same_command_again_does_nothing_and_a_lost_layer_is_trained_to_the_same_bits(trained):
    deep = trained / "deep"
    before = final(deep / "layer_2")
    arguments = command(trained, "deep", "mixture_toy,stack_toy", "--local")
    assert main(arguments) == 0
    assert all(skipped(deep).values())
    newest = sorted((deep / "layer_2" / "checkpoints").iterdir())[-1]
    (newest / "state.safetensors").write_bytes(b"damaged")  # the run goes on from the checkpoint before
    (deep / "rows_2" / "train-00001.tar").unlink()
    assert main(arguments) == 0
    assert skipped(deep) == {"layer_1": True, "rows_2": False, "layer_2": False, "scores": True}
    assert same_bits(final(deep / "layer_2"), before)


def test_a_finished_run_as_the_bottom_gives_the_same_top(trained):
    arguments = command(trained, "on", "stack_toy", "--local", "--bottom", str(trained / "deep" / "layer_1"))
    assert main(arguments) == 0
    assert same_bits(final(trained / "on" / "layer_2"), final(trained / "deep" / "layer_2"))
    assert "layer_1" not in skipped(trained / "on")


def test_a_tied_top_starts_as_the_bottom_turned_around(trained):
    flipped = ["model.num_hidden=6", "model.hidden_units=gaussian", "model.center_hidden=false"]
    stop_at_start = ["schedules.likelihood.updates=0", "schedules.adversarial.updates=0"]
    extra = [x for s in flipped + stop_at_start for x in ("--set", s)]
    bottom = trained / "deep" / "layer_1"
    assert main(command(trained, "tied", "stack_toy", "--local", "--tied", "--bottom", str(bottom), *extra)) == 0
    turned = transpose(read_layer(bottom).rbm).state_dict()
    found = read_layer(trained / "tied" / "layer_2").rbm.state_dict()
    assert turned.keys() == found.keys() and all(torch.equal(found[name], turned[name]) for name in turned)


@pytest.mark.parametrize(
    ("recipes", "extra", "message"),
    [
        ("mixture_toy,celeba_stack_top", [], "layer 2 has model.num_visible = 512, but layer 1 has 10"),
        ("mixture_toy,mixture_toy", [], "gaussian visible units on bernoulli"),
        ("celeba_autoencoder", [], "is no RBM"),
        ("mixture_toy,stack_toy", ["--set", "3:seed=1"], "layer 3 is not trained here"),
        ("mixture_toy,stack_toy", ["--set", "2:data.scaling=isotropic"], "hidden units are taken as they are"),
        ("stack_toy", ["--bottom", "nowhere"], "no checkpoint"),
        ("mixture_toy,stack_toy", ["--tied"], "must be 6 for --tied"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(trained, recipes, extra, message, capsys):
    name = "tied_wrong" if "--tied" in extra else "wrong"
    settings = command(trained, name, recipes, "--local", *extra)
    if "autoencoder" in recipes:
        settings = ["--recipes", recipes, "--data", str(trained / "data"), "--name", name, "--runs", str(trained)]
    assert main(settings) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]


def test_a_bottom_of_other_rows_is_refused(trained, tmp_path, capsys):
    write_points(tmp_path / "data", seed=1)
    bottom = str(trained / "deep" / "layer_1")
    assert main(command(tmp_path, "on", "stack_toy", "--local", "--bottom", bottom)) == 2
    assert "was trained on other rows" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "on").iterdir()] == [".lock"]


def test_settings_of_one_layer_and_of_all():
    assert parse_layer_settings(["2:a.b=1", "seed=3"], [1, 2]) == {1: {"seed": "3"}, 2: {"a.b": "1", "seed": "3"}}
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_layer_settings(["2:a.b"], [1, 2])


@pytest.mark.ray
@pytest.mark.slow
def test_ray_workers_and_tasks_give_the_bits_of_one_process(trained):
    arguments = command(trained, "on_ray", "mixture_toy,stack_toy", "--workers", "2")
    assert main(arguments) == 0
    assert read_manifest(trained / "on_ray" / "rows_2").hash == read_manifest(trained / "deep" / "rows_2").hash
    for part in ("layer_1", "layer_2"):
        assert same_bits(final(trained / "on_ray" / part), final(trained / "deep" / part))

"""`jobs.generate`: the same bits whoever draws, whole shards only, nothing drawn twice, and one line for what goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.samples import SPLIT, Model, SampleSettings
from jobs.generate import find_beam, generate, main
from pipeline.config import RBMConfig, RunConfig
from pipeline.data.manifest import ShardError, read_manifest
from pipeline.data.shards import load_split
from pipeline.data.whitening import Whitening, read_whitening
from pipeline.models.rbm import RBM
from pipeline.packages.autoencoder import PackagedAutoencoder
from pipeline.packages.models import PackagedBeam
from pipeline.samplers.gibbs import ChainState
from pipeline.samplers.protocols import WideStart

N, SHARD_ROWS, STEPS = 11, 4, 2


@pytest.fixture(scope="session")
def model_dir(packaged_beam: PackagedBeam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-beam"
    packaged_beam.save(folder)
    return folder


@pytest.fixture(scope="session")
def model(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return find_beam(str(model_dir), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def points_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A BEAM of 2 visible units without an autoencoder."""
    config = RunConfig("points", seed=3, model=RBMConfig(2, 5))
    rbm = RBM(config.model)  # type: ignore[arg-type]
    identity = torch.zeros(2), torch.ones(2)
    chains = ChainState(torch.zeros(3, 2), torch.zeros(3, 5), torch.ones(3, 1))
    beam = PackagedBeam(rbm, config, Whitening(*identity), WideStart(*identity), chains, None, "mixture-bimodal")
    folder = tmp_path_factory.mktemp("models") / "points"
    beam.save(folder)
    return find_beam(str(folder), folder)


@pytest.fixture
def options(model_dir: Path, tmp_path: Path) -> list[str]:
    """The command line for the tiny model into tmp_path/out, in this process."""
    values = {"model": model_dir, "out": tmp_path / "out", "n": N, "shard-rows": SHARD_ROWS, "gibbs-steps": STEPS}
    return [*(text for key, value in values.items() for text in (f"--{key}", str(value))), "--local"]


def settings_of(model: Model, **changes) -> SampleSettings:
    return SampleSettings(
        **{"model": model.content, "what": "pixels", "n": N, "shard_rows": SHARD_ROWS, "gibbs_steps": STEPS, **changes}
    )


def draw(model: Model, out: Path, **changes) -> torch.Tensor:
    generate(model, settings_of(model, **changes), out, out, local=True)
    return load_split(out, SPLIT)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "summary.json"}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_pixels_are_the_models_samples_and_the_manifest_says_whose(
    packaged_beam: PackagedBeam, model: Model, tmp_path: Path
) -> None:
    settings = settings_of(model, seed=5)
    manifest, drawn = generate(model, settings, tmp_path / "out", tmp_path, local=True)
    assert drawn == N and read_manifest(tmp_path / "out") == manifest
    rows = load_split(tmp_path / "out", SPLIT)
    assert rows.shape == (N, 64, 64, 3) and rows.dtype == torch.uint8
    for index, start in enumerate(range(0, N, SHARD_ROWS)):
        expected = packaged_beam.sample(min(SHARD_ROWS, N - start), STEPS, settings.shard_seed(index), "driven")
        assert torch.equal(rows[start : start + SHARD_ROWS], expected)
    assert manifest.dataset == "synthetic-faces-samples" and manifest.source_hash == model.content
    recorded = {key: manifest.settings[key] for key in ("seed", "protocol", "gibbs_steps", "shard_rows", "n", "model")}
    assert recorded == {
        "seed": 5,
        "protocol": "driven",
        "gibbs_steps": STEPS,
        "shard_rows": SHARD_ROWS,
        "n": N,
        "model": model.content,
    }
    assert len(manifest.splits[SPLIT].shards) == 3


def test_all_rows_differ_and_every_setting_changes_them(points_model: Model, tmp_path: Path) -> None:
    """Points have noise of their own, so two equal rows would come from one stream."""
    options: dict[str, Any] = {"what": "points", "n": 100, "shard_rows": 16}
    rows = draw(points_model, tmp_path / "a", **options)
    assert len(torch.unique(rows, dim=0)) == 100
    for number, change in enumerate([{"seed": 1}, {"gibbs_steps": 3}, {"protocol": "fresh"}]):
        other = draw(points_model, tmp_path / f"b{number}", **{**options, **change})
        assert len(torch.unique(torch.cat([rows, other]), dim=0)) == 200, change
    # Of a run with more shards, the whole ones that both have are the same.
    longer = draw(points_model, tmp_path / "longer", **{**options, "n": 150})
    assert torch.equal(longer[:96], rows[:96])


def test_latents_are_raw_with_their_own_moments_and_decode_to_the_pixels(
    packaged_autoencoder: PackagedAutoencoder, model: Model, tmp_path: Path
) -> None:
    latents = draw(model, tmp_path / "latents", what="latents")
    pixels = draw(model, tmp_path / "pixels")
    assert latents.shape == (N, 1024) and latents.dtype == torch.float32
    # A convolution's bits depend on the number of images: shards of the job are decoded as shards here.
    decoded = torch.cat([packaged_autoencoder.decode(part) for part in latents.split(SHARD_ROWS)])
    assert torch.equal(decoded, pixels)
    split = read_manifest(tmp_path / "latents").splits[SPLIT]
    np.testing.assert_allclose(split.mean, latents.double().mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(split.std, latents.double().std(0, correction=0), rtol=1e-9, atol=1e-12)
    assert read_manifest(tmp_path / "pixels").splits[SPLIT].mean == ()
    with pytest.raises(
        ShardError, match="no split 'train'"
    ):  # samples are whitened by the data's moments, not their own
        read_whitening(tmp_path / "latents")


def test_points_of_a_model_without_an_autoencoder(points_model: Model, tmp_path: Path) -> None:
    rows = draw(points_model, tmp_path / "out", what="points", n=50, shard_rows=32)
    assert rows.shape == (50, 2) and rows.dtype == torch.float32 and len(torch.unique(rows, dim=0)) == 50
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.kind, manifest.dataset) == ("points", "mixture-bimodal-samples")


def test_a_second_run_does_nothing_and_says_so(options: list[str], tmp_path: Path, capsys) -> None:
    assert main(options) == 0
    out = capsys.readouterr().out
    assert "synthetic-faces-samples" in out and f"drawn now   {N}" in out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["metrics"]["samples"] == N and not summary["stages"]["generate"]["skipped"]
    before = times(tmp_path / "out")
    assert main(options) == 0
    assert "none: all of them were there" in capsys.readouterr().out
    assert times(tmp_path / "out") == before


def test_only_what_is_missing_or_damaged_is_drawn_again(model: Model, tmp_path: Path) -> None:
    out, settings = tmp_path / "out", settings_of(model)
    generate(model, settings, out, tmp_path, local=True)
    whole, before = contents(out), times(out)
    (out / "samples-00000.tar").unlink()
    shard = out / "samples-00002.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")  # the same size: found by its hash
    (out / "manifest.json").unlink()
    (out / ".samples-00000.tar.0123456789ab.tmp").write_bytes(b"half")
    _, drawn = generate(model, settings, out, tmp_path, local=True)
    assert drawn == SHARD_ROWS + N - 2 * SHARD_ROWS
    assert contents(out) == whole
    assert times(out)["samples-00001.tar"] == before["samples-00001.tar"]


@pytest.mark.slow
def test_killed_and_interrupted_runs_go_on(options: list[str], tmp_path: Path) -> None:
    """A real process, killed, interrupted and terminated: whole shards only, and in the end the bits of an undisturbed run."""
    out = tmp_path / "out"
    options = [*options, "--n", "28", "--shard-rows", "4", "--gibbs-steps", "4000"]
    command = [sys.executable, "-m", "jobs.generate", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for number, (sent, status) in enumerate(
        [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 130)], start=1
    ):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while len(list(out.glob("samples-*.tar.json"))) < number:
            assert process.poll() is None and time.monotonic() < deadline, "it was over before it could be stopped"
            time.sleep(0.01)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == status and "Traceback" not in errors, errors
        assert not (out / "manifest.json").exists()
    assert "the same command goes on" in errors
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("samples-*.tar.json")}
    assert 3 <= len(kept) < 7
    assert main(options) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert main([*options, "--out", str(tmp_path / "undisturbed")]) == 0
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.ray
@pytest.mark.slow
def test_ray_workers_give_the_bits_of_one_process(model: Model, tmp_path: Path) -> None:
    settings = settings_of(model)
    for name, workers in (("local", None), ("one", 1), ("two", 2)):
        generate(model, settings, tmp_path / name, tmp_path / "cache", workers, local=name == "local")
    assert contents(tmp_path / "one") == contents(tmp_path / "local")
    assert contents(tmp_path / "two") == contents(tmp_path / "local")
    # An error in a task is the task's own, and not Ray's.
    lost = Model(tmp_path / "nowhere", model.name, model.content, model.dataset, model.width, model.draws_pictures)
    with pytest.raises(ValueError, match="nowhere"):
        generate(lost, settings, tmp_path / "lost", tmp_path / "cache", 2)


def test_neighboring_seeds_and_shards_have_different_seeds(model: Model) -> None:
    seeds = [settings_of(model, seed=seed).shard_seed(index) for seed in (0, 1, 2, 2**31 - 1) for index in range(1000)]
    assert len(set(seeds)) == len(seeds) and min(seeds) >= 0 and max(seeds) < 2**31


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--seed", "1"], "seed is 0 there and 1 here"),
        (["--n", "12"], "n is 11 there and 12 here"),
        (["--protocol", "fresh", "--what", "latents"], "protocol is driven there and fresh here, what is pixels there and"),
        (["--gibbs-steps", "3"], "gibbs_steps is 2 there and 3 here"),
        (["--shard-rows", "3"], "shard_rows is 4 there and 3 here"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_other_samples_is_refused(
    model: Model, options: list[str], tmp_path: Path, capsys, changes: list[str], message: str, finished: bool
) -> None:
    out = tmp_path / "out"
    settings = settings_of(model)
    out.mkdir()
    record = {"settings": settings.describe(), "model": "tiny"}
    (out / "generate.json").write_text(json.dumps(record))
    if finished:
        generate(model, settings, out, tmp_path, local=True)
    before = contents(out)
    assert main([*options, *changes]) == 2
    assert_one_line(capsys, message)
    assert contents(out) == before


def test_another_model_in_the_same_folder_is_refused(
    packaged_beam: PackagedBeam, options: list[str], tmp_path: Path, capsys
) -> None:
    assert main(options) == 0
    replace(packaged_beam, metrics={}).save(tmp_path / "other")
    capsys.readouterr()
    assert main([*options, "--model", str(tmp_path / "other")]) == 2
    assert_one_line(capsys, "holds samples of other settings: model is ")


def test_a_folder_of_something_else_is_left_alone(model: Model, options: list[str], tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("train-00000.tar", "notes.txt"):
        (out / name).write_text("mine")
    assert main(options) == 2
    assert_one_line(capsys, "holds 'notes.txt' and no generate.json")
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt", "train-00000.tar"]
    (out / "generate.json").write_text("{")
    assert main(options) == 2
    assert_one_line(capsys, "generate.json cannot be read")


def test_a_model_that_changes_on_the_way_is_noticed(packaged_beam: PackagedBeam, model: Model, tmp_path: Path) -> None:
    shutil.copytree(model.folder, tmp_path / "model")
    moved = find_beam(str(tmp_path / "model"), tmp_path)
    replace(packaged_beam, metrics={}).save(tmp_path / "model")
    with pytest.raises(ValueError, match="changed while its samples were drawn"):
        generate(moved, settings_of(model), tmp_path / "out", tmp_path, local=True)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_models_registry_is_asked(packaged_beam: PackagedBeam, tracking: str, tmp_path: Path, capsys) -> None:
    from mlflow import MlflowClient

    from pipeline.registry.promotion import promote_if_better
    from pipeline.registry.register import register_beam

    client = MlflowClient(tracking)
    run_id = client.create_run(client.create_experiment("t", (tmp_path / "artifacts").as_uri())).info.run_id
    register_beam(packaged_beam, run_id=run_id, data_hash="d", recipe="r", score=1.0, num_rows=9)
    promote_if_better("synthetic-faces-beam", "1")
    options = ["--model", "models:/synthetic-faces-beam@champion", "--out", str(tmp_path / "out"), "--n", "2"]
    assert main([*options, "--gibbs-steps", "1", "--local", "--cache", str(tmp_path / "cache")]) == 0
    assert "synthetic-faces-beam/1" in capsys.readouterr().out
    assert list((tmp_path / "cache" / "models").glob("synthetic-faces-beam-v1-*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--n", "0"], "n is 0: must be a whole number from 1 to"),
        (["--n", "many"], "argument --n: invalid int value: 'many'"),
        (["--n", "999999999"], "n is 999999999: must be a whole number from 1 to 400000"),
        (["--shard-rows", "0"], "shard_rows is 0"),
        (["--shard-rows", "10001"], "shard_rows is 10001: must be a whole number from 1 to 10000"),
        (["--seed", "-1"], "seed is -1"),
        (["--gibbs-steps", "0"], "gibbs_steps is 0"),
        (["--workers", "0"], "--workers is 0: must be at least 1"),
        (["--protocol", "persistent"], "argument --protocol: invalid choice: 'persistent'"),
        (["--what", "points"], "--what is points, but model tiny-beam draws pictures; give pixels or latents"),
        (["--model", "nowhere"], "'nowhere' is no model: give models:/NAME@ALIAS"),
        (["--model", "."], "there is no config.json: this is no packaged model"),
        (["--out", "/dev/null/x"], "/dev/null"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)  # fmt: skip
def test_what_a_user_gets_wrong_is_one_line(
    options: list[str], changes: list[str], message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*options, *changes]) == 2
    assert_one_line(capsys, message)
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_draw_what_is_asked_for(
    packaged_autoencoder: PackagedAutoencoder, points_model: Model, options: list[str], tmp_path: Path, capsys
) -> None:
    packaged_autoencoder.save(tmp_path / "autoencoder")
    assert main([*options, "--model", str(tmp_path / "autoencoder")]) == 2
    assert_one_line(capsys, "is no BEAM but an autoencoder")
    assert main([*options, "--model", str(points_model.folder), "--what", "pixels"]) == 2
    assert_one_line(capsys, "has no autoencoder: it draws points; give points")


def test_a_full_disk_is_one_line_and_leaves_no_half_shard(
    options: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    """The limit is the process's own, in bytes per file: large enough for a record, too small for a shard."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        status = main(options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert status == 2
    assert_one_line(capsys, f"cannot write {tmp_path / 'out' / 'samples-00000.tar'}: ")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"generate.json", ".lock"}
    assert main(options) == 0


def assert_one_line(capsys, message: str) -> None:
    captured = capsys.readouterr()
    text = captured.err.splitlines()[-1]
    assert captured.out == "" and text.startswith("jobs.generate: ") and message in text, captured.err
    assert "Traceback" not in captured.err

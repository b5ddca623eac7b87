"""`jobs.train` on GANs: a whole run in one process, resumed; data of the wrong kind and sweeps are refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.mixtures import draw_mixture
from jobs.recipes import recipe
from jobs.spaces import default_space
from jobs.train import main
from pipeline.config import ConfigError
from pipeline.training.checkpoint import load_latest

SHORT = ["epochs_scale=0.02", "evaluation.num_rows=50", "checkpoint.every_updates=50"]


def train(recipe_name: str, data: Path, runs: Path, *settings: str) -> int:
    sets = [word for setting in (*SHORT, *settings) for word in ("--set", setting)]
    return main([recipe_name, "--data", str(data), "--runs", str(runs), "--local", "--no-tracking", *sets])


def test_a_gan_is_trained_by_the_same_job_as_a_beam(tmp_path: Path) -> None:
    draw_mixture("bimodal", tmp_path / "points")
    assert train("mixture_bimodal_wgan", tmp_path / "points", tmp_path / "runs") == 0
    folder = tmp_path / "runs" / "mixture_bimodal_wgan"
    found = load_latest(folder / "checkpoints")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert found is not None and found.step == rows[-1]["step"] > 100
    assert {"kl_sum", "frechet_latent", "critic_loss", "generator_loss"} <= rows[-1].keys()
    last = sorted((folder / "samples").glob("*.npy"))[-1]
    assert np.load(last).shape == (36, 1)
    assert train("mixture_bimodal_wgan", tmp_path / "points", tmp_path / "runs") == 0  # finished: does nothing


def test_data_of_the_wrong_kind_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_mixture("ring", tmp_path / "points")
    assert train("celeba_dcgan", tmp_path / "points", tmp_path / "runs") == 2
    assert "trains on pixels" in capsys.readouterr().err
    assert train("mixture_bimodal_gan", tmp_path / "points", tmp_path / "runs") == 2
    assert "model.num_visible = 1: a row of the data has 2 values" in capsys.readouterr().err


def test_a_sweep_of_a_gan_is_refused() -> None:
    with pytest.raises(ConfigError, match="'mixture_ring_gan' is not a BEAM"):
        default_space(recipe("mixture_ring_gan"))

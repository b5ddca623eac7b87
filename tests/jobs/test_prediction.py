"""What a packaged model does with pictures, and one call of it by task and parameters: answers, limits, errors."""

import base64
import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from point_models import point_model

from pipeline.packages.autoencoder import PackagedAutoencoder
from pipeline.packages.models import PackagedBeam
from pipeline.packages.prediction import DEFAULTS, TASKS, predict

PICTURES = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TOP = list(range(8))


def test_the_defaults_are_thirty_six_pictures(packaged_beam: PackagedBeam) -> None:
    drawn = predict(packaged_beam, None, {"gibbs_steps": 2})
    assert isinstance(drawn, np.ndarray) and drawn.dtype == np.uint8
    assert np.array_equal(drawn, packaged_beam.sample(36, 2, 0, "driven"))
    assert DEFAULTS["task"] == "sample" and set(TASKS) == {
        "sample", "reconstruct", "encode", "free_energy", "inpaint", "interpolate"
    }  # fmt: skip


def test_each_task_is_the_method_of_its_name(packaged_beam: PackagedBeam) -> None:
    b, two = packaged_beam, PICTURES[:2]
    asked: list[tuple[Any, dict, torch.Tensor]] = [
        (None, {"n_samples": 4, "gibbs_steps": 3, "seed": 9, "protocol": "persistent"}, b.sample(4, 3, 9, "persistent")),
        (PICTURES.numpy(), {"task": "reconstruct"}, b.reconstruct(PICTURES)),
        (PICTURES.tolist(), {"task": "encode"}, b.encode(PICTURES)),
        (PICTURES.double(), {"task": "free_energy"}, b.free_energy(PICTURES)),
        (two, {"task": "inpaint", "cells": TOP, "gibbs_steps": 2, "seed": 5}, b.inpaint(two, TOP, 2, 5)),
        (two, {"task": "inpaint", "cells": TOP, "paste": True, "gibbs_steps": 2}, b.inpaint(two, TOP, 2, paste=True)),
        (two, {"task": "interpolate", "steps": 3, "space": "hidden"}, b.interpolate(two, 3, "hidden")),
    ]  # fmt: skip
    for data, params, expected in asked:
        assert np.array_equal(predict(b, data, params), expected.numpy()), params


def test_pictures_as_png_are_the_same_pictures(packaged_beam: PackagedBeam) -> None:
    texts = predict(packaged_beam, PICTURES, {"task": "reconstruct", "image_format": "png"})
    decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in texts]
    assert np.array_equal(decoded, packaged_beam.reconstruct(PICTURES))


def test_hidden_activations_and_free_energy_are_those_of_the_whitened_latents(packaged_beam: PackagedBeam) -> None:
    b = packaged_beam
    assert b.autoencoder is not None
    latents = b.whitening.apply(b.autoencoder.encode(PICTURES))
    assert torch.equal(b.latents(PICTURES), latents)
    assert torch.equal(b.encode(PICTURES), b.rbm.hidden_mean(latents))
    assert torch.equal(b.free_energy(PICTURES), b.rbm.free_energy(latents))
    mean = b.rbm.visible_mean(b.rbm.hidden_mean(latents))
    assert torch.equal(b.reconstruct(PICTURES), b.autoencoder.decode(b.whitening.invert(mean)))


def test_inpainting_keeps_the_latents_of_the_clamped_cells(packaged_beam: PackagedBeam) -> None:
    b = packaged_beam
    latents, grid = b.latents(PICTURES), torch.zeros(4, 4, dtype=torch.bool)
    grid[:2] = True
    drawn = b.inpaint_latents(PICTURES, TOP, 3, 1)
    kept = torch.zeros(64, 4, 4, dtype=torch.bool)
    kept[:, :2] = True  # latents are channel, row, column
    for part in drawn:
        assert torch.equal(part[:, kept.flatten()], latents[:, kept.flatten()])
        assert not bool((part == latents)[:, ~kept.flatten()].any())
    for same in (grid, grid.numpy(), kept.flatten(), kept.flatten().expand(3, -1), np.array(TOP), tuple(TOP)):
        assert torch.equal(b.inpaint_latents(PICTURES, same, 3, 1).visible, drawn.visible)
    pictures = b.inpaint(PICTURES, TOP, 3, 1)
    assert b.autoencoder is not None
    assert torch.equal(pictures, b.autoencoder.decode(b.whitening.invert(drawn.visible_mean)))
    pasted = b.inpaint(PICTURES, TOP, 3, 1, paste=True)
    assert torch.equal(pasted[:, :32], PICTURES[:, :32]) and torch.equal(pasted[:, 32:], pictures[:, 32:])
    assert not torch.equal(pictures, b.inpaint(PICTURES, TOP, 3, 2))


def test_interpolation_starts_and_ends_at_the_decoded_pictures(packaged_beam: PackagedBeam) -> None:
    b, two = packaged_beam, PICTURES[:2]
    assert b.autoencoder is not None
    for space, ends in (("latent", b.autoencoder.reconstruct(two)), ("hidden", b.reconstruct(two))):
        way = b.interpolate(two, 6, space)
        assert way.shape == (6, 64, 64, 3)
        assert (way[[0, -1]].int() - ends.int()).abs().max() <= 1  # whitening and back moves the last bit of a latent


def test_a_model_of_points_answers_with_rows() -> None:
    beam = point_model("gaussian")
    rows = [[0.5, 1.5], [2.0, 3.0]]
    assert np.array_equal(predict(beam, None, {"n_samples": 5}), beam.sample(5))
    for data in (rows, np.array(rows), pd.DataFrame(rows, columns=["x", "y"])):
        assert np.array_equal(predict(beam, data, {"task": "encode"}), beam.encode(rows))
    filled = predict(beam, rows, {"task": "inpaint", "units": [0], "seed": 3})
    assert np.array_equal(filled, beam.inpaint(rows, [0], seed=3))
    with pytest.raises(ValueError, match="this model of points answers with numbers and not with pictures"):
        predict(beam, None, {"image_format": "png"})
    with pytest.raises(ValueError, match="a model of points has no image cells; name the units"):
        predict(beam, rows, {"task": "inpaint", "cells": [0]})


def test_the_autoencoder_reconstructs(packaged_autoencoder: PackagedAutoencoder) -> None:
    again = predict(packaged_autoencoder, PICTURES.numpy())
    assert np.array_equal(again, packaged_autoencoder.decode(packaged_autoencoder.encode(PICTURES)))
    with pytest.raises(ValueError, match=r"shape \[3, 64, 64, 1\]"):
        predict(packaged_autoencoder, PICTURES[..., :1])


@pytest.mark.parametrize(
    ("data", "params", "message"),
    [
        (None, {"sead": 1}, "unknown parameter 'sead'; the nearest is 'seed'"),
        (None, {"task": "draw"}, "task = 'draw': must be one of sample, reconstruct"),
        (PICTURES, {}, "task 'sample' takes no input"),
        (None, {"n_samples": 0}, "n_samples = 0: must be a whole number from 1 to 10000"),
        (None, {"n_samples": 2.0}, "n_samples = 2.0"),
        (None, {"n_samples": 1001}, "n_samples = 1001: one call takes at most 1000; split it, or call PackagedBeam's"),
        (None, {"n_samples": 257}, "at most 256 pictures as numbers; ask for image_format 'png'"),
        (None, {"gibbs_steps": 50_000}, r"gibbs_steps = 50000 for 36 rows: one call takes at most \d+ with so many"),
        (PICTURES, {"task": "inpaint", "cells": [0], "gibbs_steps": 100_000}, "gibbs_steps = 100000 for 3 rows"),
        (PICTURES, {"task": "inpaint"}, "needs what is kept: cells"),
        (PICTURES, {"task": "inpaint", "cells": 3}, "cells = 3: must be a list"),
        (PICTURES, {"task": "inpaint", "cells": [True]}, "cells has True"),
        (PICTURES, {"task": "inpaint", "cells": [0], "paste": 1}, "paste = 1: must be true or false"),
        (PICTURES, {"task": "interpolate"}, "has 3 rows"),
        (PICTURES, {"task": "encode", "image_format": "png"}, "task 'encode' answers with numbers"),
        (np.zeros((1001, 64, 64, 3)), {"task": "encode"}, "the input has 1001 rows: one call takes at most 1000"),
        (-PICTURES.int(), {"task": "encode"}, "a pixel is -[0-9]+: pixels must be from 0 to 255"),
        (None, {"task": "encode"}, "there is no input"),
    ],
)  # fmt: skip
def test_what_a_call_may_not_ask_for(packaged_beam: PackagedBeam, data: Any, params: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict(packaged_beam, data, params)

"""`mlflow models serve` with a packaged BEAM: the real server and an HTTP client; what is wrong is 4xx with the reason."""

import base64
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from mlflow import MlflowClient
from PIL import Image

from pipeline.packages.models import PackagedBeam
from pipeline.registry.promotion import set_candidate
from pipeline.registry.register import register_beam

MODEL = "models:/synthetic-faces-beam@candidate"
PICTURES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
START_SECONDS, ANSWER_SECONDS = 180, 60


@pytest.fixture(scope="module")
def server(
    packaged_beam: PackagedBeam, migrated_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Address of a running server of a tiny BEAM; every process of it is gone afterwards."""
    folder = tmp_path_factory.mktemp("served")
    uri = f"sqlite:///{shutil.copy(migrated_database, folder / 'mlflow.db')}"
    client = MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("tests", (folder / "artifacts").as_uri())).info.run_id
    score: dict[str, Any] = {"run_id": run_id, "data_hash": "d", "recipe": "r", "score": 1.0, "num_rows": 9}
    set_candidate("synthetic-faces-beam", register_beam(packaged_beam, **score, tracking=uri).version, tracking=uri)

    bin_folder = str(Path(sys.executable).parent)  # MLflow starts uvicorn by its name
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "MLFLOW_TRACKING_URI": uri}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["mlflow", "models", "serve", "-m", MODEL, "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while not is_alive(address):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own
        process.wait()


def is_alive(address: str) -> bool:
    try:
        return requests.get(f"{address}/ping", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False


def post(address: str, body: Any, content_type: str = "application/json") -> requests.Response:
    content = {"json": body} if isinstance(body, dict) else {"data": body}
    headers = {} if isinstance(body, dict) else {"Content-Type": content_type}
    return requests.post(f"{address}/invocations", **content, headers=headers, timeout=ANSWER_SECONDS)


def ask(address: str, inputs: Any = (), **params: Any) -> Any:
    answer = post(address, {"inputs": np.asarray(inputs).tolist(), "params": params})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def pictures_of(texts: list[str]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in texts])


def test_samples_come_as_numbers_and_as_png(server: str, packaged_beam: PackagedBeam) -> None:
    asked = {"n_samples": 3, "gibbs_steps": 2, "seed": 5}
    numbers = np.array(ask(server, **asked))
    assert numbers.shape == (3, 64, 64, 3)
    assert np.array_equal(pictures_of(ask(server, **asked, image_format="png")), numbers)
    # another process with another number of threads may round another way: one step of gray, where a value is halfway
    assert np.abs(numbers - packaged_beam.sample(3, 2, 5).numpy()).max() <= 1
    assert ask(server, **asked) == numbers.tolist()
    assert ask(server, **{**asked, "seed": 6}) != numbers.tolist()
    assert ask(server, **{**asked, "protocol": "persistent"}) != numbers.tolist()


def test_every_task_answers_as_in_python(server: str, packaged_beam: PackagedBeam) -> None:
    b = packaged_beam
    assert np.abs(ask(server, PICTURES, task="reconstruct") - b.reconstruct(PICTURES).numpy()).max() <= 1
    np.testing.assert_allclose(ask(server, PICTURES, task="encode"), b.encode(PICTURES), rtol=1e-4)
    np.testing.assert_allclose(ask(server, PICTURES, task="free_energy"), b.free_energy(PICTURES), rtol=1e-4)
    cells = {"task": "inpaint", "cells": [0, 1, 2, 3], "gibbs_steps": 2}
    filled = ask(server, PICTURES, **cells, seed=3)
    assert np.abs(filled - b.inpaint(PICTURES, [0, 1, 2, 3], 2, 3).numpy()).max() <= 1
    assert ask(server, PICTURES, **cells, seed=3) == filled != ask(server, PICTURES, **cells, seed=4)
    pasted = np.array(ask(server, PICTURES.astype(float), **cells, paste=True))
    assert np.array_equal(pasted[:, :16], PICTURES[:, :16])
    units = {"task": "inpaint", "units": [7, 1023], "gibbs_steps": 1, "image_format": "png"}
    assert pictures_of(ask(server, PICTURES, **units)).shape == (2, 64, 64, 3)
    for space in ("latent", "hidden"):
        between = ask(server, PICTURES, task="interpolate", steps=4, space=space)
        assert np.abs(between - b.interpolate(PICTURES, 4, space).numpy()).max() <= 1


NAN = '{"inputs": [[[[NaN, 0, 0]]]], "params": {"task": "encode"}}'
HALF = np.full((1, 64, 64, 3), 0.5).tolist()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("hello", "valid JSON"),
        ("", "valid JSON"),
        ("[1, 2]", "Received a list"),
        ({"params": {"n_samples": 1}}, "exactly one of the input fields"),
        (NAN, "NaN or infinite"),
        ({"inputs": [[1.0, 2.0], [3.0]], "params": {"task": "encode"}}, "inhomogeneous"),
        ({"inputs": [["a"]], "params": {"task": "encode"}}, "holds text: must be numbers"),
        ({"inputs": {"a": [1]}, "params": {"task": "encode"}}, "named parts (a)"),
        ({"inputs": PICTURES[:, 1:].tolist(), "params": {"task": "encode"}}, "shape [2, 63, 64, 3]"),
        ({"inputs": PICTURES[0].tolist(), "params": {"task": "encode"}}, "one picture is [1, 64, 64, 3]"),
        ({"inputs": (PICTURES.astype(int) + 1).tolist(), "params": {"task": "encode"}}, "a pixel is 256"),
        ({"inputs": HALF, "params": {"task": "reconstruct"}}, "a pixel is 0.5"),
        ({"inputs": [], "params": {"task": "encode"}}, "shape [0]"),
        ({"inputs": None, "params": {"task": "encode"}}, "there is no input"),
        ({"inputs": PICTURES[:1].tolist()}, "task 'sample' takes no input"),
        ({"inputs": [], "params": {"task": "dream"}}, "task = 'dream': must be one of sample, reconstruct"),
        ({"inputs": [], "params": {"n_samples": 10**9}}, "n_samples = 1000000000"),
        ({"inputs": [], "params": {"n_samples": 10**30}}, "n_samples = 1000000000"),
        ({"inputs": [], "params": {"n_samples": 1001, "image_format": "png"}}, "one call takes at most 1000"),
        ({"inputs": [], "params": {"n_samples": 257}}, "at most 256 pictures as numbers; ask for image_format 'png'"),
        ({"inputs": [], "params": {"n_samples": 64, "gibbs_steps": 100_000}}, "with so many rows; ask for less"),
        ({"inputs": [], "params": {"gibbs_steps": -1}}, "gibbs_steps = -1: must be a whole number from 1"),
        ({"inputs": [], "params": {"n_samples": 42, "protocol": "persistent"}}, "41 chains"),
        ({"inputs": [], "params": {"seed": "one"}}, "Can not safely convert"),
        ({"inputs": [], "params": {"n_samples": 2.5}}, "Can not safely convert"),
        ({"inputs": [], "params": {"n_samples": None}}, "n_samples = None: must be a whole number"),
        ({"inputs": [], "params": ["n_samples"]}, "must be a dictionary"),
        ({"inputs": PICTURES.tolist(), "params": {"task": "inpaint"}}, "needs what is kept"),
        ({"inputs": PICTURES.tolist(), "params": {"task": "inpaint", "cells": [16]}}, "cells has 16: must be whole"),
        ({"inputs": PICTURES.tolist(), "params": {"task": "inpaint", "units": [-1]}}, "units has -1: must be whole"),
        ({"inputs": PICTURES.tolist(), "params": {"task": "inpaint", "cells": 3}}, "must be a 1D array"),
        ({"inputs": PICTURES[:1].tolist(), "params": {"task": "interpolate"}}, "has 1 rows"),
        ({"inputs": PICTURES.tolist(), "params": {"task": "interpolate", "steps": 1}}, "steps = 1: must be a whole"),
        ({"inputs": PICTURES.tolist(), "params": {"task": "encode", "image_format": "png"}}, "answers with numbers"),
        ({"inputs": [], "params": {"image_format": "jpg"}}, "image_format = 'jpg': must be one of array, png"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_with_its_reason(server: str, body: Any, reason: str) -> None:
    answer = post(server, body)
    assert answer.status_code == 400
    told = answer.json()["message"]
    assert reason in told and "Traceback" not in answer.text
    assert is_alive(server)


def test_another_content_type_is_refused(server: str) -> None:
    assert post(server, "hello", "text/plain").status_code == 415
    assert post(server, "a,b\n1,2", "text/csv").status_code == 400
    assert requests.get(f"{server}/invocations", timeout=ANSWER_SECONDS).status_code == 405


def test_the_largest_request_is_answered_in_bounded_time(server: str) -> None:
    start = time.monotonic()
    pictures = pictures_of(ask(server, n_samples=1000, gibbs_steps=100, image_format="png"))
    assert len(pictures) == 1000 and time.monotonic() - start < ANSWER_SECONDS

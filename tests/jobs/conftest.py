"""A fresh MLflow database for each test (a migrated one is copied: migrations take seconds), and tiny packaged models."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mlflow_server import Relay, Server

from pipeline.config import AutoencoderConfig, RBMConfig, RunConfig
from pipeline.data.whitening import Whitening
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.rbm import RBM
from pipeline.packages.autoencoder import PackagedAutoencoder
from pipeline.packages.models import PackagedBeam
from pipeline.samplers.gibbs import ChainState
from pipeline.samplers.protocols import WideStart

NUM_CHAINS = 41


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database with its tables."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "template.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def tracking(migrated_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a database of this test's own, which is also the default; a blank in its path, as people have them."""
    folder = tmp_path / "my store"
    folder.mkdir()
    shutil.copy(migrated_database, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture
def dead_server(monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a port of this machine on which nobody listens; one attempt per request."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="session")
def started_server(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real MLflow server: it takes ten seconds to start, so all tests have the same one."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(migrated_database, folder / "mlflow.db")
    server = Server(folder)
    yield server
    server.kill()


@pytest.fixture
def server(started_server: Server) -> Server:
    """The server, running, whatever the test before did to it. Runs and models of other tests are there."""
    if not started_server.running:
        started_server.start()
    return started_server


@pytest.fixture
def relay(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """A relay to the server, where this test's jobs log; a request is not sent again by mlflow."""
    relay = Relay(server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", relay.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    yield relay
    relay.close()


@pytest.fixture(scope="session")
def packaged_autoencoder() -> PackagedAutoencoder:
    """The real autoencoder with random weights."""
    model = Autoencoder(AutoencoderConfig()).initialize_(torch.Generator().manual_seed(1))
    return PackagedAutoencoder(model, "float32", "synthetic-faces", {"reconstruction_mse": 0.25, "psnr": float("nan")})


@pytest.fixture(scope="session")
def packaged_beam(packaged_autoencoder: PackagedAutoencoder) -> PackagedBeam:
    """A BEAM of 7 hidden units with random weights."""
    g = torch.Generator().manual_seed(2)
    config = RunConfig("tiny", seed=3, model=RBMConfig(1024, 7))
    rbm = RBM(config.model)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.normal_(0, 0.02, generator=g)  # weak: the 7 hidden units stay random
    whitening = Whitening(torch.randn(1024, generator=g) * 0.1, torch.rand(1024, generator=g) + 0.5)
    start = WideStart(torch.zeros(1024), torch.ones(1024))
    chains = ChainState(
        torch.randn(NUM_CHAINS, 1024, generator=g),
        torch.rand(NUM_CHAINS, 7, generator=g).round(),
        torch.rand(NUM_CHAINS, 1, generator=g) + 0.5,
    )
    metrics = {"frechet_latent": 50.0, "recall": 0.3}
    return PackagedBeam(rbm, config, whitening, start, chains, packaged_autoencoder, "synthetic-faces", metrics)

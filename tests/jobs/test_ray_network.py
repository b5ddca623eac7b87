"""How workers find each other: the interface that gloo is told to use, and what Train's controller need not import."""

import inspect
import os
import subprocess
import sys

import psutil
import pytest

from jobs.ray_network import LOOPBACK, VARIABLE, NodeTorchConfig, _choose_interface, interface_of


def test_the_interface_of_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    name = interface_of(LOOPBACK)
    assert name in psutil.net_if_addrs() and name is not None and name.startswith("lo")
    assert interface_of("192.0.2.1") is None  # an address kept for documents
    monkeypatch.setenv(VARIABLE, "")  # so that it is restored
    monkeypatch.delenv(VARIABLE)
    _choose_interface("192.0.2.1")
    assert VARIABLE not in os.environ
    _choose_interface(LOOPBACK)
    assert os.environ[VARIABLE] == name
    monkeypatch.setenv(VARIABLE, "ib0")  # a user's choice
    _choose_interface(LOOPBACK)
    assert os.environ[VARIABLE] == "ib0"


def test_the_controller_of_train_imports_no_torch() -> None:
    """It unpickles this module's classes, and an import of torch would keep the workers from starting for a second."""
    script = "import jobs.ray_network, pickle, sys; c = jobs.ray_network.NodeTorchConfig('gloo', 1)"
    script += "; pickle.loads(pickle.dumps((c, c.backend_cls()))); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_is_called_of_ray_without_a_public_name_is_there() -> None:
    from ray.train.torch import config

    arguments = list(inspect.signature(config._setup_torch_process_group).parameters)
    assert arguments == ["backend", "world_rank", "world_size", "init_method", "timeout_s"]
    assert list(inspect.signature(config._shutdown_torch).parameters) == ["destroy_process_group"]
    assert not inspect.signature(config._set_torch_distributed_env_vars).parameters
    assert callable(config.TorchConfigContextManager().__enter__)
    ours, theirs = NodeTorchConfig("gloo", 5), config.TorchConfig("gloo", timeout_s=5)
    assert ours.framework == theirs.framework and ours.to_dict().items() <= theirs.to_dict().items()
    assert ours.backend_cls.share_cuda_visible_devices == theirs.backend_cls.share_cuda_visible_devices

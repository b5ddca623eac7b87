"""How the workers of Ray Train find each other, and which network they speak over with gloo.

Gloo by itself announces what the machine's name resolves to, which on many machines is 127.0.0.1: workers on two nodes then
do not find each other. Here it is the interface with the node's address in Ray, and loopback where all are on one node.
"""

import logging
import os
import socket
from dataclasses import asdict, dataclass
from typing import Any

import psutil
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework

from jobs.imports import importing

VARIABLE = "GLOO_SOCKET_IFNAME"
LOOPBACK = "127.0.0.1"
LEAVE_SECONDS = 30.0
"""Longest wait for workers to leave their group, Ray's default."""
_log = logging.getLogger(__name__)


def interface_of(address: str) -> str | None:
    """The network interface that has this address, None where there is none."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.family in (socket.AF_INET, socket.AF_INET6) and each.address == address for each in addresses):
            return name
    return None


def _node_address() -> str:
    import ray.util

    return str(ray.util.get_node_ip_address())


def _choose_interface(address: str | None) -> None:
    """Set gloo's interface in this process unless the environment names one; `address` None: the node's own."""
    name = interface_of(address or _node_address())
    if VARIABLE not in os.environ and name is not None:
        os.environ[VARIABLE] = name


def _prepare() -> str:
    """Import what joining a group takes, torch too; returns the node's address. Runs on every worker, as the next three."""
    with importing():
        import ray.train.torch.config  # noqa: F401
    return _node_address()


def _set_variables(address: str, port: int, one_node: bool) -> None:
    """What torch reads from the environment of a process; the first worker is reached at `address`."""
    from ray.train.torch.config import _set_torch_distributed_env_vars

    _choose_interface(LOOPBACK if one_node else None)
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    _set_torch_distributed_env_vars()


def _join_group(config: "NodeTorchConfig") -> None:
    import ray.train
    from ray.train.torch.config import _setup_torch_process_group

    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    _setup_torch_process_group(config.backend, rank, size, "env://", config.timeout_s)


def _leave_group(num_workers: int) -> None:
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=num_workers > 1)


class _Backend(Backend):
    """Runs in Train's controller, where an import of torch would be a second in which no worker starts."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        nodes = set(worker_group.execute(_prepare))
        address, port = worker_group.execute_single(0, get_address_and_port)  # last, or others may take the port
        worker_group.execute(_set_variables, address, port, len(nodes) == 1)
        worker_group.execute(_join_group, backend_config)  # all can: who fails before leaves nobody waiting

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        import ray

        leaving = worker_group.execute_async(_leave_group, len(worker_group))
        try:
            ray.get(leaving, timeout=LEAVE_SECONDS)
        except GetTimeoutError:
            _log.warning("a worker did not leave its group within %s s", LEAVE_SECONDS)


class _OwnDevice:
    """Around the function of a worker: its GPU, where it has one, is torch's current device."""

    def __enter__(self) -> None:
        from ray.train.torch.config import TorchConfigContextManager

        TorchConfigContextManager().__enter__()

    def __exit__(self, *_error: object) -> None:
        pass


@dataclass
class NodeTorchConfig(BackendConfig):
    """Ray's TorchConfig, with gloo on the network that the nodes share, and torch on the workers alone."""

    backend: str
    timeout_s: int
    """Longest wait in one collective."""

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend

    @property
    def train_func_context(self) -> type[_OwnDevice]:
        return _OwnDevice

    @property
    def framework(self) -> TrainingFramework:
        return TrainingFramework.TORCH

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

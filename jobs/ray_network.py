"""Which network the workers of a Ray Train group speak over with gloo.

Gloo by itself announces what the machine's name resolves to, which on many machines is 127.0.0.1: workers on two nodes then
do not find each other. Here it is the interface with the node's address in Ray, and loopback where all are on one node.
"""

import os
import socket
from dataclasses import dataclass
from typing import Any

import psutil
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

VARIABLE = "GLOO_SOCKET_IFNAME"
LOOPBACK = "127.0.0.1"


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


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        nodes = set(worker_group.execute(_node_address))
        worker_group.execute(_choose_interface, LOOPBACK if len(nodes) == 1 else None)
        super().on_start(worker_group, backend_config)


@dataclass
class NodeTorchConfig(TorchConfig):
    """Ray's TorchConfig, with gloo on the network that the nodes share."""

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend

"""The interface that gloo is told to use."""

import os

import psutil
import pytest

from jobs.ray_network import LOOPBACK, VARIABLE, _choose_interface, interface_of


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

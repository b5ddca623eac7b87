"""What RAY_ADDRESS may be: a cluster's job server (http) takes a job, its own address lets a process join as a driver."""

from typing import Literal
from urllib.parse import urlsplit


class AddressError(ValueError):
    """RAY_ADDRESS cannot be used; says why and what to give."""


def address_kind(address: str) -> Literal["jobs", "driver"]:
    """What `address` is for: "jobs" (`http://host:8265`, `jobs.submit`) or "driver" (`auto`, `host:6379`, on the cluster).

    Raises:
        AddressError: `ray://`, another scheme, a URL without a host, a URL that carries a password.
    """
    if address == "auto":
        return "driver"
    scheme, separator, _ = address.partition("://")
    if not separator:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise AddressError(f"RAY_ADDRESS={address}: give http://HOST:8265, HOST:6379 or auto")
        return "driver"
    if scheme == "ray":
        raise AddressError(
            f"RAY_ADDRESS={address}: a driver that is connected through ray:// ends with its connection, and a job here "
            "writes its results from the driver; give http://HOST:8265, the same cluster's job server"
        )
    if scheme not in ("http", "https"):
        raise AddressError(
            f"RAY_ADDRESS={address}: unknown scheme {scheme!r}; give http://HOST:8265, HOST:6379 or auto"
        )
    parts = urlsplit(address)
    if parts.username or parts.password:
        raise AddressError(
            f"RAY_ADDRESS={scheme}://...@{parts.hostname}: no user or password in an address, others see it; "
            "the token goes into a file that RAY_AUTH_TOKEN_PATH names"
        )
    if not parts.hostname:
        raise AddressError(f"RAY_ADDRESS={address}: no host in it; give http://HOST:8265")
    return "jobs"

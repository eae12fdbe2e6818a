"""The addresses of a host: name resolution and routes."""

import ipaddress
import queue
import socket
import threading
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from proxyhealth.probing.deadline import Deadline
from proxyhealth.probing.policy import IPAddress
from proxyhealth.utils import PerProcess

# Limit of simultaneous name resolutions in one process. Each one that hangs keeps a thread.
MAX_LOOK_UPS = 1_024
MAX_ADDRESSES = 8  # of a name, those that the system prefers: its owner can give it thousands


class Address(NamedTuple):
    family: int
    sockaddr: Any


def routable(addresses: list[Address]) -> list[Address]:
    """Return the addresses that have a route, or all of them if none has.

    A host without IPv6 still resolves IPv6 addresses, and attempts to connect to them would take time.
    """
    if len(addresses) == 1:
        return addresses
    with_route = []
    for address in addresses:
        with suppress(OSError), socket.socket(address.family, socket.SOCK_DGRAM) as sock:
            sock.connect(address.sockaddr)  # UDP: sends nothing
            with_route.append(address)
    return with_route or addresses


_parse_ip = lru_cache(maxsize=16_384)(ipaddress.ip_address)  # the same addresses in each round


def address_ip(address: Address) -> IPAddress:
    return _parse_ip(address.sockaddr[0])


def look_up(host: str, port: int, deadline: Deadline) -> list[Address]:
    """Resolve ``host``, without a cache, to at most ``MAX_ADDRESSES``.

    Raise ``TimeoutError`` or ``socket.gaierror``.
    """
    if ":" in host:
        return [Address(socket.AF_INET6, (host, port, 0, 0))]
    if host.rpartition(".")[2].isdecimal():  # no name ends in a number
        return [Address(socket.AF_INET, (host, port))]
    addresses = dict.fromkeys(
        Address(family, sockaddr)
        for family, _type, _protocol, _name, sockaddr in _resolve(host, port, deadline)[:MAX_ADDRESSES]
        if family in (socket.AF_INET, socket.AF_INET6)
    )
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, "the name has no address")
    return list(addresses)


_free_look_ups = PerProcess(lambda: threading.BoundedSemaphore(MAX_LOOK_UPS))


def _resolve(host: str, port: int, deadline: Deadline) -> Any:
    """Call ``socket.getaddrinfo`` in a thread: nothing can interrupt it, but the caller can stop waiting."""
    free = _free_look_ups.value
    with deadline.pause():
        if not free.acquire(timeout=deadline.remaining()):
            raise TimeoutError
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            results.put(error)
        finally:
            free.release()

    try:
        threading.Thread(target=work, name=f"look-up {host}", daemon=True).start()
    except RuntimeError:
        free.release()
        raise
    try:
        with deadline.pause():
            result = results.get(timeout=deadline.remaining())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(result, Exception):
        # Without free file descriptors, the resolver reports an unknown name. This raises the real error.
        socket.socket().close()
        raise result
    return result

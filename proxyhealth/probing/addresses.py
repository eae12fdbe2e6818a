"""The addresses of a host: name resolution, address policy and routes."""

import ipaddress
import queue
import socket
import threading
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from proxyhealth.conf import Network
from proxyhealth.probing.deadline import Deadline
from proxyhealth.utils import PerProcess

# Limit of simultaneous name resolutions in one process. Each one that hangs keeps a thread.
MAX_LOOK_UPS = 1_024

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LOOPBACK = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))


class AddressPolicy(NamedTuple):
    """The networks that probes may connect to. ``allow``, unless empty, takes precedence over ``deny``."""

    deny: tuple[Network, ...] = ()
    allow: tuple[Network, ...] = ()

    def permits(self, address: IPAddress) -> bool:
        forms = [address]
        if isinstance(address, ipaddress.IPv6Address):
            # An IPv4 address inside an IPv6 address reaches the same machine.
            embedded = address.ipv4_mapped or address.sixtofour
            if address in _NAT64:
                embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
            if embedded:
                forms.append(embedded)
        if any(form.is_unspecified for form in forms):
            # Connecting to 0.0.0.0 or :: reaches this machine.
            forms += _LOOPBACK
        if self.allow:
            return any(form in network for form in forms for network in self.allow)
        return not any(form in network for form in forms for network in self.deny)


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
    """Resolve ``host``, without a cache. Raise ``TimeoutError`` or ``socket.gaierror``."""
    if ":" in host:
        return [Address(socket.AF_INET6, (host, port, 0, 0))]
    if host.rpartition(".")[2].isdecimal():  # no name ends in a number
        return [Address(socket.AF_INET, (host, port))]
    addresses = dict.fromkeys(
        Address(family, sockaddr)
        for family, _type, _protocol, _name, sockaddr in _resolve(host, port, deadline)
        if family in (socket.AF_INET, socket.AF_INET6)
    )
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, "the name has no address")
    return list(addresses)


_free_look_ups = PerProcess(lambda: threading.BoundedSemaphore(MAX_LOOK_UPS))


def _resolve(host: str, port: int, deadline: Deadline) -> Any:
    """Call ``socket.getaddrinfo`` in a thread: nothing can interrupt it, but the caller can stop waiting."""
    free = _free_look_ups.value
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
        result = results.get(timeout=deadline.remaining())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(result, Exception):
        # Without free file descriptors, the resolver reports an unknown name. This raises the real error.
        socket.socket().close()
        raise result
    return result

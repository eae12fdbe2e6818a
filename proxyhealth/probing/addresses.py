"""The addresses of a host: looked up anew, held to the address policy, and those with a route."""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from proxyhealth.conf import Network
from proxyhealth.probing.deadline import Deadline

# Look-ups under way in this process: a resolver that hangs must not use up all threads.
MAX_LOOK_UPS = 1_024

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LOOPBACK = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))


class AddressPolicy(NamedTuple):
    """Which addresses may be connected to."""

    deny: tuple[Network, ...] = ()
    allow: tuple[Network, ...] = ()

    def permits(self, address: IPAddress) -> bool:
        forms = [address]
        if isinstance(address, ipaddress.IPv6Address):
            # An IPv4 address in IPv6 clothes reaches the same machine.
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
    """Those to which there is a route, if there are any: the others would only take their time.

    A host with IPv4 alone gets to know the IPv6 addresses of a name, too.
    """
    if len(addresses) == 1:
        return addresses
    found = []
    for address in addresses:
        with suppress(OSError), socket.socket(address.family, socket.SOCK_DGRAM) as sock:
            sock.connect(address.sockaddr)  # sends nothing
            found.append(address)
    return found or addresses


_parse_ip = lru_cache(maxsize=16_384)(ipaddress.ip_address)  # the same ones, round after round


def address_ip(address: Address) -> IPAddress:
    return _parse_ip(address.sockaddr[0])


_look_ups = threading.BoundedSemaphore(MAX_LOOK_UPS)


def look_up(host: str, port: int, deadline: Deadline) -> list[Address]:
    """The addresses of ``host``, looked up anew; raises ``TimeoutError`` or ``socket.gaierror``.

    The resolver of the C library cannot be interrupted, so it gets a thread that nobody waits
    for longer than the deadline. A literal address needs neither.
    """
    if ":" in host:
        return [Address(socket.AF_INET6, (host, port, 0, 0))]
    if host.rpartition(".")[2].isdecimal():  # no name ends in a number
        return [Address(socket.AF_INET, (host, port))]

    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            answers.put(error)
        finally:
            _look_ups.release()

    if not _look_ups.acquire(timeout=deadline.remaining()):
        raise TimeoutError
    try:
        threading.Thread(target=resolve, name=f"look-up {host}", daemon=True).start()
    except RuntimeError:
        _look_ups.release()
        raise
    try:
        answer = answers.get(timeout=deadline.remaining())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        # The resolver takes a process without descriptors for a name that there is not; this does not.
        socket.socket().close()
        raise answer
    addresses = dict.fromkeys(
        Address(family, sockaddr)
        for family, _type, _protocol, _name, sockaddr in answer
        if family in (socket.AF_INET, socket.AF_INET6)
    )
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, "the name has no address")
    return list(addresses)

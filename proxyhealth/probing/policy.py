"""The addresses that probes may connect to: denied and allowed networks, and the direction of redirects."""

import ipaddress
from collections.abc import Iterable
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple, Self

from proxyhealth.conf import IPV4_AS_IPV6, LINK_LOCAL_NETWORKS, METADATA_NETWORKS, Network, is_within

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Ring(IntEnum):
    """The networks from the outside to this machine. A redirect must not lead to a higher ring."""

    PUBLIC = 0
    SPECIAL_PURPOSE = 1
    PRIVATE = 2
    LINK_LOCAL_OR_METADATA = 3
    LOOPBACK = 4

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", " ").replace("link ", "link-").replace("special ", "special-")


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, texts))


# The registries of IANA for special-purpose addresses. The first ring that contains an address counts.
_RINGS = {
    Ring.LOOPBACK: _networks("127.0.0.0/8", "0.0.0.0/8", "::1", "::"),
    Ring.LINK_LOCAL_OR_METADATA: _networks(*LINK_LOCAL_NETWORKS, *METADATA_NETWORKS),
    Ring.PRIVATE: _networks(
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
        *("100.64.0.0/10", "192.0.0.0/24"),  # between customers and their provider
        *("fc00::/7", "fec0::/10"),
    ),
    Ring.SPECIAL_PURPOSE: _networks(
        *("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20"),  # examples
        *("198.18.0.0/15", "2001:2::/48"),  # benchmarks
        *("192.88.99.0/24", "2001:10::/28"),  # anycast of 6to4, ORCHID
        *("224.0.0.0/3", "::/3", "4000::/2", "8000::/1"),  # multicast, reserved
    ),
}

_COMPATIBLE = ipaddress.IPv6Network("::/96")
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
# The bytes of the IPv4 address after a prefix of 48, 56, 64, and 96 bits (RFC 6052).
_NAT64_BYTES = ((6, 7, 9, 10), (7, 9, 10, 11), (9, 10, 11, 12), (12, 13, 14, 15))
_ISATAP = (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe")

# Connecting to an unspecified address reaches this machine.
_UNSPECIFIED: dict[IPAddress, IPAddress] = {
    ipaddress.IPv4Address(0): ipaddress.IPv4Address("127.0.0.1"),
    ipaddress.IPv6Address(0): ipaddress.IPv6Address("::1"),
}


class _Route(NamedTuple):
    """The destinations of a connection to one address."""

    named: tuple[IPAddress, ...]  # none of them may be denied
    reached: tuple[tuple[IPAddress, Ring], ...]  # all of them must be allowed
    outermost: Ring
    innermost: Ring


class AddressPolicy(NamedTuple):
    """The networks that probes may connect to. ``allow``, unless empty, takes precedence over ``deny``.

    ``limit`` is the innermost ring that a redirect may lead to, unless ``allow`` names the network.
    """

    deny: tuple[Network, ...] = ()
    allow: tuple[Network, ...] = ()
    limit: Ring = Ring.LOOPBACK

    def after(self, hop: IPAddress) -> Self:
        """Return the policy for redirects of ``hop``. The outermost hop counts: outsiders may control it."""
        return self._replace(limit=min(self.limit, _route(hop).outermost))

    def permits(self, address: IPAddress) -> bool:
        route = _route(address)
        if self.allow:
            return all(self._allows(form, ring) for form, ring in route.reached)
        if route.innermost > self.limit:
            return False
        return not any(form in network for form in route.named for network in self.deny)

    def _allows(self, address: IPAddress, ring: Ring) -> bool:
        allowing = [network for network in self.allow if address in network]
        if ring > self.limit or ring is Ring.LINK_LOCAL_OR_METADATA:
            # The network must be named: 0.0.0.0/0 names none.
            inner = [network for at, networks in _RINGS.items() if at >= ring for network in networks]
            return any(is_within(network, inner) for network in allowing)
        return bool(allowing)

    def refusal(self, name: str, addresses: Iterable[IPAddress]) -> str:
        """Return the reason why none of the ``addresses`` of a host is permitted."""
        direct = self._replace(limit=Ring.LOOPBACK)
        inner = [_route(address).innermost for address in addresses if direct.permits(address)]
        if not inner:
            return f"ADDRESS_DENY or ADDRESS_ALLOW refuses {name}"
        return (
            f"redirected from a {self.limit.label} to a {min(inner).label} network, {name}; "
            "if that is intended, change the proxy's URL to the target, or name the network in ADDRESS_ALLOW"
        )


@lru_cache(maxsize=16_384)  # the same addresses in each round
def _route(address: IPAddress) -> _Route:
    named: list[IPAddress] = [address]
    reached: list[IPAddress] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        if same := _same_ipv4(address):
            named += same
            reached = [*same]
        else:
            tunnels = _tunnels(address)
            named += tunnels
            reached += tunnels
    if any(form in _UNSPECIFIED for form in named):
        named += _UNSPECIFIED.values()
    reached = [_UNSPECIFIED.get(form, form) for form in reached]
    rings = [_ring(form) for form in reached]
    return _Route(tuple(named), tuple(zip(reached, rings, strict=True)), min(rings), max(rings))


def _same_ipv4(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """Return the IPv4 address of the same machine. If its position is unknown, return all possible ones."""
    data = address.packed
    if address in _LOCAL_NAT64:
        found = [ipaddress.IPv4Address(bytes(data[i] for i in places)) for places in _NAT64_BYTES]
        return [ip for ip in found if ip.packed[0]]  # 0.0.0.0/8: the prefix has another length
    if any(address in network for network in IPV4_AS_IPV6) or (address in _COMPATIBLE and int(address) > 1):
        return [ipaddress.IPv4Address(data[12:])]
    return []


def _tunnels(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """Return the IPv4 addresses of the machines that forward packets to ``address``: 6to4, Teredo, ISATAP."""
    data = address.packed
    found = []
    if data.startswith(b"\x20\x02"):
        found.append(data[2:6])
    if data.startswith(b"\x20\x01\x00\x00"):
        found += [data[4:8], bytes(byte ^ 0xFF for byte in data[12:])]
    if data[8:12] in _ISATAP:
        found.append(data[12:])
    return list(map(ipaddress.IPv4Address, found))


def _ring(address: IPAddress) -> Ring:
    for ring, networks in _RINGS.items():
        if any(address in network for network in networks):
            return ring
    return Ring.PUBLIC

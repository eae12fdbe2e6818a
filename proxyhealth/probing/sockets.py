"""Sockets that enforce the deadline and the limit of bytes of a probe.

A socket timeout limits a single operation, so a peer that sends one byte per second never exceeds it. Here
each operation gets the time that remains until one deadline.
"""

import socket
import ssl
from collections.abc import Callable
from typing import Any

from proxyhealth.exceptions import TooManyBytes
from proxyhealth.probing.deadline import Deadline

# More than a health report needs, but little enough for thousands of simultaneous probes.
MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 512 * 1024


class _Bounded:
    """A socket mixin: each receive gets the time and the bytes that remain."""

    deadline: Deadline
    bytes_left = MAX_HEADER_BYTES
    ended = False  # the peer has closed its side
    settimeout: Callable[[float | None], None]

    def _receive(self, receive: Callable[..., int], *args: Any) -> int:
        self.settimeout(self.deadline.remaining())
        try:
            count = receive(*args)
        finally:
            self.deadline.remaining()  # if the time is over, report that, not the error it caused
        self.ended = self.ended or count == 0
        self.bytes_left -= count
        if self.bytes_left < 0:
            raise TooManyBytes
        return count


class PlainSocket(_Bounded, socket.socket):
    """A bounded socket without TLS."""

    def recv_into(self, *args: Any) -> int:
        return self._receive(super().recv_into, *args)


class TLSSocket(_Bounded, ssl.SSLSocket):
    """A bounded socket with TLS."""

    constructed = False

    def recv_into(self, *args: Any) -> int:
        return self._receive(super().recv_into, *args)

    def __del__(self) -> None:
        # If the peer has already reset the connection, the constructor raises and leaves the socket open.
        if not self.constructed:
            self.close()
        super().__del__()  # type: ignore[misc]  # warns of a socket that nobody closed

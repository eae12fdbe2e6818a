"""Sockets that enforce the limits of a probe.

A socket timeout limits a single operation, so a peer that sends one byte per second never exceeds it. Here
each operation gets the time that remains until one deadline.
"""

import re
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from proxyhealth.exceptions import TooManyBytes
from proxyhealth.probing.deadline import Deadline

T = TypeVar("T")

# Enough for the longest chains of certificates that public authorities issue.
MAX_HANDSHAKE_BYTES = 32 * 1024
_READ_SIZE = 16 * 1024

# Records of TLS.
_HEADER_SIZE = 5
_MAX_RECORD_SIZE = _HEADER_SIZE + 16 * 1024 + 256
_RECORD_TYPES = range(20, 25)
_HANDSHAKE = 22
_SERVER_HELLO = 2
# The random number of a HelloRetryRequest, a ServerHello that demands another group.
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
_FINITE_FIELD = re.compile(rb"\0\x33\0\x02\x01[\0-\x04]")  # the key share of a group


class PlainSocket(socket.socket):
    """A bounded socket without TLS."""

    deadline: Deadline
    ended = False  # the peer has closed its side

    def recv_into(self, *args: Any) -> int:
        return self._bounded(super().recv_into, *args)

    def _bounded(self, receive: Callable[..., T], *args: Any) -> T:
        self.deadline.pace()
        self.settimeout(self.deadline.remaining())
        try:
            with self.deadline.pause():
                result = receive(*args)
        except OSError:
            self.deadline.remaining()  # if the time is over, report that, not the error it caused
            raise
        self.ended = not result
        return result


class TLSSocket(PlainSocket):
    """A bounded socket with TLS.

    OpenSSL gets bytes only from here, never from the connection: one of its calls would last, and compute, as
    long as the peer sends records without data, such as session tickets.
    """

    def start(self, context: ssl.SSLContext, server_name: str) -> None:
        """Prepare the handshake."""
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._received, self._to_send, server_hostname=server_name)
        self._records = bytearray()  # received, but not complete
        self._overhead = 0  # bytes without data that OpenSSL got
        self._hello = b""  # the ServerHello, until it is whole
        self._greeted = False
        self._connected = False

    def do_handshake(self) -> None:
        """Shake hands. Raise ``OSError``."""
        self._run(self._compute_handshake)
        self._connected = True
        self._overhead = 0

    def _compute_handshake(self) -> None:
        with self.deadline.pause():  # OpenSSL computes without the interpreter, on another processor
            self.tls.do_handshake()

    def recv_into(self, buffer: Any, *args: Any) -> int:
        count = 0
        with suppress(ssl.SSLEOFError):  # closed without notice, as many servers do
            count = int(self._run(self.tls.read, len(buffer), buffer))
        self.ended = not count
        self._overhead -= count
        return count

    def sendall(self, data: Any, *args: Any) -> None:
        self._run(self.tls.write, data)  # fits into one record

    def _run(self, call: Callable[..., Any], *args: Any) -> Any:
        while True:
            with suppress(ssl.SSLWantReadError):
                try:
                    return call(*args)
                finally:
                    self._flush()  # also an alert, for the log of the server
            self._feed()

    def _flush(self) -> None:
        if self._to_send.pending:
            self.settimeout(self.deadline.remaining())
            with suppress(ConnectionError):  # reading says why the peer has closed
                super().sendall(self._to_send.read())

    def _feed(self) -> None:
        """Give OpenSSL the next complete records."""
        if self._connected:
            self.deadline.count_tls_overhead(self._overhead)  # all data was read
            self._overhead = 0
        elif self._overhead > MAX_HANDSHAKE_BYTES:
            raise TooManyBytes(f"more than {MAX_HANDSHAKE_BYTES // 1024} KiB of TLS")
        while not (end := self._complete()):
            if not (data := self._bounded(self.recv, _READ_SIZE)):
                self._received.write(self._records)
                self._received.write_eof()
                return
            self._records += data
        self._received.write(self._records[:end])
        self._overhead += end
        del self._records[:end]

    def _complete(self) -> int:
        """Return the length of the complete records, or of all bytes if they are not TLS."""
        records, end = self._records, 0
        while len(records) >= end + _HEADER_SIZE:
            size = _HEADER_SIZE + int.from_bytes(records[end + 3 : end + 5])
            if records[end] not in _RECORD_TYPES or size > _MAX_RECORD_SIZE:
                return len(records)  # OpenSSL says what is wrong
            if len(records) < end + size:
                break
            if not self._greeted and records[end] == _HANDSHAKE:
                self._hello += records[end + _HEADER_SIZE : end + size]
                self._greeted = _is_whole(self._hello)
            end += size
        return end


def _is_whole(hello: bytes) -> bool:
    """Return True if a ServerHello is complete: its records may be short.

    Raise ``SSLError`` if it demands a Diffie-Hellman group, which OpenSSL would accept. A key exchange with
    the largest one takes 200 times the CPU of a usual handshake.
    """
    if not bytes([_SERVER_HELLO]).startswith(hello[:1]):
        raise ssl.SSLError(1, "the server does not begin with a ServerHello")
    if len(hello) < 4 or len(hello) < 4 + int.from_bytes(hello[1:4]):
        return False
    if hello[6:38] == _RETRY and _FINITE_FIELD.search(hello):
        raise ssl.SSLError(1, "the server demands a key exchange without elliptic curves")
    return True

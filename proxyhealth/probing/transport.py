"""One fresh connection, bounded as a whole: name look-up, address policy, TLS, deadline, bytes.

The timeouts of sockets, and of what is built on them, bound each single operation; a peer
that sends a byte a second never meets them. Here every operation gets what is left of one
deadline.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, cast

import certifi

from proxyhealth.exceptions import AddressBlocked, TooManyBytes
from proxyhealth.probing.addresses import Address, AddressPolicy, IPAddress, address_ip, look_up, routable
from proxyhealth.probing.deadline import Cut, Deadline, watchdog

# More than a health report ever needs, and little enough for thousands of probes at once.
MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 512 * 1024
MAX_CHUNK_LINE = 4 * 1024

_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,16})[ \t]*[;\r\n]")
_CONTENT_LENGTH = re.compile(r"[0-9]{1,18}")
_CLOSED = "the connection was closed"


class _Bounded:
    """What the sockets below share: each receive gets what is left of the deadline and of the bytes."""

    deadline: Deadline
    bytes_left = MAX_HEADER_BYTES
    ended = False  # the peer has closed its side
    settimeout: Callable[[float | None], None]

    def _receive(self, receive: Callable[..., int], *args: Any) -> int:
        self.settimeout(self.deadline.remaining())
        try:
            count = receive(*args)
        finally:
            self.deadline.remaining()  # if the time is over, that is what went wrong
        self.ended = self.ended or count == 0
        self.bytes_left -= count
        if self.bytes_left < 0:
            raise TooManyBytes
        return count


class _PlainSocket(_Bounded, socket.socket):
    def recv_into(self, *args: Any) -> int:
        return self._receive(super().recv_into, *args)


class _TLSSocket(_Bounded, ssl.SSLSocket):
    made = False

    def recv_into(self, *args: Any) -> int:
        return self._receive(super().recv_into, *args)

    def __del__(self) -> None:
        # The constructor leaves it open, out of anybody's reach, if the peer has reset the connection by now.
        if not self.made:
            self.close()
        super().__del__()  # type: ignore[misc]  # warns of one that somebody forgot


class Response(http.client.HTTPResponse):
    """A response that is only one if it is complete.

    The parent takes headers and bodies that end with the connection for whole ones, and
    guesses where the length of a body is nonsense.
    """

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._sock = sock

    def begin(self) -> None:
        """Raises ``HTTPException`` for headers that can be read in more ways than one."""
        start = self.fp.peek(1)[:64]
        if not b"HTTP/".startswith(start[:5]):
            # Waiting for the end of a line that is none would make it a timeout.
            raise http.client.BadStatusLine(start.decode("latin-1"))
        super().begin()
        while 101 < self.status < 200:
            # Informational; the parent skips no other than 100.
            self.headers = None  # type: ignore[assignment]
            super().begin()
        if self._sock.ended:
            # The parser reads on only where a line is not complete yet.
            raise ConnectionResetError(f"{_CLOSED} in the middle of the headers")
        if self.headers.defects or self.headers.get_payload():
            raise http.client.HTTPException("a header line that is none came")
        if not self.chunked and "Transfer-Encoding" in self.headers:
            raise http.client.HTTPException("a Transfer-Encoding other than chunked came")
        lengths = {length.strip() for length in self.headers.get_all("Content-Length", ())}
        if len(lengths) > 1:
            raise http.client.HTTPException("more than one Content-Length came")
        if not all(map(_CONTENT_LENGTH.fullmatch, lengths)):
            raise http.client.HTTPException("a Content-Length that is no number of bytes came")

    def read(self, amt: int | None = None) -> bytes:
        """Raises ``HTTPException`` if the body is cut off, besides what the socket raises."""
        try:
            data = super().read(amt)
        except (http.client.IncompleteRead, http.client.LineTooLong, ValueError):
            why = _CLOSED if self._sock.ended else "its chunks are malformed"
            raise http.client.HTTPException(why) from None
        if not data and (self.length or (self.chunked and self._sock.ended)):
            raise http.client.HTTPException(_CLOSED)
        return data

    def _read_next_chunk_size(self) -> int:
        # The parent's takes whatever int() does: "0x2", "+2", "1_0".
        line = self.fp.readline(MAX_CHUNK_LINE + 1)
        size = _CHUNK_SIZE.match(line)
        if size is None or len(line) > MAX_CHUNK_LINE:
            raise ValueError("a malformed chunk size")
        return int(size[1], 16)


class Connection(http.client.HTTPConnection):
    """An HTTP connection that looks its host up, checks the address, and connects, once."""

    response_class = Response
    sock: _PlainSocket | _TLSSocket

    def __init__(
        self,
        host: str,
        port: int,
        *,
        deadline: Deadline,
        policy: AddressPolicy,
        context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(host, port)
        if context is not None:
            self.default_port = http.client.HTTPS_PORT  # what the Host header leaves out
        self.deadline = deadline
        self.tls_expires_at: datetime | None = None  # when the certificate of the peer ends
        self._policy = policy
        self._context = context
        self._cut: Cut | None = None

    def connect(self) -> None:
        """Raises ``AddressBlocked``, or what the operating system and OpenSSL raise."""
        self.deadline.phase = f"looking up {self.host}"
        addresses = look_up(self.host, self.port, self.deadline)
        permitted = [address for address in addresses if self._policy.permits(address_ip(address))]
        if not permitted:
            refused = ", ".join(dict.fromkeys(str(address_ip(address)) for address in addresses))
            raise AddressBlocked(f"{self.host} is {refused}, refused by ADDRESS_DENY or ADDRESS_ALLOW")
        sock, peer = self._dial(routable(permitted))
        if self._context is None:
            self.sock = sock
        else:
            self.deadline.phase += ", in the TLS handshake"
            self.sock = self._wrap(sock, self._context)
        self.sock.deadline = self.deadline
        at = "" if str(peer) == self.host else f" at {peer}"
        self.deadline.phase = f"waiting for {self.host}{at} to answer"

    def _dial(self, addresses: Sequence[Address]) -> tuple[_PlainSocket, IPAddress]:
        failed: list[str] = []
        left = list(addresses)
        while True:
            address = left.pop(0)
            self.deadline.phase = f"connecting to {address_ip(address)} port {self.port}"
            if failed:
                self.deadline.phase += f" (before that, {', '.join(failed)})"
            sock = _PlainSocket(address.family, socket.SOCK_STREAM)
            try:
                # An address that keeps silent leaves its share of the time to those after it.
                sock.settimeout(self.deadline.remaining() / (1 + len(left)))
                sock.connect(address.sockaddr)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(self.deadline.remaining())
            except OSError as error:
                sock.close()
                if not left:
                    raise
                failed.append(f"{address_ip(address)}: {error.strerror or 'no answer'}")
            else:
                return sock, address_ip(address)

    def _wrap(self, sock: _PlainSocket, context: ssl.SSLContext) -> _TLSSocket:
        try:
            name = self.host.removesuffix(".")
            # The context makes sockets of the class that it was given.
            wrapped = cast(
                _TLSSocket, context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
            )
        except BaseException:
            sock.close()
            raise
        wrapped.made = True
        # One call into OpenSSL goes on for as long as records come that hold no data, such as tokens;
        # it never gets to look at the time. So somebody else does.
        self._cut = watchdog.watch(wrapped, self.deadline)
        try:
            wrapped.do_handshake()
        except BaseException as error:
            wrapped.close()
            if isinstance(error, OSError):
                self.deadline.remaining()  # if the time is over, that is what went wrong
            raise
        with suppress(ValueError, KeyError):  # a certificate may hold bytes that are no text
            certificate = cast(dict[str, Any], wrapped.getpeercert())
            end = ssl.cert_time_to_seconds(certificate["notAfter"])
            self.tls_expires_at = datetime.fromtimestamp(end, UTC)
        return wrapped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        # Not in close(), which the parent calls while the response is still to be read.
        self.close()
        if self._cut is not None:
            self._cut.cancel()

    def getresponse(self) -> http.client.HTTPResponse:
        self.sock.settimeout(self.deadline.remaining())
        sock = self.sock  # the parent lets go of it when the response will close the connection
        response = super().getresponse()
        sock.bytes_left = MAX_BODY_BYTES
        self.deadline.phase = f"reading the report of {self.host}"
        return response


def tls_context(ca_bundle: str) -> ssl.SSLContext:
    """The context of all probes: public authorities, and those in ``ca_bundle`` if it is not empty.

    Building one costs 20 ms, so there is one for all, and a new one when the file changes.
    """
    mtime = Path(ca_bundle).stat().st_mtime_ns if ca_bundle else 0
    with _building:  # a round begins with hundreds of threads that all want the first one
        return _tls_context(ca_bundle, mtime)


_building = threading.Lock()


@lru_cache(maxsize=2)
def _tls_context(ca_bundle: str, mtime: int) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certifi.where())
    if ca_bundle:
        context.load_verify_locations(cafile=ca_bundle)
    # Newer Pythons are strict by default about what private authorities often leave out.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.sslsocket_class = _TLSSocket
    return context

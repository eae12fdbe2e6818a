"""A new connection for each request, with limits on its total time and its bytes.

A socket timeout limits a single operation, so a peer that sends one byte per second never exceeds it. Here
each operation gets the time that remains until one deadline.
"""

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
from proxyhealth.probing.deadline import Deadline, WatchedSocket, watchdog
from proxyhealth.utils import PerProcess

# More than a health report needs, but little enough for thousands of simultaneous probes.
MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 512 * 1024
MAX_CHUNK_LINE = 4 * 1024

_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,16})[ \t]*[;\r\n]")
_CONTENT_LENGTH = re.compile(r"[0-9]{1,18}")
_CLOSED = "the connection was closed"


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


class _PlainSocket(_Bounded, socket.socket):
    def recv_into(self, *args: Any) -> int:
        return self._receive(super().recv_into, *args)


class _TLSSocket(_Bounded, ssl.SSLSocket):
    constructed = False

    def recv_into(self, *args: Any) -> int:
        return self._receive(super().recv_into, *args)

    def __del__(self) -> None:
        # If the peer has already reset the connection, the constructor raises and leaves the socket open.
        if not self.constructed:
            self.close()
        super().__del__()  # type: ignore[misc]  # warns of a socket that nobody closed


class Response(http.client.HTTPResponse):
    """A response that must be complete and unambiguous.

    The parent accepts headers and bodies that a closed connection cuts off. It guesses the length of a body
    if the header is invalid.
    """

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._bounded: _Bounded = sock  # the parent keeps only a file object

    def begin(self) -> None:
        """Read the headers. Raise ``HTTPException`` if they are malformed or ambiguous, or ``OSError``."""
        start = self.fp.peek(1)[:64]
        if not b"HTTP/".startswith(start[:5]):
            # The parent would wait for the end of the line, until the deadline.
            raise http.client.BadStatusLine(start.decode("latin-1"))
        super().begin()
        while 101 < self.status < 200:
            # An informational response; the parent skips only 100.
            self.headers = None  # type: ignore[assignment]
            super().begin()
        if self._bounded.ended:
            # The parser reads until the end of the connection only if a line is incomplete.
            raise ConnectionResetError(f"{_CLOSED} in the middle of the headers")
        if self.headers.defects or self.headers.get_payload():
            raise http.client.HTTPException("malformed header line")
        if not self.chunked and "Transfer-Encoding" in self.headers:
            raise http.client.HTTPException("Transfer-Encoding is not chunked")
        lengths = {length.strip() for length in self.headers.get_all("Content-Length", ())}
        if len(lengths) > 1:
            raise http.client.HTTPException("different values of Content-Length")
        if not all(map(_CONTENT_LENGTH.fullmatch, lengths)):
            raise http.client.HTTPException("Content-Length is not a number of bytes")

    def read(self, amt: int | None = None) -> bytes:
        """Read the body. Raise ``HTTPException`` if it is cut off or malformed, or ``OSError``."""
        try:
            data = super().read(amt)
        except (http.client.IncompleteRead, http.client.LineTooLong, ValueError):
            why = _CLOSED if self._bounded.ended else "its chunks are malformed"
            raise http.client.HTTPException(why) from None
        if not data and (self.length or (self.chunked and self._bounded.ended)):
            raise http.client.HTTPException(_CLOSED)
        return data

    def _parse_chunk_size(self) -> int:
        line = self.fp.readline(MAX_CHUNK_LINE + 1)
        size = _CHUNK_SIZE.match(line)
        if size is None or len(line) > MAX_CHUNK_LINE:
            raise ValueError("a malformed chunk size")
        return int(size[1], 16)

    # Private in http.client, which has no public hook. Its own method accepts what int() does: "0x2", "1_0".
    _read_next_chunk_size = _parse_chunk_size


class Connection(http.client.HTTPConnection):
    """An HTTP connection that resolves its host, checks the addresses, and connects once."""

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
            self.default_port = http.client.HTTPS_PORT  # omitted from the Host header
        self.deadline = deadline
        self.tls_expires_at: datetime | None = None  # the expiry of the peer's certificate
        self._policy = policy
        self._context = context
        self._watched: WatchedSocket | None = None

    def connect(self) -> None:
        """Connect to a permitted address. Raise ``AddressBlocked``, or ``OSError`` (also for DNS and TLS)."""
        self.deadline.phase = f"looking up {self.host}"
        addresses = look_up(self.host, self.port, self.deadline)
        permitted = [address for address in addresses if self._policy.permits(address_ip(address))]
        if not permitted:
            blocked = ", ".join(dict.fromkeys(str(address_ip(address)) for address in addresses))
            name = self.host if blocked == self.host else f"{self.host} ({blocked})"
            raise AddressBlocked(f"ADDRESS_DENY or ADDRESS_ALLOW refuses {name}")
        sock, peer = self._connect_to_any(routable(permitted))
        if self._context is None:
            self.sock = sock
        else:
            self.deadline.phase += ", in the TLS handshake"
            self.sock = self._wrap(sock, self._context)
        self.sock.deadline = self.deadline
        at = "" if str(peer) == self.host else f" at {peer}"
        self.deadline.phase = f"waiting for {self.host}{at} to answer"

    def _connect_to_any(self, addresses: Sequence[Address]) -> tuple[_PlainSocket, IPAddress]:
        failures: list[str] = []
        *others, last = addresses
        for place, address in enumerate(others):
            try:
                return self._connect_to(address, len(addresses) - place, failures)
            except OSError as error:
                failures.append(f"{address_ip(address)}: {error.strerror or 'no answer'}")
        return self._connect_to(last, 1, failures)

    def _connect_to(self, address: Address, left: int, failures: list[str]) -> tuple[_PlainSocket, IPAddress]:
        ip = address_ip(address)
        before = f" (before that, {', '.join(failures)})" if failures else ""
        self.deadline.phase = f"connecting to {ip} port {self.port}{before}"
        sock = _PlainSocket(address.family, socket.SOCK_STREAM)
        try:
            # An address that does not respond uses only its share of the time.
            sock.settimeout(self.deadline.remaining() / left)
            sock.connect(address.sockaddr)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(self.deadline.remaining())
        except OSError:
            sock.close()
            raise
        return sock, ip

    def _wrap(self, sock: _PlainSocket, context: ssl.SSLContext) -> _TLSSocket:
        try:
            name = self.host.removesuffix(".")
            wrapped = cast(  # the context's sslsocket_class
                _TLSSocket, context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
            )
        except BaseException:
            sock.close()
            raise
        wrapped.constructed = True
        # One call into OpenSSL lasts as long as the peer sends records without data, such as session tickets.
        # It does not observe the timeout, so the watchdog does.
        self._watched = watchdog.value.watch(wrapped, self.deadline)
        try:
            wrapped.do_handshake()
        except BaseException as error:
            wrapped.close()
            if isinstance(error, OSError):
                self.deadline.remaining()  # if the time is over, report that, not the error it caused
            raise
        with suppress(ValueError, KeyError):  # a certificate may contain bytes that are not text
            certificate = cast(dict[str, Any], wrapped.getpeercert())
            end = ssl.cert_time_to_seconds(certificate["notAfter"])
            self.tls_expires_at = datetime.fromtimestamp(end, UTC)
        return wrapped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        # Not in close(): the parent calls it before the response is read.
        self.close()
        if self._watched is not None:
            self._watched.cancel()

    def getresponse(self) -> http.client.HTTPResponse:
        self.sock.settimeout(self.deadline.remaining())
        sock = self.sock  # the parent drops it if the response closes the connection
        response = super().getresponse()
        sock.bytes_left = MAX_BODY_BYTES
        self.deadline.phase = f"reading the report of {self.host}"
        return response


# All threads of a round need the context at once, but only one of them must build it.
_build_lock = PerProcess(threading.Lock)


def tls_context(ca_bundle: str) -> ssl.SSLContext:
    """Return the context of all probes. It trusts public authorities, and those in the file ``ca_bundle``.

    ``ca_bundle`` may be empty. Building a context takes 20 ms, so probes share it until the file changes.
    """
    mtime = Path(ca_bundle).stat().st_mtime_ns if ca_bundle else 0
    with _build_lock.value:
        return _tls_context(ca_bundle, mtime)


@lru_cache(maxsize=2)
def _tls_context(ca_bundle: str, mtime: int) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certifi.where())
    if ca_bundle:
        context.load_verify_locations(cafile=ca_bundle)
    # Python 3.13 checks strictly by default, but certificates of private authorities often fail that.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.sslsocket_class = _TLSSocket
    return context

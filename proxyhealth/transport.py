"""One fresh connection, bounded as a whole: name look-up, address policy, TLS, deadline, bytes.

The timeouts of sockets, and of what is built on them, bound each single operation; a peer
that sends a byte a second never meets them. Here every operation gets what is left of one
deadline.
"""

from __future__ import annotations

import heapq
import http.client
import ipaddress
import os
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import certifi

from proxyhealth.conf import Network

# More than a health report ever needs, and little enough for thousands of probes at once.
MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 512 * 1024
MAX_CHUNK_LINE = 4 * 1024

# Look-ups under way in this process: a resolver that hangs must not use up all threads.
MAX_LOOK_UPS = 1_024

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LOOPBACK = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,16})[ \t]*[;\r\n]")
_CONTENT_LENGTH = re.compile(r"[0-9]{1,18}")
_CLOSED = "the connection was closed"


class AddressBlocked(Exception):
    """All addresses of a host are refused by the address policy."""


class TooManyBytes(http.client.HTTPException):
    """The peer sent more than any headers, or any report, can need."""


class Deadline:
    """The end of a probe; ``phase`` says what the time is being spent on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.phase = "starting"
        self.end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left; raises ``TimeoutError`` when there are none."""
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


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
    def recv_into(self, *args: Any) -> int:
        return self._receive(super().recv_into, *args)


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
        self._cut: _Cut | None = None

    def connect(self) -> None:
        """Raises ``AddressBlocked``, or what the operating system and OpenSSL raise."""
        self.deadline.phase = f"looking up {self.host}"
        addresses = look_up(self.host, self.port, self.deadline)
        permitted = [address for address in addresses if self._policy.permits(_ip(address))]
        if not permitted:
            refused = ", ".join(dict.fromkeys(str(_ip(address)) for address in addresses))
            raise AddressBlocked(f"{self.host} is {refused}, refused by ADDRESS_DENY or ADDRESS_ALLOW")
        sock, peer = self._dial(_routable(permitted))
        if self._context is None:
            self.sock = sock
        else:
            self.deadline.phase += ", in the TLS handshake"
            self.sock = self._wrap(sock, self._context)
        self.sock.deadline = self.deadline
        at = "" if str(peer) == self.host else f" at {peer}"
        self.deadline.phase = f"waiting for {self.host}{at} to answer"

    def _dial(self, addresses: Sequence[_Address]) -> tuple[_PlainSocket, IPAddress]:
        failed: list[str] = []
        left = list(addresses)
        while True:
            address = left.pop(0)
            self.deadline.phase = f"connecting to {_ip(address)} port {self.port}"
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
                failed.append(f"{_ip(address)}: {error.strerror or 'no answer'}")
            else:
                return sock, _ip(address)

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
        # One call into OpenSSL goes on for as long as records come that hold no data, such as tickets;
        # it never gets to look at the time. So somebody else does.
        self._cut = _cutter.cut(wrapped, self.deadline)
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


class _Cut:
    """A connection that is cut at the end of its deadline, unless that is cancelled before."""

    def __init__(self, sock: socket.socket, end: float) -> None:
        self.end = end
        self._sock: socket.socket | None = sock

    def __lt__(self, other: _Cut) -> bool:
        return self.end < other.end

    def make(self) -> None:
        if (sock := self._sock) is not None:
            with suppress(OSError):  # it is closed already
                # The method of the parent: that of a TLS socket also lets go of what another
                # thread is using.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def cancel(self) -> None:
        self._sock = None


class _Cutter:
    """One thread for all the connections that may have to be cut."""

    def __init__(self) -> None:
        self._cuts: list[_Cut] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def cut(self, sock: socket.socket, deadline: Deadline) -> _Cut:
        cut = _Cut(sock, deadline.end)
        with self._changed:
            heapq.heappush(self._cuts, cut)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="probe cutter", daemon=True)
                self._thread.start()
            elif self._cuts[0] is cut:
                self._changed.notify()
        return cut

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._cuts or self._cuts[0].end > time.monotonic():
                    left = max(0.0, self._cuts[0].end - time.monotonic()) if self._cuts else None
                    self._changed.wait(left)
                cut = heapq.heappop(self._cuts)
            cut.make()


_cutter = _Cutter()


def _after_fork() -> None:
    global _cutter
    _cutter = _Cutter()  # the thread stayed in the parent


os.register_at_fork(after_in_child=_after_fork)


class _Address(NamedTuple):
    family: int
    sockaddr: Any


def _routable(addresses: list[_Address]) -> list[_Address]:
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


def _ip(address: _Address) -> IPAddress:
    return _parse_ip(address.sockaddr[0])


_look_ups = threading.BoundedSemaphore(MAX_LOOK_UPS)


def look_up(host: str, port: int, deadline: Deadline) -> list[_Address]:
    """The addresses of ``host``, looked up anew; raises ``TimeoutError`` or ``socket.gaierror``.

    The resolver of the C library cannot be interrupted, so it gets a thread that nobody waits
    for longer than the deadline. A literal address needs neither.
    """
    if ":" in host:
        return [_Address(socket.AF_INET6, (host, port, 0, 0))]
    if host.rpartition(".")[2].isdecimal():  # no name ends in a number
        return [_Address(socket.AF_INET, (host, port))]

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
        _Address(family, sockaddr)
        for family, _type, _protocol, _name, sockaddr in answer
        if family in (socket.AF_INET, socket.AF_INET6)
    )
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, "the name has no address")
    return list(addresses)


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

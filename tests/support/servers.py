"""Real servers for tests: a script answers each connection with any bytes.

A script is a function that gets the connected socket. The server closes the socket after it. Scripts wait
only on the socket, so that a server can be stopped at any time.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import trustme

Script = Callable[[socket.socket], None]

MAX_REQUEST_BYTES = 256 * 1024


class Server:
    """A server that runs ``script`` in a thread for each connection, while the ``with`` block runs.

    ``connections`` counts accepted connections. ``requests`` has the bytes of each request, including its
    empty line. With ``read=False`` the script gets the socket before anything is read. With ``tls`` a
    handshake comes first. The end of the block raises exceptions of scripts, except for closed connections.
    """

    def __init__(
        self,
        script: Script,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        read: bool = True,
    ) -> None:
        self.host = host
        self.port = port
        self.connections = 0
        self.requests: list[bytes] = []
        self._script = script
        self._tls = tls
        self._read = read
        self._lock = threading.Lock()
        self._stopping = False
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._failures: list[Exception] = []

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.netloc}"

    @property
    def paths(self) -> list[str]:
        """Return the targets of the requests so far."""
        return [request.split(b" ", 2)[1].decode("ascii") for request in self.requests]

    def __enter__(self) -> Self:
        self._listener = listener(self.host, self.port)
        self.port = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name=f"accept {self.netloc}", daemon=True)
        self._acceptor.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._stopping = True
            sockets = list(self._sockets)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        for sock in sockets:
            _shut_down(sock)
        deadline = time.monotonic() + 5
        for thread in (self._acceptor, *self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise AssertionError(f"thread {thread.name} does not end")
        self._listener.close()
        if self._failures:
            raise self._failures[0]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._stopping:
                    sock.close()
                    return
                self.connections += 1
                self._sockets.add(sock)
                thread = threading.Thread(target=self._serve, args=[sock], daemon=True)
                self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            if self._tls is not None:
                sock = self._handshake(sock, self._tls)
            if self._read:
                request = read_request(sock)
                if not request:
                    return
                with self._lock:
                    self.requests.append(request)
            self._script(sock)
        except OSError:
            pass  # the peer has gone, or the server is being stopped
        except Exception as error:
            self._failures.append(error)
        finally:
            with self._lock:
                self._sockets.discard(sock)
            sock.close()

    def _handshake(self, plain: socket.socket, tls: ssl.SSLContext) -> ssl.SSLSocket:
        wrapped = tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._sockets.discard(plain)
            self._sockets.add(wrapped)
            stopping = self._stopping
        try:
            if stopping:
                raise ConnectionAbortedError
            wrapped.do_handshake()
        except OSError:
            with self._lock:
                self._sockets.discard(wrapped)
            wrapped.close()
            raise
        return wrapped


def _shut_down(sock: socket.socket) -> None:
    # Not SSLSocket.shutdown(), which drops the TLS session that another thread is using.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def listener(host: str = "127.0.0.1", port: int = 0, *, backlog: int = 128) -> socket.socket:
    """Return a listening socket."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def read_request(sock: socket.socket) -> bytes:
    """Return the bytes of one request without a body, or the bytes until the peer closes."""
    data = b""
    while b"\r\n\r\n" not in data and len(data) < MAX_REQUEST_BYTES:
        received = sock.recv(65536)
        if not received:
            break
        data += received
    return data


@contextlib.contextmanager
def refusing(host: str = "127.0.0.1") -> Iterator[int]:
    """Yield a port that refuses connections and stays reserved."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        yield sock.getsockname()[1]


@contextlib.contextmanager
def silent(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Yield a port that does not accept connections, because its backlog is full."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(listener(host, port, backlog=0))
        for _ in range(8):
            filler = stack.enter_context(socket.socket(listening.family))
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


def has_ipv6() -> bool:
    try:
        listener("::1").close()
    except OSError:
        return False
    return True


# Bytes of responses.


def response(
    body: bytes | str = b"{}",
    *headers: str,
    status: str = "200 OK",
    version: str = "HTTP/1.1",
    content_type: str = "application/json",
    length: int | str | None = None,
) -> bytes:
    """Return the bytes of a response; ``length`` replaces the correct Content-Length, "" omits it."""
    content = body.encode() if isinstance(body, str) else body
    lines = [f"{version} {status}", f"Content-Type: {content_type}"]
    if length != "":
        lines.append(f"Content-Length: {len(content) if length is None else length}")
    lines += headers
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


def report(errors: Any = (), warnings: Any = ()) -> bytes:
    """Return the bytes of a response with a health report."""
    return response(json.dumps({"errors": errors, "warnings": warnings}))


def redirect(location: str, status: str = "302 Found") -> bytes:
    return response(b"", f"Location: {location}", status=status)


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """Return the bytes of a response in chunks."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + body


# Scripts.


def send(data: bytes) -> Script:
    """Send these bytes, then close."""
    return lambda sock: sock.sendall(data)


def send_and_hold(data: bytes) -> Script:
    """Send these bytes, then keep the connection open until the peer closes it."""

    def script(sock: socket.socket) -> None:
        sock.sendall(data)
        hold(sock)

    return script


def send_and_reset(data: bytes) -> Script:
    """Send these bytes, then reset the connection."""

    def script(sock: socket.socket) -> None:
        sock.sendall(data)
        if data:
            time.sleep(0.05)  # a reset must not overtake them
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return script


def drip(data: bytes, interval: float, start: bytes = b"") -> Script:
    """Send ``start`` at once, then one byte of ``data`` every ``interval`` seconds, then close."""

    def script(sock: socket.socket) -> None:
        sock.sendall(start)
        for i in range(len(data)):
            sock.sendall(data[i : i + 1])
            if _peer_spoke(sock, interval):
                return

    return script


def flood(data: bytes, start: bytes = b"") -> Script:
    """Send ``start``, then repeat ``data`` as fast as possible until the peer closes."""

    def script(sock: socket.socket) -> None:
        sock.sendall(start)
        while True:
            sock.sendall(data)

    return script


def after(seconds: float, script: Script) -> Script:
    """Run ``script`` after ``seconds``."""

    def delayed(sock: socket.socket) -> None:
        if not _peer_spoke(sock, seconds):
            script(sock)

    return delayed


def sequence(*scripts: Script) -> Script:
    """Run the first script for the first connection, and so on; the last one for all others."""
    lock = threading.Lock()
    left = list(scripts)

    def script(sock: socket.socket) -> None:
        with lock:
            current = left.pop(0) if len(left) > 1 else left[0]
        current(sock)

    return script


def hold(sock: socket.socket) -> None:
    """Send nothing, until the peer closes."""
    while sock.recv(65536):
        pass


def _peer_spoke(sock: socket.socket, seconds: float) -> bool:
    return bool(select.select([sock], [], [], seconds)[0])


# TLS.


def server_context(ca: trustme.CA, *names: str, not_after: datetime.datetime | None = None) -> ssl.SSLContext:
    """Return a context with a certificate of ``ca`` for these names and addresses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names, not_after=not_after).configure_cert(context)
    return context


def self_signed_context(ca: trustme.CA) -> ssl.SSLContext:
    """Return a context with a self-signed certificate, that of ``ca`` itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pem = ca.private_key_pem.bytes() + ca.cert_pem.bytes()
    with trustme.Blob(pem).tempfile() as path:
        context.load_cert_chain(path)
    return context


Resolver = Callable[..., Sequence[Any]]


def resolver(*addresses: tuple[str, int]) -> Resolver:
    """Return a replacement of ``socket.getaddrinfo`` by which every name has these addresses and ports."""

    def getaddrinfo(host: str, port: int, *args: Any, **kwargs: Any) -> Sequence[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, number, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, number))
            for address, number in addresses
        ]

    return getaddrinfo

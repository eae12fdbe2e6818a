"""Servers to probe. They run in separate processes, so that their CPU time does not count for the client."""

from __future__ import annotations

import multiprocessing
import resource
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address
from typing import Any, NamedTuple

BODY = b'{"errors": [], "warnings": []}'
THREADS = 4


def response(body: bytes) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Sun, 22 Nov 2026 08:00:00 GMT\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
    )


RESPONSE = response(BODY)
FAILURE = response(b'{"errors": ["out of order"], "warnings": []}')


def _respond(listener: socket.socket, context: ssl.SSLContext | None) -> None:
    while True:
        connection, _ = listener.accept()
        try:
            with context.wrap_socket(connection, server_side=True) if context else connection as peer:
                peer.recv(4096)
                peer.sendall(RESPONSE)
        except OSError:
            continue  # the client has closed the connection


def _serve(listener: socket.socket, certificate: str) -> None:
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    for _ in range(THREADS):
        threading.Thread(target=_respond, args=(listener, context)).start()


@contextmanager
def target(certificate: str = "") -> Iterator[int]:
    """Run a server that responds to every request with a healthy report. Yield its port on 127.0.0.1.

    ``certificate`` is the path of a PEM file with a certificate chain and its key, for HTTPS.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        process = multiprocessing.get_context("fork").Process(target=_serve, args=(listener, certificate))
        process.start()
        try:
            yield listener.getsockname()[1]
        finally:
            process.kill()
            process.join()


_FIRST = int(IPv4Address("127.1.0.0"))
SILENT_EVERY = 20


def is_silent(index: int) -> bool:
    """Return True for 5 % of the hosts, evenly distributed: they can be silent."""
    return index % SILENT_EVERY == SILENT_EVERY // 2


def can_fail(index: int) -> bool:
    """Return True for 2 % of the hosts, evenly distributed: they can report errors."""
    return index % 50 == 25


class Fleet(NamedTuple):
    """One server process with many hosts: each host is an address in 127.0.0.0/8."""

    port: int
    pid: int
    lag: Any  # shared double: the maximum delay of a response in seconds, beyond the intended delay
    silent: Any  # shared bool: 5 % of the hosts accept connections and send nothing
    failing: Any  # shared bool: 2 % of the hosts report errors

    def take_lag(self) -> float:
        """Return the maximum lag in seconds since the last call."""
        with self.lag.get_lock():
            lag, self.lag.value = self.lag.value, 0.0
        return float(lag)

    def address(self, index: int) -> tuple[str, int]:
        return str(IPv4Address(_FIRST + index)), self.port

    def url(self, index: int) -> str:
        return "http://{}:{}".format(*self.address(index))


@contextmanager
def fleet(delay: float = 0.0, *, silent: bool = False, body: bytes = BODY) -> Iterator[Fleet]:
    """Run a fleet that responds with ``body`` after ``delay`` seconds.

    ``silent`` is the first value of ``Fleet.silent``.
    """
    with socket.socket() as listener:
        with suppress(OSError):  # older kernels require a capability for this option
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        listener.bind(("0.0.0.0", 0))
        listener.listen(4096)
        fork = multiprocessing.get_context("fork")
        lag, silence, failing = fork.Value("d", 0.0), fork.Value("b", silent), fork.Value("b", False)
        arguments = (listener, delay, response(body), lag, silence, failing)
        process = fork.Process(target=_serve_fleet, args=arguments)
        process.start()
        try:
            yield Fleet(listener.getsockname()[1], process.pid or 0, lag, silence, failing)
        finally:
            process.kill()
            process.join()


def _host(peer: socket.socket) -> int:
    """Return the index of the host that accepted a connection."""
    return int(IPv4Address(peer.getsockname()[0])) - _FIRST


def _serve_fleet(
    listener: socket.socket, delay: float, payload: bytes, lag: Any, silence: Any, failing: Any
) -> None:
    # One thread with epoll: the server must use much less CPU than the prober.
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    due: deque[tuple[float, socket.socket]] = deque()  # in order: the delay is constant
    ignored: dict[int, socket.socket] = {}
    while True:
        for fd, _ in epoll.poll(max(0.0, due[0][0] - time.monotonic()) if due else None):
            if fd != listener.fileno():
                with suppress(OSError):
                    if ignored[fd].recv(4096):
                        continue
                ignored.pop(fd).close()  # the client has closed the connection
                continue
            with suppress(BlockingIOError):
                while True:
                    peer, _ = listener.accept()
                    peer.setblocking(False)
                    if silence.value and is_silent(_host(peer)):
                        ignored[peer.fileno()] = peer
                        epoll.register(peer, select.EPOLLIN)
                    else:
                        due.append((time.monotonic() + delay, peer))
        while due and due[0][0] <= time.monotonic():
            when, peer = due.popleft()
            if time.monotonic() - when > lag.value:
                lag.value = time.monotonic() - when
            try:
                peer.recv(4096)
                peer.sendall(FAILURE if failing.value and can_fail(_host(peer)) else payload)
            except BlockingIOError:  # the request has not arrived yet
                due.append((time.monotonic() + delay, peer))
                continue
            except OSError:
                pass
            peer.close()

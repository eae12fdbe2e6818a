"""Targets for benchmarks: processes of their own, so that their CPU is not the client's."""

from __future__ import annotations

import multiprocessing
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

BODY = b'{"errors": [], "warnings": []}'
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Sun, 22 Nov 2026 08:00:00 GMT\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(BODY), BODY)
)
THREADS = 4


def _answer(listener: socket.socket, context: ssl.SSLContext | None) -> None:
    while True:
        connection, _ = listener.accept()
        try:
            with context.wrap_socket(connection, server_side=True) if context else connection as peer:
                peer.recv(4096)
                peer.sendall(RESPONSE)
        except OSError:
            continue  # a client that hung up


def _serve(listener: socket.socket, certificate: str) -> None:
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    for _ in range(THREADS):
        threading.Thread(target=_answer, args=(listener, context)).start()


@contextmanager
def target(certificate: str = "") -> Iterator[int]:
    """A server that answers every request with a healthy report; yields its port on 127.0.0.1.

    ``certificate`` is the path of a PEM file with a chain and its key, for HTTPS.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        process = multiprocessing.get_context("fork").Process(target=_serve, args=(listener, certificate))
        process.start()
        try:
            yield listener.getsockname()[1]
        finally:
            process.kill()
            process.join()

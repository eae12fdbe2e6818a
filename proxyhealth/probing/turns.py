"""Turns: of all probes of a process, one works at a time, while the others wait."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from proxyhealth.conf import conf
from proxyhealth.utils import PerProcess

Pause = Callable[[], AbstractContextManager[None]]

# The longest turn, as a part of TIMEOUT. A probe works for milliseconds, so one that takes longer hangs, and
# must not make the others time out.
_LONGEST = 0.1


class Turns:
    """The right to work, which one probe has at a time.

    The interpreter runs one thread at a time anyway. If hundreds of threads compete for it, switching takes
    as long as the work, and the time that they wait counts as latency of their proxies.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()  # of the probe that works
        self.next = threading.Lock()  # of the probe that begins next

    def take(self) -> threading.Lock:
        """Wait for a turn, and return the lock that ends it."""
        while True:
            lock = self.lock
            if not lock.acquire(timeout=conf.TIMEOUT * _LONGEST):
                if lock is self.lock:
                    self.lock = threading.Lock()
            elif lock is self.lock:
                return lock
            else:
                lock.release()


class Turn:
    """The turn of one probe: a context manager. Wait within :meth:`pause`, so that other probes can work."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def __enter__(self) -> None:
        with self._turns.next:  # so probes that run compete with one that begins, not with all of them
            self._lock = self._turns.take()

    def __exit__(self, *exception: Any) -> None:
        self._lock.release()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Let other probes work while the block waits."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock = self._turns.take()


turns = PerProcess(Turns)

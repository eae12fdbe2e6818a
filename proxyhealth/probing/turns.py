"""Turns: of all probes of a process, one works at a time, while the others wait."""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Self

from proxyhealth.conf import conf
from proxyhealth.utils import PerProcess

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


class NoTurn:
    """The turn of a probe that runs alone."""

    waited = 0.0  # seconds of this probe

    def pause(self) -> AbstractContextManager[None]:
        return nullcontext()


class Turn(NoTurn):
    """The turn of one probe: a context manager. Wait within :meth:`pause`, so that other probes can work.

    ``waited`` is the time that its pauses took longer because other probes worked.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def __enter__(self) -> Self:
        with self._turns.next:  # so probes that run compete with one that begins, not with all of them
            self._lock = self._turns.take()
        self.waited = 0.0
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Let other probes work while the block waits."""
        self._lock.release()
        try:
            yield
        finally:
            begin = time.monotonic()
            self._lock = self._turns.take()
            self.waited += time.monotonic() - begin


turns = PerProcess(Turns)

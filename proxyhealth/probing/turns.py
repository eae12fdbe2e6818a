"""Turns: of all probes of a process, one works at a time, while the others wait."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from proxyhealth.utils import PerProcess

Pause = Callable[[], AbstractContextManager[None]]


class Turns:
    """The right to work, which one probe has at a time.

    The interpreter runs one thread at a time anyway. If hundreds of threads compete for it, switching takes
    as long as the work, and the time that they wait counts as latency of their proxies.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._next = threading.Lock()

    @contextmanager
    def begin(self) -> Iterator[Pause]:
        """Wait for a turn, and hold it while the block runs. Yield the context manager for its pauses."""
        with self._next:  # so probes that run compete with one that begins, not with all of them
            self._turn.acquire()
        try:
            yield self._pause
        finally:
            self._turn.release()

    @contextmanager
    def _pause(self) -> Iterator[None]:
        """Let other probes work while the block waits."""
        self._turn.release()
        try:
            yield
        finally:
            self._turn.acquire()


turns = PerProcess(Turns)

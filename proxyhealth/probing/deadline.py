"""The limits of one probe: its time, and the work that its proxy may cause."""

import time
from collections.abc import Callable
from typing import Any

from proxyhealth.exceptions import TooManyBytes
from proxyhealth.probing.turns import NoTurn

# Of all responses together, with those that redirect. A line is a header, a status, or the size of a chunk.
MAX_LINES = 300
_LINES_OF_REDIRECT = 50  # a redirect costs as much as these
MAX_LINE_BYTES = 64 * 1024
MAX_TLS_OVERHEAD = 16 * 1024  # bytes of TLS after handshakes that carry no data

MARK = 3  # items in the marks of a deadline

# Receives without a pause, of the probe and in addition of each of its connections.
_UNPACED_RECEIVES = 6
_UNPACED_RECEIVES_OF_CONNECTION = 4


class Deadline:
    """The limits of a probe, over all its redirects.

    ``phase`` is the current step, for messages, and ``marks`` has the begin of each phase, for the trace.
    Wait only within ``pause()``, so that other probes can work. The time that the probe then waits for its
    turn does not count, up to ``seconds``.
    """

    def __init__(self, seconds: float, turn: NoTurn | None = None) -> None:
        self.seconds = seconds
        self._turn = turn or NoTurn()
        self.pause = self._turn.pause
        self.phase = "starting"
        self.marks: list[Any] = []  # in turn: the name of a phase, its begin in µs, and an address
        self._begin = time.monotonic()
        self._end = self._begin + seconds
        self._lines_left = MAX_LINES
        self._line_bytes_left = MAX_LINE_BYTES
        self._tls_overhead_left = MAX_TLS_OVERHEAD
        self._unpaced_receives = _UNPACED_RECEIVES

    def mark(self, name: str, address: str = "") -> None:
        """Note that a phase begins. The time that the probe waits for its turn does not count."""
        self.marks += (name, int((time.monotonic() - self._turn.waited) * 1e6), address)

    def remaining(self) -> float:
        """Return the seconds that remain. Raise ``TimeoutError`` if there are none."""
        seconds = self._end - self._now()
        if seconds <= 0:
            raise TimeoutError
        return seconds

    def shorten(self, seconds: float) -> None:
        """Let the rest of the probe take at most ``seconds``."""
        self._end = min(self._end, self._now() + seconds)

    def _now(self) -> float:
        return time.monotonic() - min(self._turn.waited, self.seconds)

    def count_redirect(self) -> None:
        """Let a redirect take its share of the lines."""
        self._lines_left -= _LINES_OF_REDIRECT

    def count_connection(self) -> None:
        """Allow for the receives of a new connection."""
        self._unpaced_receives += _UNPACED_RECEIVES_OF_CONNECTION

    def pace(self) -> None:
        """Call this before each receive. After many of them, wait, so that the next one gets more bytes.

        The pauses grow with the time of the probe: a peer that sends single bytes causes thirty receives, not
        thirty thousand, and its latency grows by half at most.
        """
        self._unpaced_receives -= 1
        if self._unpaced_receives < 0:
            elapsed = time.monotonic() - self._begin
            with self.pause():
                time.sleep(min(elapsed / 2, self.remaining()))

    def read_line(self, readline: Callable[[int], bytes], limit: int = MAX_LINE_BYTES) -> bytes:
        """Return a line of at most ``limit`` bytes. Raise ``TooManyBytes`` if it exceeds what is left."""
        left = self._line_bytes_left
        line = readline((left if left < limit else limit) + 1)
        self._line_bytes_left = left = left - len(line)
        self._lines_left -= 1
        if left < 0:
            raise TooManyBytes(f"more than {MAX_LINE_BYTES // 1024} KiB of headers")
        if self._lines_left < 0:
            raise TooManyBytes(f"more than {MAX_LINES} lines of headers and chunks")
        return line

    def count_tls_overhead(self, count: int) -> None:
        """Note ``count`` bytes of TLS without data. Raise ``TooManyBytes`` if there are too many."""
        self._tls_overhead_left -= count
        if self._tls_overhead_left < 0:
            raise TooManyBytes(f"more than {MAX_TLS_OVERHEAD // 1024} KiB of TLS records without data")

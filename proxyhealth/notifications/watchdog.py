"""The watchdog: a thread of each process that notices when no full round ends, and tells the channels.

Web servers and workers have it, so that somebody tells when no worker is left, or only workers are.
"""

import logging
import math
import threading
import time
from contextlib import suppress
from datetime import datetime

from django.db import connections

from proxyhealth import isolation
from proxyhealth.conf import conf
from proxyhealth.models import Alarm
from proxyhealth.notifications import alarms, culprit, sending
from proxyhealth.snapshot import Snapshot
from proxyhealth.storage import reader
from proxyhealth.texts import without_passwords
from proxyhealth.utils import PerProcess

logger = logging.getLogger(__name__)

# In seconds:
_PERIOD = 5.0  # maximum time between two looks
_PATIENCE = 2.0  # time after STALE_AFTER in which a round may still come
_SEND_TIME = 2.0  # for which a look waits for the channels
_START = 30.0  # for which a new process waits: a worker that starts together with it needs that for a round


class View:
    """The prober as this process sees it."""

    def __init__(self, start: float = _START) -> None:
        self._begins_at = time.monotonic() + start
        self._round: datetime | None = None
        self._round_seen_at: float | None = None  # monotonic; None before the first look
        self._unread_since: float | None = None  # monotonic; None while the cache can be read
        self._last_round: int | None = None
        self._may_be_open = self._may_be_untold = True  # an alarm of an earlier process
        self._error = ""

    def look(self) -> None:
        """Begin or end an alarm, and send what is due. Never raise."""
        try:
            self._look()
            error = ""
        except Exception as failure:
            error = without_passwords(failure)
        if error and not self._error:  # once, not at each look
            logger.warning("alarms cannot be told: %s", error)
        self._error = error

    def _look(self) -> None:
        snapshot = reader.read_anew()
        if snapshot.checked_at != self._round or self._round_seen_at is None:
            self._round_seen_at = -math.inf if self._round_seen_at is None else time.monotonic()
            self._round = snapshot.checked_at
        if not snapshot.stale:
            self._unread_since = None
            if self._may_be_open:
                alarms.end()
                self._may_be_open, self._may_be_untold = False, True
        else:
            self._may_be_open = self._may_be_untold = True
            self._begin_if_lasting(snapshot)
        # Workers send the rest of what is pending, and repeat what fails. Perhaps there is none.
        if self._may_be_untold:
            self._may_be_untold = alarms.are_untold()
            if self._may_be_untold:
                sending.send_due(_SEND_TIME)

    def _begin_if_lasting(self, snapshot: Snapshot) -> None:
        now = time.monotonic()
        if snapshot.fresh_until is not None and not reader.is_unreadable():
            self._unread_since = None
            seconds, overdue = snapshot.age or 0.0, now - snapshot.fresh_until
            kind = Alarm.Kind.OFFLINE if snapshot.offline else Alarm.Kind.NO_ROUNDS
        else:
            seconds = self._seconds_unread(now)
            overdue = seconds - conf.STALE_AFTER
            kind = Alarm.Kind.REDIS if reader.is_unreadable() else Alarm.Kind.NO_ROUNDS
        # A clock of Redis that was set forward makes a snapshot stale at once. The next round corrects that.
        latest = now - conf.STALE_AFTER / 2
        is_sudden = self._round_seen_at is not None and self._round_seen_at > latest
        if overdue >= _PATIENCE and now >= self._begins_at and not is_sudden:
            alarms.begin(kind, culprit.why_stale(snapshot), seconds)

    def _seconds_unread(self, now: float) -> float:
        """Return for how long this process has seen no round, neither in the cache nor in the history.

        While others run rounds, the history goes on: then only this process cannot reach the cache.
        """
        last_round = alarms.last_round()
        if self._unread_since is None or last_round != self._last_round:
            self._unread_since, self._last_round = now, last_round
        return now - self._unread_since


class Watchdog:
    """The thread of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread if it does not run yet. Never raise. In a test process, do nothing."""
        if self._thread is not None or isolation.is_decided():
            return
        with self._lock, suppress(RuntimeError):  # no more threads: the next call tries again
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="proxyhealth watchdog", daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        view = View()
        while True:
            time.sleep(_period())
            view.look()
            connections.close_all()  # those of this thread


def _period() -> float:
    with suppress(Exception):  # an invalid setting, which the look logs
        return min(_PERIOD, conf.INTERVAL)
    return _PERIOD


_watchdog = PerProcess(Watchdog)


def start() -> None:
    """Start the watchdog of this process, unless it runs. Never raise."""
    _watchdog.value.start()

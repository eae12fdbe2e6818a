"""The Celery tasks: the round that beat calls, the check of a few proxies, and how both are sent."""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from celery import current_app, shared_task
from celery.signals import worker_ready

from proxyhealth import rounds, store
from proxyhealth.cache import StoreError
from proxyhealth.conf import conf
from proxyhealth.report import ProxyStatus, Status
from proxyhealth.rounds import RoundFailed

logger = logging.getLogger(__name__)

# Until the number of proxies is known, the lock of a round is held for this many seconds.
_READING_TIME = 60.0
# What a round may take beyond its probes, to commit.
_COMMIT_TIME = 30.0


def run_round(wait: float = 0) -> bool:
    """One full round in this process, from reading the proxies to the commit.

    False if another round was still running after ``wait`` seconds; then nothing was done but to
    count it. Raises ``RoundFailed``; then the snapshot is as it was.
    """
    try:
        with store.round_lock(_READING_TIME, wait) as lock:
            if lock is None:
                logger.warning("round skipped: another one is running")
                _count("skipped")
                return False
            _run_round(lock)
            _count("success")
            return True
    except (RoundFailed, StoreError) as error:
        logger.error("round failed: %s", error)
        _count("failure", str(error))
        if isinstance(error, RoundFailed):
            raise
        raise RoundFailed(f"the cache cannot be used: {error}") from error


def _count(outcome: str, error: str = "") -> None:
    with suppress(StoreError):  # a round that was not counted was a round all the same
        store.count_round(outcome, error)


def _run_round(lock: store.RoundLock) -> None:
    ticket = store.take_ticket()
    checked_at = datetime.now(UTC)
    begin = time.monotonic()
    proxies = rounds.read_proxies()
    lock.hold_for(rounds.time_limit(len(proxies)) + _COMMIT_TIME)
    logger.info("round start ticket=%d proxies=%d", ticket, len(proxies))
    statuses = rounds.probe_all(proxies, checked_at)
    duration = time.monotonic() - begin
    changes = store.commit(statuses, ticket, full_round=store.Round(checked_at, duration))
    _log_changes(changes)
    logger.info("round end ticket=%d duration=%.3f %s", ticket, duration, _counts(statuses))


def run_check(ids: Iterable[UUID]) -> None:
    """Probe these proxies now and commit what comes out; those that are deleted leave the snapshot.

    Raises ``RoundFailed``; then the snapshot is as it was.
    """
    wanted = set(ids)
    try:
        ticket = store.take_ticket()
        checked_at = datetime.now(UTC)
        proxies = rounds.read_proxies(wanted)
        statuses = rounds.probe_all(proxies, checked_at)
        removed = wanted - {proxy.id for proxy in proxies}
        _log_changes(store.commit(statuses, ticket, removed=removed))
    except StoreError as error:
        raise RoundFailed(f"the cache cannot be used: {error}") from error
    logger.info("check end ticket=%d removed=%d %s", ticket, len(removed), _counts(statuses))


def _log_changes(changes: Sequence[store.Change]) -> None:
    for change in changes:
        after = change.after
        logger.log(
            logging.INFO if after.healthy else logging.WARNING,
            "status change proxy=%s name=%s from=%s to=%s reason=%s error=%s",
            change.proxy,
            change.name,
            change.before or "none",
            after.status,
            after.reason or "none",
            # Quoted: what a proxy says may look like a log line of ours.
            json.dumps(after.report.errors[0] if after.report.errors else ""),
        )


def _counts(statuses: Sequence[ProxyStatus]) -> str:
    found = [status.status for status in statuses]
    counts = " ".join(f"{s}={found.count(s)}" for s in Status if s is not Status.UNKNOWN)
    return f"proxies={len(found)} {counts}"


@shared_task(ignore_result=True, throws=(RoundFailed,))
def check_all() -> None:
    """The round: all active proxies. Skipped if one is running."""
    run_round()


@shared_task(ignore_result=True, throws=(RoundFailed,))
def check_proxies(ids: list[str]) -> None:
    """Probe the proxies with these ids now."""
    run_check(UUID(id) for id in ids)


@worker_ready.connect
def _first_round(**kwargs: Any) -> None:
    """A worker that has just started does not wait for beat."""
    request_check()


def request_check(ids: Iterable[UUID] | None = None) -> Future[None]:
    """Ask the workers to check these proxies, or all of them, now; returns at once, raises nothing.

    The broker is talked to in a thread. The future is done when it has the task, and has the
    exception if it could not be reached; then the next round checks the proxies anyway.
    """
    if current_app.conf.task_always_eager:
        return _run_eagerly(ids)
    return _sender.add(ids)


def _run_eagerly(ids: Iterable[UUID] | None) -> Future[None]:
    done: Future[None] = Future()
    try:
        _send(ids if ids is None else {str(id) for id in ids})
    except Exception as error:
        logger.warning("check failed: %s", error)
        done.set_exception(error)
    else:
        done.set_result(None)
    return done


def _send(ids: set[str] | None) -> None:
    # A task that nobody took for an interval is worthless: a round came after it.
    if ids is None:
        check_all.apply_async(expires=conf.INTERVAL)
    elif ids:
        check_proxies.apply_async((sorted(ids),), expires=conf.INTERVAL)


class _Sender:
    """Hands tasks to the broker in a thread of its own.

    Celery blocks its caller for many seconds when the broker is down. Here what is asked for in
    the meantime is gathered, and becomes one task.
    """

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._clear()

    def _clear(self) -> None:
        self._ids: set[str] = set()
        self._all = False
        self._waiting: list[Future[None]] = []

    def add(self, ids: Iterable[UUID] | None) -> Future[None]:
        future: Future[None] = Future()
        with self._wake:
            self._waiting.append(future)
            if ids is None:
                self._all = True
            else:
                self._ids.update(str(id) for id in ids)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="proxyhealth sender", daemon=True)
                self._thread.start()
            self._wake.notify()
        return future

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting)
                ids, everything, waiting = self._ids, self._all, self._waiting
                self._clear()
            try:
                if everything:
                    _send(None)
                _send(ids)
            except Exception as error:
                logger.warning(
                    "the workers could not be asked for a check, the next round does it: %s", error
                )
                for future in waiting:
                    future.set_exception(error)
            else:
                for future in waiting:
                    future.set_result(None)

    def flush(self) -> None:
        """At the end of a short-lived process: give what was asked for last its chance to leave."""
        if self._thread is None:
            return
        last = self.add(())  # done after all that came before it
        with suppress(Exception):
            last.result(timeout=2)


_sender = _Sender()


def _after_fork() -> None:
    global _sender
    _sender = _Sender()  # the thread stayed in the parent, and so did what it was to send


os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _sender.flush())

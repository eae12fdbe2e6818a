"""The Celery tasks: the round that beat calls, the check of a few proxies, and how both are sent."""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from celery import current_app, shared_task
from celery.signals import worker_ready

from proxyhealth import rounds, store
from proxyhealth.cache import StoreError
from proxyhealth.conf import conf
from proxyhealth.document import Change, Round
from proxyhealth.report import ProxyStatus, Status
from proxyhealth.rounds import RoundFailed

logger = logging.getLogger(__name__)

_SLUG = re.compile(r"[\w-]+")


def run_round(wait: float = 0, unless_since: float | None = None) -> bool:
    """One full round in this process, from reading the proxies to the commit.

    False if another round was still running after ``wait`` seconds, or one has begun after
    ``unless_since`` (seconds since the epoch); then nothing was done. Raises ``RoundFailed``; then the
    snapshot is as it was.
    """
    try:
        with store.round_lock(wait) as locked:
            if not locked:
                logger.info("round skipped: another one is running")
                _count("skipped")
                return False
            if unless_since is not None and _last_round() > unless_since:
                logger.info("round skipped: there has been one")
                return False
            _run_round()
            _count("success")
            return True
    except Exception as error:
        failure = _failure(error, "round")
        _count("failure", str(failure))
        raise failure from error


def _last_round() -> float:
    checked_at = store.read_anew().checked_at
    return checked_at.timestamp() if checked_at else 0


def _failure(error: Exception, what: str) -> RoundFailed:
    """``error`` as the failure of a round, logged; what nobody expected with its traceback."""
    if isinstance(error, RoundFailed):
        failure = error
    elif isinstance(error, StoreError):
        failure = RoundFailed(f"the cache cannot be used: {error}")
    else:
        logger.exception("%s failed unexpectedly", what)
        return RoundFailed(f"an error of proxyhealth, or of how it is set up: {error!r}")
    logger.error("%s failed: %s", what, failure)
    return failure


def _count(outcome: str, error: str = "") -> None:
    with suppress(StoreError):  # a round that was not counted was a round all the same
        store.count_round(outcome, error)


def _run_round() -> None:
    ticket = store.take_ticket()
    checked_at = datetime.now(UTC)
    begin = time.monotonic()
    proxies = rounds.read_proxies()
    logger.info("round start ticket=%d proxies=%d", ticket, len(proxies))
    statuses = rounds.probe_all(proxies, checked_at)
    duration = time.monotonic() - begin
    commit = store.commit(statuses, ticket, full_round=Round(checked_at, duration))
    _log_changes(commit.changes)
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
        commit = store.commit(statuses, ticket, removed=removed)
    except Exception as error:
        raise _failure(error, "check") from error
    _log_changes(commit.changes)
    logger.info("check end ticket=%d removed=%d %s", ticket, len(removed), _counts(statuses))
    if not commit.complete:
        # The cache is new or was emptied; a snapshot of a few must not stay one for an interval.
        request_check()


def _log_changes(changes: Sequence[Change]) -> None:
    for change in changes:
        after = change.after
        logger.log(
            logging.INFO if after.healthy else logging.WARNING,
            "status change proxy=%s name=%s from=%s to=%s reason=%s error=%s",
            change.proxy,
            # Quoted: what a proxy says, or is called, may look like a log line of ours.
            change.name if _SLUG.fullmatch(change.name) else json.dumps(change.name),
            change.before or "none",
            after.status,
            after.reason or "none",
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


@shared_task(ignore_result=True, throws=(RoundFailed,))
def first_round(started: float) -> None:
    """The round that a worker begins with, unless one has begun since it started (epoch seconds).

    The worker may have taken the place of one that was killed in a round, so it waits for its lock.
    """
    run_round(wait=store.LOCK_SECONDS + 2, unless_since=started)


@worker_ready.connect
def _request_first_round(**kwargs: Any) -> None:
    """A worker that has just started does not wait for beat."""
    try:
        first_round.apply_async((time.time(),), expires=conf.INTERVAL)
    except Exception as error:
        logger.warning("the first round could not be asked for, the next tick brings one: %s", error)


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
    with _broker() as connection:
        # A task that nobody took for an interval is worthless: a round came after it.
        options: dict[str, Any] = {"expires": conf.INTERVAL, "connection": connection}
        if ids is None:
            check_all.apply_async(**options)
        elif ids:
            check_proxies.apply_async((sorted(ids),), **options)


@contextmanager
def _broker() -> Iterator[Any]:
    """A connection to the broker that does not wait for ever for a silent one; None for Celery's own."""
    options = current_app.conf
    if not str(options.broker_write_url or options.broker_url).startswith(("redis:", "rediss:")):
        yield None  # what bounds another transport is not ours to know
        return
    bounds = {"socket_timeout": 5, "socket_connect_timeout": 2, **(options.broker_transport_options or {})}
    with current_app.connection_for_write(transport_options=bounds) as connection:
        yield connection


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

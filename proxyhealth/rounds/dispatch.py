"""Requests for checks, and how they get to the broker without anybody waiting for it."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any
from uuid import UUID

from celery import current_app

from proxyhealth.exceptions import StoreError
from proxyhealth.rounds import broker
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.pending import add_pending, release_claim

logger = logging.getLogger(__name__)


class Sender:
    """Hands requests for checks to the broker, by ``send``, in a thread of its own.

    Celery blocks its caller for many seconds when the broker is down. Here what is asked for in
    the meantime is gathered, and becomes one task.
    """

    def __init__(self, send: Callable[[set[str] | None], None]) -> None:
        self._send = send
        self._wake = threading.Condition()
        self._restart()
        # In a fork the thread stayed in the parent, and so did what it was to send.
        os.register_at_fork(after_in_child=self._restart)
        atexit.register(self._flush)

    def _restart(self) -> None:
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._clear()

    def _clear(self) -> None:
        self._ids: set[str] = set()
        self._all = False
        self._waiting: list[Future[None]] = []

    def add(self, ids: Iterable[str] | None) -> Future[None]:
        """Ask for a check of these proxies, or of all.

        The future is done when the broker has the task. One for no ids is done after all that came
        before it, and tells how the last of that fared.
        """
        future: Future[None] = Future()
        with self._wake:
            self._waiting.append(future)
            if ids is None:
                self._all = True
            else:
                self._ids.update(ids)
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
            if ids or everything:
                self._error = self._try(ids, everything)
            for future in waiting:
                if self._error:
                    future.set_exception(self._error)
                else:
                    future.set_result(None)

    def _try(self, ids: set[str], everything: bool) -> Exception | None:
        try:
            if everything:
                self._send(None)
            if ids:
                self._send(ids)
        except Exception as error:
            logger.warning("the workers could not be asked for a check, the next round does it: %s", error)
            return error
        return None

    def _flush(self) -> None:
        """At the end of a short-lived process: give what was asked for last its chance to leave."""
        if self._thread is not None:
            with suppress(Exception):
                self.add(()).result(timeout=2)


def request_check(ids: Iterable[UUID] | None = None) -> Future[None]:
    """Ask the workers to check these proxies, or all of them, now; returns at once, raises nothing.

    The broker is talked to in a thread. The future is done when it has the task, and has the
    exception if it could not be reached; then the next round checks the proxies anyway. To ask for
    nothing, ``request_check([])``, tells how the last request fared.

    A round that is running is followed by exactly one more, however often that was asked for.
    """
    wanted = ids if ids is None else [str(id) for id in ids]
    if current_app.conf.task_always_eager:
        return _run_eagerly(wanted)
    return _sender.add(wanted)


def _run_eagerly(ids: list[str] | None) -> Future[None]:
    done: Future[None] = Future()
    try:
        if ids is None:
            _task("check_all").apply_async()
        elif ids:
            _task("check_proxies").apply_async((ids,))
    except Exception as error:
        logger.warning("check failed: %s", error)
        done.set_exception(error)
    else:
        done.set_result(None)
    return done


def _send(ids: set[str] | None) -> None:
    if ids is None:
        _apply("check_all", kwargs={"asked": _token()})
    elif (left := _left_to_send(ids)) is not None:
        try:
            _apply("check_proxies", args=(left,))
        except Exception:
            with suppress(StoreError):
                release_claim()
            raise


def _apply(name: str, **options: Any) -> None:
    with broker.connection() as connection:
        _task(name).apply_async(connection=connection, **options)


def _task(name: str) -> Any:
    return current_app.tasks[f"proxyhealth.tasks.{name}"]


def _token() -> int | None:
    with suppress(StoreError):  # the workers may have a better way to the cache
        return take_token()
    return None


def _left_to_send(ids: set[str]) -> list[str] | None:
    """The ids that a task has to carry, because they could not be noted; None if no task is needed."""
    with suppress(StoreError):
        return [] if add_pending(ids) else None
    return sorted(ids)


_sender = Sender(lambda ids: _send(ids))

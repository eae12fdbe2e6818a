"""Requests for checks. A thread sends them to the broker, so that no caller waits for it."""

import atexit
import logging
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any
from uuid import UUID

from celery import current_app

from proxyhealth.exceptions import StoreError
from proxyhealth.rounds import broker
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.pending import add_pending, release_claim
from proxyhealth.task_names import TaskName
from proxyhealth.utils import PerProcess

logger = logging.getLogger(__name__)


def request_check(ids: Iterable[UUID] | None = None) -> Future[None]:
    """Ask the workers to check the proxies with these ids, or all proxies. Return at once, never raise.

    A thread sends the request. The future is done when the broker has it. If the broker cannot be reached,
    the future has the exception, and the next round checks the proxies. ``request_check([])`` sends nothing:
    its future has the result of the last request.

    However many requests for all proxies arrive during a round, exactly one more round follows it.
    """
    id_texts = ids if ids is None else [str(id) for id in ids]
    if current_app.conf.task_always_eager:
        return _run_eagerly(id_texts)
    return _sender.value.add(id_texts)


class Sender:
    """The requests of this process, and the thread that sends them.

    While the broker is down, Celery blocks for many seconds. Requests that arrive meanwhile become one task.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._clear()

    def _clear(self) -> None:
        self._ids: set[str] = set()
        self._all_proxies = False
        self._futures: list[Future[None]] = []

    def add(self, ids: Iterable[str] | None) -> Future[None]:
        """Request a check of these proxies, or of all.

        The future is done when the broker has the task. Without ids, it is done after all earlier requests,
        with the result of the last one.
        """
        future: Future[None] = Future()
        with self._changed:
            self._futures.append(future)
            if ids is None:
                self._all_proxies = True
            else:
                self._ids.update(ids)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="proxyhealth sender", daemon=True)
                self._thread.start()
            self._changed.notify()
        return future

    def flush(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds until all requests are sent."""
        if self._thread is not None:
            with suppress(Exception):
                self.add(()).result(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._futures)
                ids, all_proxies, futures = self._ids, self._all_proxies, self._futures
                self._clear()
            if ids or all_proxies:
                self._error = self._try_to_send(ids, all_proxies)
            for future in futures:
                if self._error:
                    future.set_exception(self._error)
                else:
                    future.set_result(None)

    def _try_to_send(self, ids: set[str], all_proxies: bool) -> Exception | None:
        try:
            if all_proxies:
                _send(None)
            if ids:
                _send(ids)
        except Exception as error:
            logger.warning("no check could be requested, the next round checks the proxies: %s", error)
            return error
        return None


# A fork does not copy the thread, and the parent sends its own requests: the child starts with none.
_sender = PerProcess(Sender)

# A short-lived process, such as a management command, sends its last requests before it ends.
atexit.register(lambda: _sender.value.flush(timeout=2))


def _run_eagerly(ids: list[str] | None) -> Future[None]:
    done: Future[None] = Future()
    try:
        if ids is None:
            current_app.tasks[TaskName.CHECK_ALL].apply_async()
        elif ids:
            current_app.tasks[TaskName.CHECK_PROXIES].apply_async((ids,))
        done.set_result(None)
    except Exception as error:
        logger.warning("check failed: %s", error)
        done.set_exception(error)
    return done


def _send(ids: set[str] | None) -> None:
    if ids is None:
        token = None
        with suppress(StoreError):  # the workers may still reach the cache
            token = take_token()
        _apply(TaskName.CHECK_ALL, kwargs={"asked": token})
        return
    try:
        if not add_pending(ids):
            return  # a queued task takes these ids, too
        task_ids = []
    except StoreError:
        task_ids = sorted(ids)
    try:
        _apply(TaskName.CHECK_PROXIES, args=(task_ids,))
    except Exception:
        with suppress(StoreError):
            release_claim()
        raise


def _apply(name: TaskName, **options: Any) -> None:
    with broker.connection() as connection:
        task: Any = current_app.tasks[name]
        task.apply_async(connection=connection, **options)

"""Requests for checks. A thread sends them to the broker, so that no caller waits for it."""

import atexit
import logging
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from celery import Celery

from proxyhealth import isolation
from proxyhealth.conf import conf
from proxyhealth.exceptions import StoreError
from proxyhealth.rounds import broker
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.pending import SendTask, add_pending, claim_delivery, claim_recheck, release_claim
from proxyhealth.task_names import TaskName
from proxyhealth.texts import without_passwords
from proxyhealth.utils import PerProcess

logger = logging.getLogger(__name__)


def request_check(ids: Iterable[UUID] | None = None) -> Future[None]:
    """Ask the workers to check the proxies with these ids, or all proxies. Return at once, never raise.

    A thread sends the request. The future is done when the broker has it. If the broker cannot be reached,
    the future has the exception, and the next round checks the proxies. ``request_check([])`` sends nothing:
    its future has the result of the last request.

    However many requests for all proxies arrive during a round, exactly one more round follows it.

    In a test that is isolated, send nothing: the future is done.
    """
    if isolation.is_isolated():
        return _request_from_substitute(ids)
    id_texts = ids if ids is None else [str(id) for id in ids]
    app = broker.celery_app()
    if app.conf.task_always_eager:
        return _check_eagerly(app, id_texts)
    return _sender.value.add(id_texts)


def _request_from_substitute(ids: Iterable[UUID] | None) -> Future[None]:
    if substitute := isolation.current():
        substitute.request_check(ids)
    done: Future[None] = Future()
    done.set_result(None)
    return done


def request_next_round() -> None:
    """Request a round that no caller requested. In eager mode, do nothing.

    Otherwise a save would run a whole round in its own process.
    """
    if not broker.celery_app().conf.task_always_eager:
        request_check()


def request_task(name: TaskName, countdown: float = 0) -> None:
    """Ask the workers to run a task without arguments, after ``countdown`` seconds. Never raise.

    Return at once, except in eager mode, which runs the task here if it has no countdown. A request with a
    countdown waits in this process. If that is killed, the next round makes up for it.
    """
    app = broker.celery_app()
    is_eager = app.conf.task_always_eager
    if countdown and not is_eager:
        _sender.value.add_later(name, countdown)
    elif not is_eager:
        _sender.value.add((), [name])
    elif not countdown:
        _run_eagerly(app, name)


def request_recheck(seconds: float) -> None:
    """Ask the workers to check the proxies again whose last result contradicts their status. Never raise.

    One request is enough for all of them. In eager mode, only rounds check them.
    """
    with suppress(StoreError):  # the next round checks them anyway
        if not broker.celery_app().conf.task_always_eager and claim_recheck(seconds):
            request_task(TaskName.RECHECK, seconds)


def request_delivery(seconds: float) -> None:
    """Ask the workers to send what is due to the channels, ``seconds`` from now. Never raise.

    One request with a countdown is enough for all channels. What is due later is requested after a round.
    """
    if seconds <= 0:
        request_task(TaskName.DELIVER)
        return
    with suppress(StoreError):  # the next round requests it
        eager = broker.celery_app().conf.task_always_eager
        if not eager and seconds <= conf.INTERVAL and claim_delivery(seconds):
            request_task(TaskName.DELIVER, seconds)


def flush(timeout: float) -> None:
    """Wait up to ``timeout`` seconds until all requests of this process are sent, but those for later."""
    _sender.value.flush(timeout)


def hand_over(timeout: float) -> None:
    """Send all requests of this process, which ends, also those for later: the broker keeps them."""
    _sender.value.hand_over(timeout)


@dataclass
class _Batch:
    """The requests that are sent together, to the broker of one Celery app."""

    ids: set[str] = field(default_factory=set)
    all_proxies: bool = False
    tasks: dict[TaskName, float] = field(default_factory=dict)  # with their countdowns
    futures: list[Future[None]] = field(default_factory=list)


class Sender:
    """The requests of this process, and the thread that sends them.

    While the broker is down, Celery blocks for many seconds. Requests that arrive meanwhile become one task.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._batches: dict[Celery, _Batch] = {}
        # When requests for later are due, by the monotonic clock. They do not wait in the broker, because a
        # Celery worker that holds messages for later ends when it loses its broker.
        self._due_at: dict[tuple[Celery, TaskName], float] = {}

    def add(self, ids: Iterable[str] | None, tasks: Iterable[TaskName] = ()) -> Future[None]:
        """Request a check of these proxies, or of all, and tasks.

        The future is done when the broker has the task. Without ids, it is done after all earlier requests,
        with the result of the last one.
        """
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # the thread fails if a caller has cancelled it
        app = broker.celery_app()  # here, because the thread may have another current app
        with self._changed:
            batch = self._batches.setdefault(app, _Batch())
            batch.futures.append(future)
            if ids is None:
                batch.all_proxies = True
            else:
                batch.ids.update(ids)
            batch.tasks.update(dict.fromkeys(tasks, 0.0))
            self._wake()
        return future

    def add_later(self, name: TaskName, seconds: float) -> None:
        """Request a task ``seconds`` from now, unless it is requested for an earlier time."""
        key, due_at = (broker.celery_app(), name), time.monotonic() + seconds
        with self._changed:
            self._due_at[key] = min(due_at, self._due_at.get(key, due_at))
            self._wake()

    def flush(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds until all requests are sent, but those for later."""
        if self._thread is not None:
            with suppress(Exception):
                self.add(()).result(timeout)

    def hand_over(self, timeout: float) -> None:
        """Send all requests, those for later with their countdowns. Wait up to ``timeout`` seconds."""
        if self._thread is not None:
            with self._changed:
                self._take(float("inf"))
            self.flush(timeout)

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="proxyhealth sender", daemon=True)
            self._thread.start()
        self._changed.notify()

    def _take(self, seconds: float) -> None:
        """Make the requests that are due within ``seconds`` parts of the next batches."""
        now = time.monotonic()
        for app, name in [key for key, due_at in self._due_at.items() if due_at <= now + seconds]:
            batch = self._batches.setdefault(app, _Batch())
            batch.tasks.setdefault(name, max(0.0, self._due_at.pop((app, name)) - now))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._batches:
                    next_due_at = min(self._due_at.values(), default=None)
                    self._changed.wait(next_due_at and max(0.0, next_due_at - time.monotonic()))
                    self._take(0)
                app = next(iter(self._batches))
                batch = self._batches.pop(app)
            if batch.ids or batch.all_proxies or batch.tasks:
                app.set_current()  # for this thread only
                self._error = self._try_to_send(batch)
            for future in batch.futures:
                if self._error:
                    future.set_exception(self._error)
                else:
                    future.set_result(None)

    def _try_to_send(self, batch: _Batch) -> Exception | None:
        try:
            if batch.all_proxies:
                _send(None)
            if batch.ids:
                _send(batch.ids)
            for name, countdown in batch.tasks.items():
                _apply(name, countdown=countdown)
        except Exception as error:
            text = without_passwords(error)
            logger.warning("no task could be requested, the next round makes up for it: %s", text)
            return error
        return None


# A fork does not copy the thread, and the parent sends its own requests: the child starts with none.
_sender = PerProcess(Sender)

# A short-lived process, such as a management command, sends its last requests before it ends.
atexit.register(hand_over, timeout=2)


def _check_eagerly(app: Celery, ids: list[str] | None) -> Future[None]:
    if ids is None:
        return _run_eagerly(app, TaskName.CHECK_ALL)
    if ids:
        return _run_eagerly(app, TaskName.CHECK_PROXIES, ids)
    done: Future[None] = Future()
    done.set_result(None)
    return done


def _run_eagerly(app: Celery, name: TaskName, *args: Any) -> Future[None]:
    done: Future[None] = Future()
    try:
        app.tasks[name].apply_async(args)
        done.set_result(None)
    except Exception as error:
        logger.warning("%s failed: %s", name.short, without_passwords(error))
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
        send = add_pending(ids)
        if send is SendTask.NO or (send is SendTask.IF_LOST and broker.queue_length()):
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
    app = broker.celery_app()
    with broker.connection(app) as connection:
        task: Any = app.tasks[name]
        task.apply_async(connection=connection, **options)

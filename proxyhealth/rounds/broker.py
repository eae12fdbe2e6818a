"""Celery's broker, for who must not wait for it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from celery import current_app
from kombu.exceptions import ChannelError

# Seconds that a caller waits for the length of a queue.
_TIMEOUT = 0.25


@contextmanager
def connection() -> Iterator[Any]:
    """A connection to the broker that does not wait for ever for a silent one; None for Celery's own."""
    if not _is_redis():
        yield None  # what bounds another transport is not ours to know
        return
    options = current_app.conf.broker_transport_options or {}
    bounds = {"socket_timeout": 5, "socket_connect_timeout": 2, **options}
    with current_app.connection_for_write(transport_options=bounds) as connection:
        yield connection


def _is_redis() -> bool:
    options = current_app.conf
    return str(options.broker_write_url or options.broker_url).startswith(("redis:", "rediss:"))


def queue_length() -> int | None:
    """How many messages wait for a worker, in all queues that a task of ours may be sent to.

    None if the broker does not say so in a quarter of a second, and for other brokers than Redis. Raises
    nothing.
    """
    if current_app.conf.task_always_eager or not _is_redis():
        return None
    try:
        return _query.ask()
    except Exception:
        return None


class _QueueLengthQuery:
    """Asked in a thread, because Celery retries for many seconds; by one at a time, however many callers."""

    def __init__(self) -> None:
        self._restart()
        os.register_at_fork(after_in_child=self._restart)

    def _restart(self) -> None:
        self._lock = threading.Lock()
        self._answer: Future[int] | None = None
        self._until = 0.0  # when it has had its time (monotonic)

    def ask(self) -> int:
        """The answer; raises what goes wrong, and ``TimeoutError``.

        A question that has had its time already is not waited for again.
        """
        with self._lock:
            answer = self._answer
            if answer is None or answer.done():
                answer = Future()
                threading.Thread(
                    target=self._run, args=(answer,), name="proxyhealth broker", daemon=True
                ).start()
                # Only now: one for which there was no thread would never be answered.
                self._answer, self._until = answer, time.monotonic() + _TIMEOUT
        return answer.result(timeout=max(0.0, self._until - time.monotonic()))

    def _run(self, answer: Future[int]) -> None:
        try:
            answer.set_result(_count_waiting())
        except BaseException as error:
            answer.set_exception(error)


def _count_waiting() -> int:
    with connection() as link:
        channel = link.channel()
        return sum(_length(channel, queue) for queue in _queues())


def _length(channel: Any, queue: str) -> int:
    try:
        return int(channel.queue_declare(queue, passive=True).message_count)
    except ChannelError:
        return 0  # it is not there: Redis has no empty lists


def _queues() -> set[str]:
    names = [name for name in current_app.tasks if name.startswith("proxyhealth.tasks.")]
    return {current_app.amqp.router.route({}, name)["queue"].name for name in names}


_query = _QueueLengthQuery()

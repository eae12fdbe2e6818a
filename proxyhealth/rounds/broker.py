"""Connections to Celery's broker, and the length of its queues, with short timeouts."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from celery import current_app
from kombu.exceptions import ChannelError

from proxyhealth.task_names import TaskName
from proxyhealth.utils import PerProcess

# Seconds that a caller waits for the length of the queues. A scrape must not hang with the broker.
_TIMEOUT = 0.25


@contextmanager
def connection() -> Iterator[Any]:
    """Yield a connection to a Redis broker that times out, or None, which means Celery's own connection."""
    if not _is_redis():
        yield None  # other transports have other options
        return
    options = current_app.conf.broker_transport_options or {}
    timeouts = {"socket_timeout": 5, "socket_connect_timeout": 2, **options}
    with current_app.connection_for_write(transport_options=timeouts) as connection:
        yield connection


def _is_redis() -> bool:
    options = current_app.conf
    return str(options.broker_write_url or options.broker_url).startswith(("redis:", "rediss:"))


def queue_length() -> int | None:
    """Return how many messages wait for a worker in the queues of our tasks. Never raise.

    Return None if the broker does not respond within a quarter of a second, or is not Redis.
    """
    if current_app.conf.task_always_eager or not _is_redis():
        return None
    try:
        return _query.value.result()
    except Exception:
        return None


class _QueueLengthQuery:
    """A query in a thread, because Celery retries for many seconds. All callers share the running query."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._length: Future[int] | None = None
        self._deadline = 0.0  # of the query that is running (monotonic)

    def result(self) -> int:
        """Return the length. Raise the error of the broker, or ``TimeoutError``.

        Callers do not wait for a query that is past its deadline.
        """
        with self._lock:
            future = self._length
            if future is None or future.done():
                future = Future()
                threading.Thread(
                    target=self._run, args=(future,), name="proxyhealth broker", daemon=True
                ).start()
                # After the start, because nothing completes the future of a thread that cannot start.
                self._length, self._deadline = future, time.monotonic() + _TIMEOUT
        return future.result(timeout=max(0.0, self._deadline - time.monotonic()))

    def _run(self, future: Future[int]) -> None:
        try:
            future.set_result(_count_messages())
        except BaseException as error:
            future.set_exception(error)


def _count_messages() -> int:
    with connection() as link:
        channel = link.channel()
        return sum(_length(channel, queue) for queue in _queues())


def _length(channel: Any, queue: str) -> int:
    try:
        return int(channel.queue_declare(queue, passive=True).message_count)
    except ChannelError:
        return 0  # Redis deletes a list when it becomes empty


def _queues() -> set[str]:
    return {current_app.amqp.router.route({}, name)["queue"].name for name in TaskName}


_query = PerProcess(_QueueLengthQuery)

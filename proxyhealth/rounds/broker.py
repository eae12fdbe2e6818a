"""The Celery app of the rounds, its connections with short timeouts, and the length of its queues."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

from celery import Celery
from celery._state import _get_active_apps, get_current_app  # type: ignore[attr-defined]
from django.conf import settings

from proxyhealth import isolation
from proxyhealth.task_names import TaskName
from proxyhealth.utils import PerProcess

# Seconds that a caller waits for the length of the queues. A scrape must not hang with the broker.
_TIMEOUT = 0.25


def celery_app() -> Celery:
    """Return the app that runs our tasks, whichever app is current in this thread.

    A process may have several: the one that is configured from Django's settings counts, then the one with
    the schedule of the rounds. Otherwise it is the current app, which differs between threads.
    """
    apps: list[Celery] = list(_get_active_apps())
    for is_ours in (_is_of_django, schedules_rounds):
        apps = list(filter(is_ours, apps)) or apps
        if len(apps) == 1:
            return apps[0]
    app: Celery = get_current_app()
    return app


def _is_of_django(app: Any) -> bool:
    paths = ("django.conf:settings", "django.conf.settings", os.environ.get("DJANGO_SETTINGS_MODULE", ""))
    return app._config_source is settings or app._config_source in paths


def schedules_rounds(app: Any) -> bool:
    """Return True if the app has an entry for the rounds, under any name."""
    with suppress(Exception):  # an app of the host that is not configured yet, or wrongly
        return any(entry["task"] == TaskName.CHECK_ALL for entry in app.conf.beat_schedule.values())
    return False


@contextmanager
def connection(app: Celery) -> Iterator[Any]:
    """Yield a connection to a Redis broker that times out, or None, which means Celery's own connection."""
    options = app.conf.broker_transport_options or {}
    timeouts = {"socket_timeout": 5, "socket_connect_timeout": 2, **options}
    with app.connection_for_write(transport_options=timeouts) as link:
        # Other transports have other options.
        yield link if link.get_transport_cls().driver_type == "redis" else None


def queue_length() -> int | None:
    """Return how many messages wait for a worker in the queues of our tasks. Never raise.

    Return None if the broker does not respond within a quarter of a second, or is not Redis, and in a test
    that is isolated.
    """
    try:
        return measure_queues()
    except Exception:
        return None


def measure_queues() -> int | None:
    """Return the same, but raise the error of the broker, ``TimeoutError``, or ``LookupError``.

    Return None only if there is no broker: in eager mode, and in a test that is isolated.
    """
    if isolation.is_isolated():
        return None
    app = celery_app()
    return None if app.conf.task_always_eager else _query.value.result(app)


class _QueueLengthQuery:
    """A query in a thread, because Celery retries for many seconds. All callers share the running query."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._length: Future[int] | None = None
        self._deadline = 0.0  # of the query that is running (monotonic)

    def result(self, app: Celery) -> int:
        """Return the length. Raise the error of the broker, or ``TimeoutError``.

        Callers do not wait for a query that is past its deadline.
        """
        with self._lock:
            future = self._length
            if future is None or future.done():
                future = Future()
                threading.Thread(
                    target=self._run, args=(future, app), name="proxyhealth broker", daemon=True
                ).start()
                # After the start, because nothing completes the future of a thread that cannot start.
                self._length, self._deadline = future, time.monotonic() + _TIMEOUT
        try:
            return future.result(timeout=max(0.0, self._deadline - time.monotonic()))
        except TimeoutError as error:
            raise TimeoutError(f"no answer within {_TIMEOUT} s") from error

    def _run(self, future: Future[int], app: Celery) -> None:
        try:
            future.set_result(_count_messages(app))
        except BaseException as error:
            future.set_exception(error)


def _count_messages(app: Celery) -> int:
    with connection(app) as link:
        if link is None:
            raise LookupError("only a broker on Redis can be queried")
        for _ in link.alt[1:]:  # the broker URLs to fail over to
            try:
                return _count_on(link, app)
            except link.connection_errors:
                link.maybe_switch_next()
        return _count_on(link, app)


def _count_on(link: Any, app: Celery) -> int:
    channel = link.channel()
    # On Redis, this only counts. It does not need the queue to exist: Redis deletes a list that is empty.
    return sum(channel.queue_declare(queue).message_count for queue in queues_of_tasks(app))


def queues_of_tasks(app: Celery) -> set[str]:
    """Return the names of the queues that our tasks are sent to."""
    names: set[str] = set()
    # In a copy, because a route adds its queue, and a worker of Celery 5.5 then consumes that queue, too.
    router = app.amqp.Router(app.amqp.Queues(dict(app.amqp.queues)))
    for name in TaskName:
        task: Any = app.tasks.get(name)
        # An annotation may give the task a queue. A route may be a function of the task.
        options = dict(task._get_exec_options()) if task else {}
        route = router.route(options, name.value, task_type=task)
        if route.get("queue"):
            names.add(route["queue"].name)
        elif exchange := route.get("exchange"):
            names |= _bound_queues(app, getattr(exchange, "name", exchange), route.get("routing_key"))
        else:
            names.add(app.amqp.default_queue.name)
    return names


def _bound_queues(app: Celery, exchange: str, routing_key: str | None) -> set[str]:
    """Return the names of the queues that get messages with this key from an exchange."""
    return {
        queue.name
        for queue in app.amqp.queues.values()
        if queue.exchange.name == exchange
        and (queue.exchange.type != "direct" or queue.routing_key == routing_key)
    }


_query = PerProcess(_QueueLengthQuery)

"""The start of a Celery worker: refuse green threads, and report queues that no worker consumes."""

import logging
import threading
import time
from contextlib import suppress
from typing import Any

from celery import Celery
from celery.concurrency import get_implementation

from proxyhealth.exceptions import RoundFailed
from proxyhealth.rounds import broker
from proxyhealth.rounds.steps import record_failure
from proxyhealth.storage.lease import lease_seconds
from proxyhealth.utils import green_threads

logger = logging.getLogger(__name__)

# Seconds that running workers have to tell which queues they consume.
_REPLY_TIMEOUT = 5.0


def refuse_green_threads(worker: Any) -> None:
    """End a worker with green threads that would take our tasks. A worker of other queues may have them."""
    library = green_threads() or library_of_pool(worker.pool_cls)
    queues = broker.queues_of_tasks(worker.app) & set(worker.app.amqp.queues.consume_from)
    if library and queues:
        raise SystemExit(
            f"proxyhealth: probes need real threads, so a worker with {library} must not take tasks from the "
            f"queue {_names(queues)}. Start it with --pool prefork, threads or solo. Or give it other queues "
            "with --queues, and start another worker for this queue."
        )


def library_of_pool(pool: Any) -> str:
    """Return the library of green threads that a pool uses, or an empty string.

    The pool may be a class of the host.
    """
    with suppress(Exception):  # an alias or a path; the worker itself reports one that cannot be imported
        pool = get_implementation(pool)
    names = [cls.__module__ for cls in getattr(pool, "__mro__", ())] or [str(pool)]
    libraries = ("gevent", "eventlet")
    return next((library for library in libraries if any(library in name for name in names)), "")


def report_unconsumed_queues(app: Celery) -> None:
    """Record a failed round if no worker takes the tasks from one of our queues."""
    queues = broker.queues_of_tasks(app) - set(app.amqp.queues.consume_from)
    if queues:
        threading.Thread(
            target=_ask_other_workers, args=(app, queues), name="proxyhealth queues", daemon=True
        ).start()


def _ask_other_workers(app: Celery, queues: set[str]) -> None:
    time.sleep(lease_seconds())  # another worker may start together with this one
    with suppress(Exception):  # without a broker, this worker connects again, and asks again
        # This worker responds, too. Without any reply, workers have no remote control, so nothing is known.
        replies = app.control.inspect(timeout=_REPLY_TIMEOUT).active_queues()
        for consumed in (replies or {}).values():
            queues = queues - {queue["name"] for queue in consumed}
        if replies and queues and broker.queue_length() != 0:
            record_failure(
                RoundFailed(
                    f"no running worker takes tasks from the queue {_names(queues)}. "
                    f"Start a worker with --queues {','.join(sorted(queues))}"
                )
            )


def _names(queues: set[str]) -> str:
    return ", ".join(map(repr, sorted(queues)))

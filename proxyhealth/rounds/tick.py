"""The class of the task that beat sends."""

from contextlib import suppress
from typing import Any

from celery import Task

from proxyhealth.rounds import reporting


class Tick(Task):  # type: ignore[type-arg]  # generic for type checkers only
    """A task whose sender reconnects to its broker after a failure.

    Beat keeps one connection. After a failover, the old primary may continue as a replica that refuses each
    message. Celery takes such a reply for an error of the message, and would send the next one there, too.
    """

    def apply_async(self, *args: Any, **options: Any) -> Any:
        is_beat = options.get("producer") is not None
        try:
            result = super().apply_async(*args, **options)
        except Exception as error:
            if is_beat:
                reporting.report_beat(error)
            with suppress(Exception):  # most senders pass no producer
                producer = options["producer"]
                producer.connection.collect()
                producer.revive(producer.connection)
            raise
        if is_beat:
            reporting.report_beat()
        return result

"""Faults at named steps inside a worker, and a receiver that notes each signal.

``tests.chaos.settings`` installs this app if ``STEP_FOLDER`` names a folder. A test writes a fault into a
file there with the name of the step: ``kill 1``, or ``lose 2``. The first process that reaches the step
removes the file, and then kills itself, or closes its connection to Redis, so that a reply is lost, as often
as the number says. ``SIGNALS_FILE`` gets a line for each signal.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
from celery.signals import task_prerun
from django.apps import AppConfig
from django.db.backends.signals import connection_created
from redis.connection import AbstractConnection

_OUTBOX = b"proxyhealth:outbox"
_INSERT = 'INTO "proxyhealth_transition"'

# In the order of their time. The commands to Redis have two steps: "send" before Redis has the command, and
# the other one when Redis has executed it, but the process has not read the reply.
STEPS = (
    "commit:send",
    "commit:written",
    "task:record_history",
    "outbox:read",
    "rows:inserted",
    "rows:committed",
    "outbox:trimmed",
    "task:send_signals",
    "signal:receive",
    "signal:received",
    "task:recheck",
)
LOSSES = ("commit:written", "outbox:read", "outbox:trimmed")


class Steps(AppConfig):
    name = "tests.chaos.steps"
    label = "chaos_steps"

    def ready(self) -> None:
        from proxyhealth.signals import status_changed

        status_changed.connect(_note_signal)
        task_prerun.connect(_start_task)
        connection_created.connect(_watch_rows)
        _watch_redis()


def _take(step: str) -> str:
    """Return the fault that is to happen at this step, and remove it."""
    path = Path(os.environ["STEP_FOLDER"], step)
    try:
        fault, times = path.read_text().split()
        path.unlink()  # for this process alone
    except (OSError, ValueError):
        return ""
    if times != "1":
        path.write_text(f"{fault} {int(times) - 1}")
    return fault


def reach(step: str) -> bool:
    """Kill this process if it is to die here. Return True if it is to lose a reply."""
    fault = _take(step)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return fault == "lose"


def _start_task(task: Any, **kwargs: Any) -> None:
    reach(f"task:{task.name.rpartition('.')[2]}")


def _note_signal(proxy_status: Any, before: str, transition: Any, **kwargs: Any) -> None:
    reach("signal:receive")
    after = proxy_status.status if proxy_status else transition.REMOVED
    line = f"{transition.pk} {transition.proxy_uuid} {transition.token} {before} {after}\n"
    file = os.open(os.environ["SIGNALS_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode())
    os.close(file)
    reach("signal:received")


def _watch_rows(connection: Any, **kwargs: Any) -> None:
    if _after_insert not in connection.execute_wrappers:
        connection.execute_wrappers.append(_after_insert)


def _after_insert(execute: Callable[..., Any], sql: Any, *args: Any) -> Any:
    result = execute(sql, *args)
    if _INSERT in str(sql):
        reach("rows:inserted")  # in the transaction
    return result


def _step_of(command: bytes) -> tuple[str, str]:
    """Return the steps before and after a command to Redis."""
    if b'"judgements"' in command:
        return "commit:send", "commit:written"
    if _OUTBOX in command:
        return ("", "outbox:read") if b"LRANGE" in command else ("rows:committed", "outbox:trimmed")
    return "", ""


def _watch_redis() -> None:
    send, read = AbstractConnection.send_packed_command, AbstractConnection.read_response

    def send_packed_command(self: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
        before, self.chaos_step = _step_of(b"".join([command] if isinstance(command, bytes) else command))
        if before:
            reach(before)
        return send(self, command, *args, **kwargs)

    def read_response(self: Any, *args: Any, **kwargs: Any) -> Any:
        after, self.chaos_step = getattr(self, "chaos_step", ""), ""
        if after:
            with suppress(redis.RedisError):
                self.can_read(timeout=5)
            if reach(after):
                self.disconnect()
                raise redis.ConnectionError("the reply is lost")
        return read(self, *args, **kwargs)

    AbstractConnection.send_packed_command = send_packed_command
    AbstractConnection.read_response = read_response

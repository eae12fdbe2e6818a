"""The Celery tasks: the round that beat schedules, the shards of a shared round, and checks of some proxies.

During an upgrade, processes of two versions exchange these tasks. So the arguments ``gap``, ``asked`` and
``ticket`` keep their names, although other code calls them ``min_gap``, ``requested_token`` and ``token``.
"""

import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import UUID

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import shared_task
from celery.signals import (
    beat_init,
    task_failure,
    task_postrun,
    task_prerun,
    worker_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
)
from celery.states import FAILURE, SUCCESS

from proxyhealth.conf import conf
from proxyhealth.exceptions import HistoryUnavailable, RoundFailed, StoreError
from proxyhealth.history import announce, outages, pruning, records
from proxyhealth.notifications import heartbeats, sending, watchdog
from proxyhealth.rounds import broker, reporting, steps, worker
from proxyhealth.rounds.dispatch import flush, hand_over, request_delivery, request_task
from proxyhealth.rounds.recheck import run_pending_check, run_recheck
from proxyhealth.rounds.runner import run_round
from proxyhealth.rounds.sharing import finish_shared_round, run_shard
from proxyhealth.rounds.tick import Tick
from proxyhealth.snapshot import Proxy
from proxyhealth.storage import presence
from proxyhealth.storage.counters import count_task
from proxyhealth.storage.lease import RoundRequest, lease_seconds, take_token
from proxyhealth.task_names import TaskName
from proxyhealth.texts import without_passwords

logger = logging.getLogger(__name__)

_DAY = 24 * 3_600  # seconds


def _serializer(task: Any) -> str:
    """Return JSON if the workers accept it. With YAML, Celery cannot send the shards of a round."""
    options = task.app.conf
    is_json_accepted = {"json", "application/json"} & set(options.accept_content or ())
    return "json" if is_json_accepted else str(options.task_serializer)


def _soft_time_limit(task: Any) -> float:
    """Return the hard limit, which an annotation may lower: Celery refuses a higher soft limit."""
    return float(task.time_limit or _DAY)


# These options replace the defaults of the host.
_OPTIONS: dict[str, Any] = {
    # A Celery worker that holds an unacknowledged message exits when it loses its broker. The next round
    # repeats what a killed process lost.
    "acks_late": False,
    "reject_on_worker_lost": False,
    # A round of many proxies takes longer than most tasks. It has time limits of its own; these only end a
    # process that hangs.
    "time_limit": _DAY,
    "soft_time_limit": property(_soft_time_limit),
    "serializer": property(_serializer),
}


# Seconds. Receivers are code of the host, and may hang. The hard limit ends one that ignores the soft limit.
_SIGNALS_LIMIT = 30
_SIGNALS_SOFT_LIMIT = 15
_SIGNALS_TIME = 5  # for which a task begins new signals, so that other tasks have their turn

_PRUNING_TIME = 5  # likewise

_DELIVERY_TIME = 1.0  # for which the task waits for channels
_DELIVERY_PAUSE = 1.0  # at least until the next run of the task


def _soft_time_limit_of_signals(task: Any) -> float:
    return min(_SIGNALS_SOFT_LIMIT, _soft_time_limit(task))


@shared_task(**_OPTIONS, base=Tick, ignore_result=True, throws=(RoundFailed,))
def check_all(gap: float | None = None, asked: int | None = None) -> None:
    """Run a round of all active proxies.

    Beat's ticks have a ``gap`` in seconds. They are skipped if a round is running, or if the last tick came
    less than ``gap`` ago. Requests may have a token, ``asked``: a round that began after it fulfils them.
    During a round, requests cause one more round after it.
    """
    if gap is not None:
        with suppress(StoreError):  # the round itself says what fails
            presence.note_tick(2 * gap)
    request = RoundRequest(min_gap=gap, requested_token=asked, rerun_if_busy=gap is None)
    run_round(request, share=True)


@shared_task(**_OPTIONS, ignore_result=False, resultrepr_maxsize=80)
def check_shard(token: int, index: int, checked_at: str, proxies: list[dict[str, Any]]) -> dict[str, Any]:
    """Probe one shard of a shared round."""
    shard = [Proxy.from_json(data) for data in proxies]
    return run_shard(token, index, datetime.fromisoformat(checked_at), shard)


@shared_task(**_OPTIONS, ignore_result=True, throws=(RoundFailed,))
def finish_round(parts: list[Any], token: int) -> None:
    """Commit a shared round after its last shard."""
    finish_shared_round(token, parts)


@shared_task(**_OPTIONS, ignore_result=True, throws=(RoundFailed,))
def finish_broken_round(task_id: str, *, ticket: int) -> None:
    """Commit a shared round after a shard was killed. Celery passes the id of the chord."""
    finish_shared_round(ticket)


@shared_task(**_OPTIONS, ignore_result=True, throws=(RoundFailed,))
def check_proxies(ids: Sequence[str] = ()) -> None:
    """Check the proxies with these ids, and all pending ones."""
    run_pending_check(UUID(id) for id in ids)


@shared_task(**_OPTIONS, ignore_result=True, throws=(RoundFailed,))
def recheck() -> None:
    """Check the proxies again whose last result contradicts their status."""
    run_recheck()


@shared_task(**_OPTIONS, ignore_result=True, throws=(HistoryUnavailable, StoreError))
def record_history() -> None:
    """Record the changes that the outbox has. If this fails, the request after the next commit repeats it."""
    records.record_history()
    if announce.are_signals_due():
        request_task(TaskName.SEND_SIGNALS)
    # All changes are recorded before, so that many of them are one message.
    seconds = 0.0 if sending.may_remind() else sending.seconds_until_due()
    if seconds is not None:
        request_delivery(seconds)


@shared_task(**_OPTIONS, ignore_result=True, throws=(HistoryUnavailable,))
def deliver() -> None:
    """Send what is due to the channels. A channel that needs longer than a moment goes on in its thread."""
    seconds = sending.send_due(None if deliver.request.is_eager else _DELIVERY_TIME)
    if seconds is not None:
        request_delivery(max(seconds, _DELIVERY_PAUSE))


@shared_task(**_OPTIONS, ignore_result=True, throws=(RoundFailed,))
def first_round(asked: int) -> None:
    """Run a round for a worker that has started, unless one is recent or began after the token ``asked``.

    Workers that start together thus cause one round. If a worker was killed during a round, and this one
    replaces it, the lease of that round has to expire first.
    """
    request = RoundRequest(requested_token=asked, max_age=conf.INTERVAL / 2)
    run_round(request, wait=lease_seconds() + 1, share=True)


@shared_task(
    **{
        **_OPTIONS,
        "time_limit": _SIGNALS_LIMIT,
        "soft_time_limit": property(_soft_time_limit_of_signals),
    },
    ignore_result=True,
    throws=(HistoryUnavailable,),
)
def send_signals() -> None:
    """Send the signals that are due. The task after the next round sends what is left, at the latest."""
    task = send_signals
    if task.request.is_eager:
        announce.send_signals()  # without time limits, nothing is left
        return
    soft, hard = float(task.soft_time_limit or 0), float(task.time_limit or 0)
    if not announce.send_signals(_SIGNALS_TIME, patience=soft + (hard - soft) / 3):
        request_task(TaskName.SEND_SIGNALS)


@shared_task(**_OPTIONS, ignore_result=True, throws=(HistoryUnavailable,))
def prune_history() -> None:
    """Delete the rows of the history that are older than ``HISTORY_DAYS``, and repair its outages."""
    outages.repair()
    is_eager = prune_history.request.is_eager
    if not pruning.prune(None if is_eager else _PRUNING_TIME).complete:
        request_task(TaskName.PRUNE_HISTORY)  # behind the tasks that wait


@worker_init.connect
def _refuse_green_threads(sender: Any, **kwargs: Any) -> None:
    worker.refuse_green_threads(sender)


@worker_ready.connect
def _request_first_round(sender: Any, **kwargs: Any) -> None:
    """Request a round when a worker starts or reconnects to its broker, instead of waiting for beat."""
    app = broker.celery_app()
    if sender and sender.app != app:
        return  # the worker of another app, perhaps on a host that cannot reach the proxies
    if sender:
        reporting.workers.value.start(sender)
    try:
        first_round.apply_async((take_token(),))
        worker.report_unconsumed_queues(app)
    except Exception as error:
        text = without_passwords(error)
        logger.warning("the first round could not be requested, the next tick runs one: %s", text)


@worker_shutdown.connect
def _report_end(**kwargs: Any) -> None:
    reporting.workers.value.stop()


@beat_init.connect
def _report_beat(**kwargs: Any) -> None:
    reporting.report_beat()


# Runs are counted in the cache, because Prometheus does not scrape workers.

# The tasks whose round fails if their process is killed.
_ROUNDS = frozenset({TaskName.CHECK_ALL, TaskName.FIRST_ROUND, TaskName.FINISH_ROUND})

_start_times: dict[str, float] = {}  # by task id
_counted_ids: deque[str] = deque(maxlen=1_000)


@task_prerun.connect
def _note_start(task_id: str, task: Any, **kwargs: Any) -> None:
    if _is_ours(task):
        _start_times[task_id] = time.monotonic()
        if not task.request.is_eager:  # that may be a management command
            watchdog.start()


@task_postrun.connect
def _count_run(task_id: str, task: Any, state: str | None, **kwargs: Any) -> None:
    start = _start_times.pop(task_id, None)
    if start is not None and state in (SUCCESS, FAILURE):
        _count(task_id, task, state.lower(), time.monotonic() - start)


@task_postrun.connect
def _send_requests(task: Any, **kwargs: Any) -> None:
    """Send the requests of a run before its process may end."""
    if _is_ours(task):
        flush(timeout=1)


@worker_process_shutdown.connect
def _end(**kwargs: Any) -> None:
    """Send what a process of a pool still has to send, for example with ``--max-tasks-per-child``."""
    hand_over(timeout=1)  # such a process calls no function of atexit
    heartbeats.flush()


@task_failure.connect
def _count_lost(task_id: str, sender: Any, exception: Any, **kwargs: Any) -> None:
    """Count a run that could not start or, in the parent process, a run in a killed process."""
    # Celery sends this twice if a run exceeds its time limit, and once more if a result cannot be stored.
    if _is_ours(sender) and task_id not in _start_times and task_id not in _counted_ids:
        _count(task_id, sender, "failure", 0.0)
        if sender.name in _ROUNDS and isinstance(exception, TimeLimitExceeded | WorkerLostError):
            steps.record_failure(RoundFailed(f"the process of the round was killed: {exception}"))


def _is_ours(task: Any) -> bool:
    return task.name in frozenset(TaskName)


def _count(task_id: str, task: Any, outcome: str, seconds: float) -> None:
    _counted_ids.append(task_id)
    with suppress(StoreError):  # a run must not fail because it cannot be counted
        count_task(TaskName(task.name).short, outcome, seconds)

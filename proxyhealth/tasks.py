"""The Celery tasks: the round that beat calls, its shards, and the check of a few proxies."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import UUID

from celery import shared_task
from celery.signals import task_failure, task_postrun, task_prerun, worker_ready
from celery.states import FAILURE, SUCCESS

from proxyhealth.conf import conf
from proxyhealth.exceptions import RoundFailed, StoreError
from proxyhealth.rounds.recheck import run_pending_check
from proxyhealth.rounds.runner import run_finish, run_round, run_shard
from proxyhealth.snapshot import Proxy
from proxyhealth.storage.counters import count_task
from proxyhealth.storage.lease import RoundRequest, lease_seconds, take_token

logger = logging.getLogger(__name__)

# None of them is acknowledged late: a worker of Celery ends if its broker goes away while it holds a
# message that is not acknowledged. What a killed process had is made good by the next round, or at the
# end of its own. What the host's settings say of its own tasks does not count here.
_EARLY: dict[str, Any] = {"acks_late": False, "reject_on_worker_lost": False}


@shared_task(**_EARLY, ignore_result=True, throws=(RoundFailed,))
def check_all(gap: float | None = None, asked: int | None = None) -> None:
    """The round: all active proxies.

    Beat's ticks have a ``gap``, in seconds: they are skipped if a round is running, or if the last tick was
    nearer than that. Requests may have a token, ``asked``: a round that began after it fulfils them. One
    that finds a round running has it followed by another one.
    """
    request = RoundRequest(min_gap=gap, requested_token=asked, rerun_if_busy=gap is None)
    run_round(request, share=True)


@shared_task(**_EARLY, ignore_result=False, resultrepr_maxsize=80)
def check_shard(token: int, index: int, checked_at: str, proxies: list[dict[str, Any]]) -> dict[str, Any]:
    """A part of a round."""
    targets = [Proxy.from_json(data) for data in proxies]
    return run_shard(token, index, datetime.fromisoformat(checked_at), targets)


@shared_task(**_EARLY, ignore_result=True, throws=(RoundFailed,))
def finish_round(parts: list[Any], token: int) -> None:
    """The end of a round of shards: one commit."""
    run_finish(token, parts)


@shared_task(**_EARLY, ignore_result=True, throws=(RoundFailed,))
def finish_broken_round(task_id: str, *, ticket: int) -> None:
    """The end of a round of which a shard was lost with its process. Celery gives the id of the chord."""
    run_finish(ticket)


@shared_task(**_EARLY, ignore_result=True, throws=(RoundFailed,))
def check_proxies(ids: Sequence[str] = ()) -> None:
    """Probe the proxies with these ids now, and all others that are waiting for it."""
    run_pending_check(UUID(id) for id in ids)


@shared_task(**_EARLY, ignore_result=True, throws=(RoundFailed,))
def first_round(asked: int) -> None:
    """The round that a worker begins with, unless one has begun since it started (``asked``, a token), or
    not long before: many workers that are started one after the other are no reason for many rounds.

    The worker may have taken the place of one that was killed in a round, so it waits for that one's lease.
    """
    request = RoundRequest(requested_token=asked, max_age=conf.INTERVAL / 2)
    run_round(request, wait=lease_seconds() + 1, share=True)


@worker_ready.connect
def _request_first_round(**kwargs: Any) -> None:
    """A worker that has just started, or found its broker again, does not wait for beat."""
    try:
        first_round.apply_async((take_token(),))
    except Exception as error:
        logger.warning("the first round could not be asked for, the next tick brings one: %s", error)


# Runs are counted in the cache, because nobody scrapes a worker.

_begun: dict[str, float] = {}  # by the id of the task
_counted: deque[str] = deque(maxlen=1_000)


@task_prerun.connect
def _note_begin(task_id: str, task: Any, **kwargs: Any) -> None:
    if _is_ours(task):
        _begun[task_id] = time.monotonic()


@task_postrun.connect
def _count_run(task_id: str, task: Any, state: str | None, **kwargs: Any) -> None:
    begin = _begun.pop(task_id, None)
    if begin is not None and state in (SUCCESS, FAILURE):
        _counted.append(task_id)
        _count(task, state.lower(), time.monotonic() - begin)


@task_failure.connect
def _count_lost(task_id: str, sender: Any, **kwargs: Any) -> None:
    """A run that ended with its process, of which the process above tells, or that could not begin."""
    # Celery tells twice of a run that is killed at its time limit, and after its end of one whose result
    # could not be stored.
    if _is_ours(sender) and task_id not in _begun and task_id not in _counted:
        _counted.append(task_id)
        _count(sender, "failure", 0.0)


def _is_ours(task: Any) -> bool:
    return str(task.name).startswith(f"{__name__}.")


def _count(task: Any, outcome: str, seconds: float) -> None:
    with suppress(StoreError):  # a run that was not counted was a run all the same
        count_task(task.name.removeprefix(f"{__name__}."), outcome, seconds)

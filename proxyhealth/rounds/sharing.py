"""A round that all workers share: a Celery chord with one task per shard, and a task that commits."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from celery import chord, current_app

from proxyhealth.conf import conf
from proxyhealth.exceptions import ProberOffline, RoundFailed, StoreError
from proxyhealth.probing import pool
from proxyhealth.rounds import steps
from proxyhealth.rounds.shards import Plan
from proxyhealth.snapshot import Proxy
from proxyhealth.storage.document import Round
from proxyhealth.storage.lease import renewing_lease, take_token
from proxyhealth.storage.plan import drop_plan, load_plan, save_plan
from proxyhealth.task_names import TaskName

logger = logging.getLogger(__name__)


def can_share(count: int) -> bool:
    """Return True if a round of ``count`` proxies is large enough to share, and Celery can run chords."""
    if count <= conf.SHARD_SIZE or current_app.conf.task_always_eager:
        return False
    try:
        current_app.backend.ensure_chords_allowed()
    except NotImplementedError:
        logger.warning(
            "a round of %d proxies is run by one process: Celery has no result backend for chords", count
        )
        return False
    return True


def share_round(plan: Plan) -> None:
    """Queue the shards of a round, and the task that commits it. Raise ``RoundFailed`` without the lease."""
    if not save_plan(plan.token, plan.dump()):
        raise RoundFailed("another round has begun while this one read its proxies")
    tasks, checked_at = current_app.tasks, plan.checked_at.isoformat()
    shards = [
        tasks[TaskName.CHECK_SHARD].signature(
            (plan.token, index, checked_at, [proxy.to_json() for proxy in shard]), task_id=task_id
        )
        for index, (shard, task_id) in enumerate(zip(plan.shards, plan.tasks, strict=True))
    ]
    finish = tasks[TaskName.FINISH_ROUND].signature((plan.token,))
    finish.link_error(tasks[TaskName.FINISH_BROKEN_ROUND].signature(kwargs={"ticket": plan.token}))
    try:
        chord(shards)(finish)
    except Exception:
        drop_plan(plan.token)
        raise
    logger.info("round shared token=%d shards=%d", plan.token, len(shards))


def run_shard(token: int, index: int, checked_at: datetime, proxies: Sequence[Proxy]) -> dict[str, Any]:
    """Probe a shard of the round with this token. Return a part, as :meth:`Plan.merge` expects it.

    Never raise: a failed task would break the chord.
    """
    try:
        with renewing_lease(token, steps.lease_limit(len(proxies))) as lease:
            if not lease:
                return {"shard": index, "lost": "the round is over"}
            statuses = pool.probe_all(proxies, checked_at, stop=lease.lost)
    except Exception as error:
        failure = steps.log_failure(error, "shard")
        return {"shard": index, "lost": str(failure), "offline": isinstance(error, ProberOffline)}
    logger.info("shard end token=%d shard=%d %s", token, index, steps.count_statuses(statuses))
    return {"shard": index, "found": [status.judgement() for status in statuses]}


def finish_shared_round(token: int, parts: Iterable[Any] | None = None) -> None:
    """Commit the round with this token from the parts of its shards. Raise ``RoundFailed`` if that fails.

    Without ``parts``, use those in the result backend.
    """
    with steps.recording_failures(token), renewing_lease(token, steps.lease_limit(0)) as lease:
        plan = _load_plan() if lease else None
        if plan and plan.token == token:
            _commit_plan(plan, _stored_parts(plan) if parts is None else parts)
        else:
            logger.info("round over before its last shard token=%d", token)
    steps.close_round(token)


def commit_left_over(lease: int) -> None:
    """Commit the finished shards of an earlier round that lost its lease, because a worker died.

    ``lease`` is the token of the round that holds the lease now. If the commit fails, that round continues.
    """
    try:
        if plan := _load_plan():
            if plan.token >= lease:
                raise ValueError(f"the stored plan has the token {plan.token} of a later round")
            _commit_plan(plan, _stored_parts(plan), lease)
    except Exception as error:
        steps.record_failure(error, lease)
    with suppress(StoreError):
        drop_plan(lease)  # even an invalid one, which no later round could commit


def _load_plan() -> Plan | None:
    text = load_plan()
    return Plan.load(text) if text else None


def _commit_plan(plan: Plan, parts: Iterable[Any], lease: int | None = None) -> None:
    result = plan.merge(parts)
    if result.offline:
        drop_plan(plan.token)
        _forget_parts(plan)
        raise ProberOffline(result.error)
    duration = max(0.0, (take_token() - plan.token) / 1e6)  # tokens are microseconds
    full_round = Round(plan.checked_at, duration, result.missing, result.error)
    steps.commit_round(result.statuses, plan.token, full_round, lease)
    if result.missing:
        logger.error("round incomplete token=%d error=%s", plan.token, result.error)
    _forget_parts(plan)


def _stored_parts(plan: Plan) -> list[Any]:
    results = [current_app.AsyncResult(id) for id in plan.tasks]
    return [result.result for result in results if result.successful()]


def _forget_parts(plan: Plan) -> None:
    for id in plan.tasks:
        with suppress(Exception):  # the results expire anyway
            current_app.AsyncResult(id).forget()

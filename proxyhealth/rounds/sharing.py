"""A round that all workers share: a Celery chord with one task per shard, and a task that commits."""

import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from celery import chord, current_app, current_task
from celery.utils.log import current_process_index  # type: ignore[attr-defined]  # not in its stubs

from proxyhealth.conf import conf
from proxyhealth.exceptions import ProberOffline, RoundFailed, StoreError
from proxyhealth.probing import pool
from proxyhealth.rounds import steps
from proxyhealth.rounds.shards import Part, Plan, task_ids
from proxyhealth.snapshot import Proxy, ProxyStatus
from proxyhealth.storage.lease import renewing_lease, take_token
from proxyhealth.storage.merge import Round
from proxyhealth.storage.plan import (
    claim_shard,
    drop_plan,
    load_part,
    load_parts,
    load_plan,
    save_plan,
    store_part,
)
from proxyhealth.storage.traces import add_traces
from proxyhealth.task_names import TaskName

logger = logging.getLogger(__name__)

_PART_POLL = 0.05  # seconds


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
    messages = plan.messages()
    if not save_plan(plan.token, plan.dump(), [json.dumps(message) for message in messages]):
        raise RoundFailed("another round has begun while this one read its proxies")
    tasks, checked_at = current_app.tasks, plan.checked_at.isoformat()
    shards = [
        tasks[TaskName.CHECK_SHARD].signature((plan.token, index, checked_at, message), task_id=task_id)
        for index, (message, task_id) in enumerate(zip(messages, plan.tasks, strict=True))
    ]
    finish = tasks[TaskName.FINISH_ROUND].signature((plan.token,))
    finish.link_error(tasks[TaskName.FINISH_BROKEN_ROUND].signature(kwargs={"ticket": plan.token}))
    try:
        chord(shards)(finish)
    except Exception:
        drop_plan(plan.token)
        raise
    logger.info("round shared token=%d shards=%d", plan.token, len(shards))


def run_shard(token: int, index: int, checked_at: datetime, proxies: Sequence[Proxy]) -> Part:
    """Return the part of a shard of the round with this token, as :meth:`Plan.merge` expects it.

    Probe the shard, and more shards while the probes only wait. If another process has taken this shard,
    probe others, and wait for the part of that process. After the last part of all, commit the round: the
    chord does so only after the tasks that still wait in the queue.

    Never raise: a failed task would break the chord.
    """
    run = _ShardRun(token, index, checked_at, proxies)
    try:
        run.probe()
        part = run.part or _wait_for_part(token, index)
    except Exception as error:
        part = run.give_up(error)
    if run.stored_last:
        with suppress(RoundFailed):  # it is recorded
            finish_shared_round(token, forget=False)
    return part


class _ShardRun:
    """The shards that this process probes for one task."""

    def __init__(self, token: int, index: int, checked_at: datetime, proxies: Sequence[Proxy]) -> None:
        self.token = token
        self.index = index
        self.checked_at = checked_at
        self.proxies = proxies
        self.part: Part = {}  # of the shard of the task
        self.stored_last = False  # this process stored the last part of the round
        self._slot = _slot()
        self._claimed: dict[int, int] = {}  # the number of proxies of each shard without a part

    def probe(self) -> None:
        """Claim shards, probe them, and store their parts."""
        first = self._claim()
        if first is None:
            return
        with renewing_lease(self.token, steps.lease_limit(len(first[1]))) as lease:

            def claim() -> pool.Shard | None:
                try:
                    shard = self._claim()
                except StoreError:
                    return None  # the tasks of the other shards probe them
                lease.extend(steps.lease_limit(sum(self._claimed.values())))
                return shard

            if lease:
                for index, statuses in pool.probe_shards(first, claim, self.checked_at, lease.lost):
                    self._finish(index, statuses)

    def _claim(self) -> pool.Shard | None:
        claimed = claim_shard(self.token, self.index, self._slot, anew=not self._claimed)
        if claimed is None:
            return None
        index, text = claimed
        proxies = [Proxy.from_json(data) for data in json.loads(text)] if text else self.proxies
        self._claimed[index] = len(proxies)
        return index, proxies

    def _finish(self, index: int, statuses: Sequence[ProxyStatus]) -> None:
        try:
            pool.require_online(statuses)
        except ProberOffline as error:
            self._store(index, _lost(index, error))
            return
        with suppress(StoreError):  # parts have no traces: they would be large
            add_traces(statuses, self.token)
        counts = steps.count_statuses(statuses)
        logger.info(f"shard end token=%d shard=%d {steps.COUNTS}", self.token, index, *counts)
        self._store(index, {"shard": index, "found": [status.judgement() for status in statuses]})

    def _store(self, index: int, part: Part) -> None:
        del self._claimed[index]
        if index == self.index:
            self.part = part
        try:
            self.stored_last |= store_part(self.token, index, json.dumps(part), found="found" in part)
        except StoreError as error:
            logger.warning("shard not stored token=%d shard=%d error=%s", self.token, index, error)

    def give_up(self, error: Exception) -> Part:
        """Store the error as the part of each shard without one, and return that of the task."""
        part = _lost(self.index, error)
        for index in list(self._claimed):
            self._store(index, {**part, "shard": index})
        return self.part or part


def _slot() -> str:
    """Return the name of this process's slot in its worker. A process that replaces it has the same name."""
    place = current_process_index()
    worker = current_task.request.hostname if current_task else ""
    if place is None:
        return f"{worker}/{os.getpid()}/{threading.get_native_id()}"
    return f"{worker}/{os.getppid()}/{place}"  # of two workers on a host, both may have the default name


def _lost(index: int, error: Exception) -> Part:
    failure = steps.log_failure(error, "shard")
    return {"shard": index, "lost": str(failure), "offline": isinstance(error, ProberOffline)}


def _wait_for_part(token: int, index: int) -> Part:
    """Return the part of a shard that another process has taken, as soon as it is stored."""
    while (text := load_part(token, index)) == "":
        time.sleep(_PART_POLL)  # without renewing the lease: it expires if that process was killed
    if text is None:
        return {"shard": index, "lost": "the round is over"}
    part: Part = json.loads(text)
    return part


def finish_shared_round(token: int, parts: Sequence[Any] = (), *, forget: bool = True) -> None:
    """Commit the round with this token from the parts of its shards. Raise ``RoundFailed`` if that fails.

    For shards without a result in ``parts``, use the stored parts. Do nothing if the round is over.

    With ``forget``, delete the results of the tasks. A chord that has not ended still needs them: most
    backends poll until every task has a result, and would do so forever.
    """
    with steps.recording_failures(token), renewing_lease(token, steps.lease_limit(0)) as lease:
        if not lease:
            _forget_results(task_ids(token, len(parts)))  # of the tasks that ended after the commit
            return
        plan = _load_plan()
        if plan and plan.token == token:
            _commit_plan(plan, _complete_parts(plan, parts), forget=forget)
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


def _commit_plan(plan: Plan, parts: Iterable[Any], lease: int | None = None, *, forget: bool = True) -> None:
    result = plan.merge(parts)
    if result.offline:
        drop_plan(plan.token)
        _forget_results(plan.tasks)
        raise ProberOffline(result.error)
    duration = max(0.0, (take_token() - plan.token) / 1e6)  # tokens are microseconds
    full_round = Round(plan.checked_at, duration, result.missing, result.error)
    steps.commit_round(result.statuses, plan.token, full_round, lease)
    if result.missing:
        logger.error("round incomplete token=%d error=%s", plan.token, result.error)
    if forget:
        _forget_results(plan.tasks)


def _complete_parts(plan: Plan, parts: Sequence[Any]) -> Sequence[Any]:
    found = sum("found" in part for part in parts if isinstance(part, dict))
    return parts if found == len(plan.shards) else [*parts, *_stored_parts(plan)]


def _stored_parts(plan: Plan) -> list[Any]:
    results = [current_app.AsyncResult(id) for id in plan.tasks]
    returned = [result.result for result in results if result.successful()]
    return returned + [json.loads(part) for part in load_parts(len(plan.shards))]


def _forget_results(ids: Iterable[str]) -> None:
    for id in ids:
        with suppress(Exception):  # the results expire anyway
            current_app.AsyncResult(id).forget()

"""A round, a shard of one, the check of a few: each from its token to its commit."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from celery import chord, current_app
from django.db import Error as DatabaseError
from django.db import connections, router

from proxyhealth.conf import conf
from proxyhealth.exceptions import ProberOffline, RoundFailed, StoreError, Superseded
from proxyhealth.models import WorkspaceProxy
from proxyhealth.probing import pool
from proxyhealth.rounds.dispatch import request_check
from proxyhealth.rounds.shards import Plan, split
from proxyhealth.snapshot import Proxy, ProxyStatus
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.counters import count_round
from proxyhealth.storage.document import Change, Round
from proxyhealth.storage.lease import (
    ANY_ROUND,
    Lease,
    RoundOutcome,
    RoundRequest,
    begin_round,
    end_round,
    renewing_lease,
    take_token,
)
from proxyhealth.storage.plan import drop_plan, load_plan, save_plan

logger = logging.getLogger(__name__)

_SLUG = re.compile(r"[\w-]+")

# How long a round that is done tries to get its result into a cache that is away.
_COMMIT_TIMEOUT = 5.0

# How long a database may take to give the proxies, before another process may try.
_READ_TIMEOUT = 30.0


# The round


def run_round(request: RoundRequest = ANY_ROUND, *, wait: float = 0, share: bool = False) -> RoundOutcome:
    """Run one full round, from reading the proxies to the commit, unless the request says otherwise.

    Wait up to ``wait`` seconds for a round that is running. With ``share``, all workers run a round of more
    than ``SHARD_SIZE`` proxies. Raise ``RoundFailed``; the snapshot is then as it was.
    """
    try:
        start = begin_round(request, wait=wait)
    except Exception as error:
        raise _failed(error) from error
    if start.outcome is not RoundOutcome.BEGUN:
        logger.info("round skipped: %s", start.outcome)
        if request.min_gap is not None:
            _count("skipped")
        return start.outcome
    try:
        with renewing_lease(start.token, _READ_TIMEOUT) as lease:
            if start.left_over:
                _close_left_over(start.token)
            shared = _run_round(start.token, share, lease)
    except Exception as error:
        raise _end_failed(start.token, error) from error
    if shared:
        return RoundOutcome.SHARED
    _end(start.token)
    return RoundOutcome.SUCCESS


def run_now(wait: float) -> RoundOutcome:
    """Run a full round that begins after this call, unless another process has had one by then."""
    try:
        request = RoundRequest(requested_token=take_token())
    except Exception as error:
        raise _failed(error) from error
    return run_round(request, wait=wait)


def read_proxies(ids: Iterable[UUID] | None = None) -> list[Proxy]:
    """The active proxies, or those of them with these ids, by name; raises ``RoundFailed``."""
    # A replica may not know yet what has just been saved.
    alias = router.db_for_write(WorkspaceProxy)
    rows = WorkspaceProxy.objects.using(alias).active()
    if ids is not None:
        rows = rows.filter(pk__in=list(ids))
    try:
        return rows.as_proxies()
    except DatabaseError as error:
        # A long-lived process must not keep a connection that a restart of the server has cut.
        connections[alias].close_if_unusable_or_obsolete()
        raise RoundFailed(f"the proxies cannot be read from the database: {error}") from error


def _patience(count: int) -> float:
    """For how many seconds a part of a round may hold its lease: what hangs is not to keep others away."""
    return pool.time_limit(count) + _COMMIT_TIMEOUT + _READ_TIMEOUT


def _run_round(token: int, share: bool, lease: Lease) -> bool:
    checked_at = datetime.now(UTC)
    begin = time.monotonic()
    proxies = read_proxies()
    lease.extend(_patience(len(proxies)))
    known = reader.read().statuses
    logger.info("round start token=%d proxies=%d", token, len(proxies))
    if share and len(proxies) > conf.SHARD_SIZE and _can_share(len(proxies)):
        _share(Plan.of(token, checked_at, split(proxies, known)))
        return True
    statuses = pool.probe_all(proxies, checked_at, known, lease.lost)
    _commit_round(statuses, token, Round(checked_at, time.monotonic() - begin))
    return False


def _commit_round(statuses: Sequence[ProxyStatus], token: int, done: Round, lease: int | None = None) -> None:
    end = time.monotonic() + _COMMIT_TIMEOUT
    while True:
        try:
            result = commit(statuses, token, full_round=done, lease=lease)
            break
        except Superseded:
            raise
        except StoreError as error:
            # A restart of the cache is no reason to lose a round.
            if time.monotonic() > end:
                raise
            logger.warning("round waits for the cache token=%d error=%s", token, error)
            time.sleep(0.25)
    log_changes(result.changes)
    logger.info("round end token=%d duration=%.3f %s", token, done.duration, count_statuses(statuses))


def _end(token: int) -> None:
    """Give the lease back, and see to it that who asked for a round while this one ran gets another."""
    try:
        asked = end_round(token)
    except StoreError as error:
        logger.warning("the lease of the round could not be given back: %s", error)  # it runs out
        return
    if asked:
        request_check()


def _failed(error: Exception, token: int = 0) -> RoundFailed:
    failure = failure_of(error, "round")
    _count("offline" if isinstance(failure, ProberOffline) else "failure", str(failure), token)
    return failure


def _end_failed(token: int, error: Exception) -> RoundFailed:
    failure = _failed(error, token)
    _end(token)
    return failure


def failure_of(error: Exception, what: str) -> RoundFailed:
    """``error`` as the failure of a round, logged; what nobody expected with its traceback."""
    if isinstance(error, RoundFailed):
        failure = error
    elif isinstance(error, Superseded):
        failure = RoundFailed(str(error))
    elif isinstance(error, StoreError):
        failure = RoundFailed(f"the cache cannot be used: {error}")
    else:
        logger.exception("%s failed unexpectedly", what)
        return RoundFailed(f"an error of proxyhealth, or of how it is set up: {error!r}")
    logger.error("%s failed: %s", what, failure)
    return failure


def _count(outcome: str, error: str = "", token: int = 0) -> None:
    with suppress(StoreError):  # a round that was not counted was a round all the same
        count_round(outcome, error, token)


# The round as a chord of shards


def _can_share(count: int) -> bool:
    options = current_app.conf
    if options.task_always_eager:
        return False
    try:
        current_app.backend.ensure_chords_allowed()
    except NotImplementedError:
        logger.warning(
            "a round of %d proxies is run by one process: Celery has no result backend for chords", count
        )
        return False
    return True


def _share(plan: Plan) -> None:
    """Give the shards of a round to the workers; who ends the last one has the round committed."""
    if not save_plan(plan.token, plan.dump()):
        raise RoundFailed("another round has begun while this one read its proxies")
    checked_at = plan.checked_at.isoformat()
    shards = [
        current_app.signature(
            "proxyhealth.tasks.check_shard",
            (plan.token, index, checked_at, [proxy.to_json() for proxy in shard]),
            task_id=plan.tasks[index],
        )
        for index, shard in enumerate(plan.shards)
    ]
    end = current_app.signature("proxyhealth.tasks.finish_round", (plan.token,))
    end.link_error(
        current_app.signature("proxyhealth.tasks.finish_broken_round", kwargs={"ticket": plan.token})
    )
    try:
        chord(shards)(end)
    except Exception:
        drop_plan(plan.token)
        raise
    logger.info("round shared token=%d shards=%d", plan.token, len(shards))


def run_shard(token: int, index: int, checked_at: datetime, proxies: Sequence[Proxy]) -> dict[str, Any]:
    """Probe a shard of the round with this token; returns a part, as :meth:`Plan.outcome` has them.

    Raises nothing: the results of the other shards are not to be lost for this one.
    """
    try:
        with renewing_lease(token, _patience(len(proxies))) as lease:
            if not lease:
                return {"shard": index, "lost": "the round is over"}
            statuses = pool.probe_all(proxies, checked_at, stop=lease.lost)
    except Exception as error:
        why = str(failure_of(error, "shard"))
        return {"shard": index, "lost": why, "offline": isinstance(error, ProberOffline)}
    logger.info("shard end token=%d shard=%d %s", token, index, count_statuses(statuses))
    return {"shard": index, "found": [status.judgement() for status in statuses]}


def run_finish(token: int, parts: Iterable[Any] | None = None) -> None:
    """Commit the round with this token, that its shards have ended.

    Without ``parts``, the results of the shards, it takes those that there are. Raises ``RoundFailed``.
    """
    try:
        with renewing_lease(token, _patience(0)) as lease:
            plan = _load_plan() if lease else None
            if plan and plan.token == token:
                _commit_plan(plan, _results(plan) if parts is None else parts)
            else:
                logger.info("round over before its last shard token=%d", token)
    except Exception as error:
        raise _end_failed(token, error) from error
    _end(token)


def _load_plan() -> Plan | None:
    text = load_plan()
    return Plan.load(text) if text else None


def _commit_plan(plan: Plan, parts: Iterable[Any], lease: int | None = None) -> None:
    """Commit what the shards found, all of it in one step."""
    outcome = plan.outcome(parts)
    if outcome.offline:
        drop_plan(plan.token)
        _forget_results(plan)
        raise ProberOffline(outcome.error)
    duration = max(0.0, (take_token() - plan.token) / 1e6)
    done = Round(plan.checked_at, duration, outcome.missing, outcome.error)
    _commit_round(outcome.statuses, plan.token, done, lease)
    if outcome.missing:
        logger.error("round incomplete token=%d error=%s", plan.token, outcome.error)
    _forget_results(plan)


def _close_left_over(lease: int) -> None:
    """Commit what there is of a round whose lease ran out, because a worker died with a shard of it."""
    try:
        plan = _load_plan()
        if plan is None:
            return
    except ValueError as error:
        _failed(error)  # the plan of this round takes its place
        return
    try:
        _commit_plan(plan, _results(plan), lease)
    except Exception as error:
        _failed(error, lease)
        with suppress(StoreError):
            drop_plan(plan.token)


def _forget_results(plan: Plan) -> None:
    for id in plan.tasks:
        with suppress(Exception):  # it expires, too
            current_app.AsyncResult(id).forget()


def _results(plan: Plan) -> list[Any]:
    results = [current_app.AsyncResult(id) for id in plan.tasks]
    return [result.result for result in results if result.successful()]


# The check of a few


def log_changes(changes: Sequence[Change]) -> None:
    for change in changes:
        after = change.after
        logger.log(
            logging.INFO if after is None or after.healthy else logging.WARNING,
            "status change proxy=%s name=%s from=%s to=%s reason=%s error=%s",
            change.proxy,
            # Quoted: what a proxy says, or is called, may look like a log line of ours.
            change.name if _SLUG.fullmatch(change.name) else json.dumps(change.name),
            change.before or "none",
            after.status if after else "none",
            (after and after.reason) or "none",
            json.dumps(after.report.errors[0] if after and after.report.errors else ""),
        )


def count_statuses(statuses: Sequence[ProxyStatus]) -> str:
    found = [status.status for status in statuses]
    counts = " ".join(f"{s}={found.count(s)}" for s in Status if s is not Status.UNKNOWN)
    return f"proxies={len(found)} {counts}"

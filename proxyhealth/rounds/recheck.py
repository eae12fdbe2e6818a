"""A round, a shard of one, the check of a few: each from its ticket to its commit."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from celery import chord, current_app

from proxyhealth.conf import conf
from proxyhealth.probing import pool as rounds
from proxyhealth.probing.pool import ProberOffline, RoundFailed
from proxyhealth.report import Proxy, ProxyStatus, Status
from proxyhealth.rounds.dispatch import request_check
from proxyhealth.rounds.shards import Plan
from proxyhealth.storage import lease as coordination
from proxyhealth.storage import reader as store
from proxyhealth.storage.client import StoreError
from proxyhealth.storage.document import Change, Round

logger = logging.getLogger(__name__)

_SLUG = re.compile(r"[\w-]+")

# How long a round that is done tries to get its result into a cache that is away.
_COMMIT_PATIENCE = 5.0

# How long a database may take to give the proxies, before another process may try.
_READ_PATIENCE = 30.0

# When no more answers come for so many seconds, a check commits those that it has.
_LULL = 0.05


# The round


def run_round(
    *,
    gap: float | None = None,
    asked: int | None = None,
    follow: bool = False,
    wait: float = 0,
    fresh: float = 0,
    share: bool = False,
) -> str:
    """One full round, from reading the proxies to the commit.

    Returns ``success``, or why none was begun, as :func:`coordination.begin_round` says, which has the
    arguments. With ``share``, a round of more than ``SHARD_SIZE`` proxies is given to all workers, and the
    answer is ``shared``. Raises ``RoundFailed``; then the snapshot is as it was.
    """
    try:
        begun = coordination.begin_round(gap=gap, asked=asked, follow=follow, fresh=fresh, wait=wait)
    except Exception as error:
        raise _failed(error) from error
    if not begun.ticket:
        logger.info("round skipped: %s", begun.why)
        if gap is not None:
            _count("skipped")
        return begun.why
    try:
        with coordination.kept(begun.ticket, _READ_PATIENCE) as lease:
            if begun.left_over:
                _close_left_over(begun.ticket)
            shared = _run_round(begun.ticket, share, lease)
    except Exception as error:
        raise _end_failed(begun.ticket, error) from error
    if shared:
        return "shared"
    _end(begun.ticket)
    return "success"


def run_now(wait: float) -> str:
    """A full round that begins after this call, in this process if nobody else has had one by then.

    Waits up to ``wait`` seconds for one that is under way. Otherwise as :func:`run_round`.
    """
    try:
        asked = coordination.take_ticket()
    except Exception as error:
        raise _failed(error) from error
    return run_round(asked=asked, wait=wait)


def _patience(count: int) -> float:
    """For how many seconds a part of a round may hold its lease: what hangs is not to keep others away."""
    return rounds.time_limit(count) + _COMMIT_PATIENCE + _READ_PATIENCE


def _run_round(ticket: int, share: bool, lease: coordination.Lease) -> bool:
    checked_at = datetime.now(UTC)
    begin = time.monotonic()
    proxies = rounds.read_proxies()
    lease.allow(_patience(len(proxies)))
    known = store.read().statuses
    logger.info("round start ticket=%d proxies=%d", ticket, len(proxies))
    if share and len(proxies) > conf.SHARD_SIZE and _can_share(len(proxies)):
        _share(Plan.of(ticket, checked_at, rounds.split(proxies, known)))
        return True
    statuses = rounds.probe_all(proxies, checked_at, known, lease.lost)
    _commit_round(statuses, ticket, Round(checked_at, time.monotonic() - begin))
    return False


def _commit_round(
    statuses: Sequence[ProxyStatus], ticket: int, done: Round, lease: int | None = None
) -> None:
    end = time.monotonic() + _COMMIT_PATIENCE
    while True:
        try:
            commit = store.commit(statuses, ticket, full_round=done, lease=lease)
            break
        except store.Superseded:
            raise
        except StoreError as error:
            # A restart of the cache is no reason to lose a round.
            if time.monotonic() > end:
                raise
            logger.warning("round waits for the cache ticket=%d error=%s", ticket, error)
            time.sleep(0.25)
    _log_changes(commit.changes)
    logger.info("round end ticket=%d duration=%.3f %s", ticket, done.duration, _counts(statuses))


def _end(ticket: int) -> None:
    """Give the lease back, and see to it that who asked for a round while this one ran gets another."""
    try:
        asked = coordination.end_round(ticket)
    except StoreError as error:
        logger.warning("the lease of the round could not be given back: %s", error)  # it runs out
        return
    if asked:
        request_check()


def _failed(error: Exception, ticket: int = 0) -> RoundFailed:
    failure = _failure(error, "round")
    _count("offline" if isinstance(failure, ProberOffline) else "failure", str(failure), ticket)
    return failure


def _end_failed(ticket: int, error: Exception) -> RoundFailed:
    failure = _failed(error, ticket)
    _end(ticket)
    return failure


def _failure(error: Exception, what: str) -> RoundFailed:
    """``error`` as the failure of a round, logged; what nobody expected with its traceback."""
    if isinstance(error, RoundFailed):
        failure = error
    elif isinstance(error, store.Superseded):
        failure = RoundFailed(str(error))
    elif isinstance(error, StoreError):
        failure = RoundFailed(f"the cache cannot be used: {error}")
    else:
        logger.exception("%s failed unexpectedly", what)
        return RoundFailed(f"an error of proxyhealth, or of how it is set up: {error!r}")
    logger.error("%s failed: %s", what, failure)
    return failure


def _count(outcome: str, error: str = "", ticket: int = 0) -> None:
    with suppress(StoreError):  # a round that was not counted was a round all the same
        coordination.count_round(outcome, error, ticket)


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
    if not coordination.save_plan(plan.ticket, plan.dump()):
        raise RoundFailed("another round has begun while this one read its proxies")
    checked_at = plan.checked_at.isoformat()
    shards = [
        current_app.signature(
            "proxyhealth.tasks.check_shard",
            (plan.ticket, index, checked_at, [proxy.to_json() for proxy in shard]),
            task_id=plan.tasks[index],
        )
        for index, shard in enumerate(plan.shards)
    ]
    end = current_app.signature("proxyhealth.tasks.finish_round", (plan.ticket,))
    end.link_error(
        current_app.signature("proxyhealth.tasks.finish_broken_round", kwargs={"ticket": plan.ticket})
    )
    try:
        chord(shards)(end)
    except Exception:
        coordination.drop_plan(plan.ticket)
        raise
    logger.info("round shared ticket=%d shards=%d", plan.ticket, len(shards))


def run_shard(ticket: int, index: int, checked_at: datetime, proxies: Sequence[Proxy]) -> dict[str, Any]:
    """Probe a shard of the round with this ticket; returns a part, as :meth:`Plan.outcome` has them.

    Raises nothing: the results of the other shards are not to be lost for this one.
    """
    try:
        with coordination.kept(ticket, _patience(len(proxies))) as lease:
            if not lease:
                return {"shard": index, "lost": "the round is over"}
            statuses = rounds.probe_all(proxies, checked_at, stop=lease.lost)
    except Exception as error:
        why = str(_failure(error, "shard"))
        return {"shard": index, "lost": why, "offline": isinstance(error, ProberOffline)}
    logger.info("shard end ticket=%d shard=%d %s", ticket, index, _counts(statuses))
    return {"shard": index, "found": [status.judgement() for status in statuses]}


def run_finish(ticket: int, parts: Iterable[Any] | None = None) -> None:
    """Commit the round with this ticket, that its shards have ended.

    Without ``parts``, the results of the shards, it takes those that there are. Raises ``RoundFailed``.
    """
    try:
        with coordination.kept(ticket, _patience(0)) as lease:
            plan = _load_plan() if lease else None
            if plan and plan.ticket == ticket:
                _commit_plan(plan, _results(plan) if parts is None else parts)
            else:
                logger.info("round over before its last shard ticket=%d", ticket)
    except Exception as error:
        raise _end_failed(ticket, error) from error
    _end(ticket)


def _load_plan() -> Plan | None:
    text = coordination.load_plan()
    return Plan.load(text) if text else None


def _commit_plan(plan: Plan, parts: Iterable[Any], lease: int | None = None) -> None:
    """Commit what the shards found, all of it in one step."""
    outcome = plan.outcome(parts)
    if outcome.offline:
        coordination.drop_plan(plan.ticket)
        _forget_results(plan)
        raise ProberOffline(outcome.error)
    duration = max(0.0, (coordination.take_ticket() - plan.ticket) / 1e6)
    done = Round(plan.checked_at, duration, outcome.missing, outcome.error)
    _commit_round(outcome.statuses, plan.ticket, done, lease)
    if outcome.missing:
        logger.error("round incomplete ticket=%d error=%s", plan.ticket, outcome.error)
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
            coordination.drop_plan(plan.ticket)


def _forget_results(plan: Plan) -> None:
    for id in plan.tasks:
        with suppress(Exception):  # it expires, too
            current_app.AsyncResult(id).forget()


def _results(plan: Plan) -> list[Any]:
    results = [current_app.AsyncResult(id) for id in plan.tasks]
    return [result.result for result in results if result.successful()]


# The check of a few


def run_pending_check(ids: Iterable[UUID] = ()) -> None:
    """Check these proxies, and all that are waiting for it; none is none."""
    wanted = set(ids)
    with suppress(StoreError):  # if it stays away, the check says so
        wanted |= coordination.take_pending()
    if wanted:  # if not, a task before this one took them along
        run_check(wanted)


def run_check(ids: Iterable[UUID]) -> None:
    """Probe these proxies now and commit what comes out; those that are deleted leave the snapshot.

    Who answers at once does not wait for who does not. Raises ``RoundFailed``; what was not committed by
    then is as it was.
    """
    wanted = set(ids)
    try:
        ticket = coordination.take_ticket()
        checked_at = datetime.now(UTC)
        proxies = rounds.read_proxies(wanted)
        removed = wanted - {proxy.id for proxy in proxies}
        for batch in rounds.probe_batches(proxies, checked_at, _LULL):
            commit = _commit_check(batch, ticket, removed)
    except Exception as error:
        raise _failure(error, "check") from error
    if not commit.complete:
        # The cache is new or was emptied; a snapshot of a few must not stay one for an interval.
        request_check()


def _commit_check(batch: Sequence[ProxyStatus], ticket: int, removed: Collection[UUID]) -> store.Commit:
    offline: ProberOffline | None = None
    try:
        rounds.require_online(batch)
    except ProberOffline as error:
        offline = error
        batch = [status for status in batch if status.status is not Status.UNREACHABLE]
    commit = store.commit(batch, ticket, removed=removed)
    _log_changes(commit.changes)
    logger.info("check end ticket=%d removed=%d %s", ticket, len(removed), _counts(batch))
    if offline:
        raise offline
    return commit


def _log_changes(changes: Sequence[Change]) -> None:
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


def _counts(statuses: Sequence[ProxyStatus]) -> str:
    found = [status.status for status in statuses]
    counts = " ".join(f"{s}={found.count(s)}" for s in Status if s is not Status.UNKNOWN)
    return f"proxies={len(found)} {counts}"

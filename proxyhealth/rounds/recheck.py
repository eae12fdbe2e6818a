"""A round, a shard of one, the check of a few: each from its token to its commit."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

from proxyhealth.exceptions import ProberOffline, StoreError
from proxyhealth.probing import pool
from proxyhealth.rounds.dispatch import request_check
from proxyhealth.rounds.runner import count_statuses, failure_of, log_changes, read_proxies
from proxyhealth.snapshot import ProxyStatus
from proxyhealth.statuses import Status
from proxyhealth.storage.commit import Commit, commit
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.pending import take_pending

logger = logging.getLogger(__name__)


# When no more answers come for so many seconds, a check commits those that it has.
_BATCH_IDLE = 0.05


# The round


# The round as a chord of shards


# The check of a few


def run_pending_check(ids: Iterable[UUID] = ()) -> None:
    """Check these proxies, and all that are waiting for it; none is none."""
    wanted = set(ids)
    with suppress(StoreError):  # if it stays away, the check says so
        wanted |= take_pending()
    if wanted:  # if not, a task before this one took them along
        run_check(wanted)


def run_check(ids: Iterable[UUID]) -> None:
    """Probe these proxies now and commit what comes out; those that are deleted leave the snapshot.

    Who answers at once does not wait for who does not. Raises ``RoundFailed``; what was not committed by
    then is as it was.
    """
    wanted = set(ids)
    try:
        token = take_token()
        checked_at = datetime.now(UTC)
        proxies = read_proxies(wanted)
        removed = wanted - {proxy.id for proxy in proxies}
        for batch in pool.probe_batches(proxies, checked_at, _BATCH_IDLE):
            result = _commit_check(batch, token, removed)
    except Exception as error:
        raise failure_of(error, "check") from error
    if not result.complete:
        # The cache is new or was emptied; a snapshot of a few must not stay one for an interval.
        request_check()


def _commit_check(batch: Sequence[ProxyStatus], token: int, removed: Collection[UUID]) -> Commit:
    offline: ProberOffline | None = None
    try:
        pool.require_online(batch)
    except ProberOffline as error:
        offline = error
        batch = [status for status in batch if status.status is not Status.UNREACHABLE]
    result = commit(batch, token, removed=removed)
    log_changes(result.changes)
    logger.info("check end token=%d removed=%d %s", token, len(removed), count_statuses(batch))
    if offline:
        raise offline
    return result

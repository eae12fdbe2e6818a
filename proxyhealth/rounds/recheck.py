"""The check of some proxies between rounds, for example after a save."""

import logging
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

from proxyhealth.conf import conf
from proxyhealth.exceptions import ProberOffline, StoreError
from proxyhealth.probing import pool
from proxyhealth.rounds import steps
from proxyhealth.rounds.dispatch import request_next_round, request_recheck
from proxyhealth.snapshot import ProxyStatus
from proxyhealth.statuses import Status
from proxyhealth.storage.commit import Commit, read_waiting
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.pending import hold_recheck, release_recheck, take_pending
from proxyhealth.storage.requests import add_failure

logger = logging.getLogger(__name__)

# Seconds without a result after which a check commits the statuses that it has.
_BATCH_IDLE = 0.05

# Share of ``RECHECK_AFTER`` after which a proxy may be probed again: its task was sent for an earlier one.
_SHARE_OF_WAIT = 0.8


def run_pending_check(ids: Iterable[UUID] = ()) -> None:
    """Check these proxies and all pending ones. Raise ``RoundFailed`` if the check fails."""
    all_ids = set(ids)
    with suppress(StoreError):  # if the cache still fails, the check raises a better error
        all_ids |= take_pending()
    if all_ids:  # an earlier task may have checked all of them
        run_check(all_ids)


def run_recheck() -> None:
    """Probe the proxies again whose last result contradicts their status. Raise ``RoundFailed``.

    Those that were probed a moment ago wait for the next time, and so do more than ``CONCURRENCY``: a round
    that waits for a worker must not wait for all of them.
    """
    try:
        hold_recheck(steps.lease_limit(conf.CONCURRENCY))
        waiting = read_waiting()
        latest = take_token() - int(conf.RECHECK_AFTER * _SHARE_OF_WAIT * 1_000_000)
    except StoreError as error:
        raise steps.log_failure(error, "check") from error
    due = [id for token, id in waiting if token <= latest]
    try:
        if due:
            run_check(due[: conf.CONCURRENCY])
    finally:
        with suppress(StoreError):  # the claim expires
            release_recheck()
            if len(due) > conf.CONCURRENCY:
                request_recheck(0)
            elif read_waiting():
                request_recheck(conf.RECHECK_AFTER)


def run_check(ids: Iterable[UUID], on_progress: pool.OnProgress | None = None) -> None:
    """Probe these proxies now and commit their statuses. Remove deleted proxies from the snapshot.

    Slow proxies do not delay fast ones: each batch of results is committed at once. Raise ``RoundFailed`` if
    the check fails; earlier batches stay committed.
    """
    ids = set(ids)
    token = 0
    try:
        token = take_token()
        checked_at = datetime.now(UTC)
        proxies = steps.read_proxies(ids)
        removed = ids - {proxy.id for proxy in proxies}
        for batch in pool.probe_batches(proxies, checked_at, _BATCH_IDLE, on_progress=on_progress):
            result = _commit_batch(batch, token, removed)
    except Exception as error:
        failure = steps.log_failure(error, "check")
        with suppress(StoreError):  # only for the page that shows the progress
            add_failure(token, ids, str(failure))
        raise failure from error
    if not result.complete:
        # The cache is new or was emptied. Only a full round adds the other proxies.
        request_next_round()


def _commit_batch(batch: Sequence[ProxyStatus], token: int, removed: Collection[UUID]) -> Commit:
    offline: ProberOffline | None = None
    try:
        pool.require_online(batch)
    except ProberOffline as error:
        offline = error
        batch = [status for status in batch if status.status is not Status.UNREACHABLE]
    result = steps.commit_statuses(batch, token, removed=removed)
    counts = steps.count_statuses(batch)
    logger.info(f"check end token=%d removed=%d {steps.COUNTS}", token, len(removed), *counts)
    if offline:
        raise offline
    return result

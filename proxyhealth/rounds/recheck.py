"""The check of some proxies between rounds, for example after a save."""

import logging
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

from proxyhealth.exceptions import ProberOffline, StoreError
from proxyhealth.probing import pool
from proxyhealth.rounds import steps
from proxyhealth.rounds.dispatch import request_next_round
from proxyhealth.snapshot import ProxyStatus
from proxyhealth.statuses import Status
from proxyhealth.storage.commit import Commit
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.pending import take_pending

logger = logging.getLogger(__name__)

# Seconds without a result after which a check commits the statuses that it has.
_BATCH_IDLE = 0.05


def run_pending_check(ids: Iterable[UUID] = ()) -> None:
    """Check these proxies and all pending ones. Raise ``RoundFailed`` if the check fails."""
    all_ids = set(ids)
    with suppress(StoreError):  # if the cache still fails, the check raises a better error
        all_ids |= take_pending()
    if all_ids:  # an earlier task may have checked all of them
        run_check(all_ids)


def run_check(ids: Iterable[UUID]) -> None:
    """Probe these proxies now and commit their statuses. Remove deleted proxies from the snapshot.

    Slow proxies do not delay fast ones: each batch of results is committed at once. Raise ``RoundFailed`` if
    the check fails; earlier batches stay committed.
    """
    ids = set(ids)
    try:
        token = take_token()
        checked_at = datetime.now(UTC)
        proxies = steps.read_proxies(ids)
        removed = ids - {proxy.id for proxy in proxies}
        for batch in pool.probe_batches(proxies, checked_at, _BATCH_IDLE):
            result = _commit_batch(batch, token, removed)
    except Exception as error:
        raise steps.log_failure(error, "check") from error
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

"""A full round: take the lease, read the proxies, probe them, commit their statuses."""

import logging
import time
from contextlib import suppress
from datetime import UTC, datetime

from proxyhealth.exceptions import StoreError
from proxyhealth.probing import pool
from proxyhealth.rounds import sharing, steps
from proxyhealth.rounds.shards import Plan, split
from proxyhealth.storage import reader, rounds_log
from proxyhealth.storage.counters import count_round
from proxyhealth.storage.lease import (
    ANY_ROUND,
    Lease,
    RoundOutcome,
    RoundRequest,
    begin_round,
    renewing_lease,
    take_token,
)
from proxyhealth.storage.merge import Round
from proxyhealth.storage.plan import count_slots
from proxyhealth.storage.repair import repair

logger = logging.getLogger(__name__)


def run_round(
    request: RoundRequest = ANY_ROUND,
    *,
    wait: float = 0,
    share: bool = False,
    on_progress: pool.OnProgress | None = None,
) -> RoundOutcome:
    """Run a full round if ``request`` allows it. Return the outcome, or raise ``RoundFailed``.

    Wait up to ``wait`` seconds for a running round to end. With ``share``, divide a round of more than
    ``SHARD_SIZE`` proxies among all workers, and return once its shards are queued.
    """
    with steps.recording_failures():
        start = begin_round(request, wait=wait)
    if start.outcome is not RoundOutcome.BEGUN:
        logger.info("round skipped: %s", start.outcome)
        if request.min_gap is not None:
            with suppress(StoreError):
                count_round("skipped")
            rounds_log.add("skipped", error=start.outcome.value)
        return start.outcome
    rounds_log.add(rounds_log.RUNNING, start.token)
    with steps.recording_failures(start.token), renewing_lease(start.token, steps.READ_TIMEOUT) as lease:
        if start.left_over:
            sharing.commit_left_over(start.token)
        outcome = _run_begun(start.token, share, lease, on_progress)
    if outcome is RoundOutcome.SUCCESS:
        steps.close_round(start.token)
    return outcome


def run_now(wait: float, on_progress: pool.OnProgress | None = None) -> RoundOutcome:
    """Run a round, unless another process runs one that begins after this call. Raise ``RoundFailed``."""
    with steps.recording_failures():
        repair()
        request = RoundRequest(requested_token=take_token())
    return run_round(request, wait=wait, on_progress=on_progress)


def _run_begun(
    token: int, share: bool, lease: Lease, on_progress: pool.OnProgress | None = None
) -> RoundOutcome:
    checked_at = datetime.now(UTC)
    begin = time.monotonic()
    proxies = steps.read_proxies()
    lease.extend(steps.lease_limit(len(proxies)))
    previous = reader.read().statuses
    logger.info("round start token=%d proxies=%d", token, len(proxies))
    if share and sharing.can_share(len(proxies)):
        shards = split(proxies, previous, max(1, count_slots()))
        sharing.share_round(Plan.create(token, checked_at, shards))
        return RoundOutcome.SHARED
    statuses = pool.probe_all(proxies, checked_at, previous, lease.lost, on_progress)
    steps.commit_round(statuses, token, Round(checked_at, time.monotonic() - begin))
    return RoundOutcome.SUCCESS

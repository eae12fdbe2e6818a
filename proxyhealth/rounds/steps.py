"""The steps that rounds, shared rounds and checks have in common."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

from celery.exceptions import SoftTimeLimitExceeded
from django.db import Error as DatabaseError

from proxyhealth.conf import conf
from proxyhealth.exceptions import (
    ForeignSnapshot,
    ProberOffline,
    RoundFailed,
    StoreError,
    Superseded,
    TokenTooLow,
)
from proxyhealth.history.recall import DatabaseMemory
from proxyhealth.models import WorkspaceProxy
from proxyhealth.models.rows import close_if_broken
from proxyhealth.notifications import heartbeats
from proxyhealth.probing import pool
from proxyhealth.rounds.dispatch import request_check, request_recheck, request_task
from proxyhealth.snapshot import Proxy, ProxyStatus
from proxyhealth.statuses import Status
from proxyhealth.storage import rounds_log
from proxyhealth.storage.commit import Commit, commit
from proxyhealth.storage.counters import count_missed, count_round
from proxyhealth.storage.lease import end_round
from proxyhealth.storage.merge import Round
from proxyhealth.storage.probes import add_probes
from proxyhealth.storage.traces import add_traces
from proxyhealth.task_names import TaskName
from proxyhealth.texts import without_passwords

logger = logging.getLogger(__name__)

# Seconds for which a round renews its lease while it reads the proxies. If the database hangs for longer,
# another process may begin a round.
READ_TIMEOUT = 30.0

# Seconds for which a finished round retries its commit while the cache is unreachable.
COMMIT_TIMEOUT = 5.0

_COUNTED = [status for status in Status if status is not Status.UNKNOWN]

# The end of log messages about a round or a part of one.
COUNTS = " ".join(f"{name}=%d" for name in ("proxies", *_COUNTED))


def lease_limit(count: int) -> float:
    """Return for how many seconds a process renews the lease while it probes ``count`` proxies.

    A process that needs longer hangs, and must not block other rounds.
    """
    return pool.time_limit(count) + COMMIT_TIMEOUT + READ_TIMEOUT


def read_proxies(ids: Iterable[UUID] | None = None) -> list[Proxy]:
    """Return the active proxies, or those with these ids, sorted by name. Raise ``RoundFailed``."""
    rows = WorkspaceProxy.objects.primary().active()
    if ids is not None:
        rows = rows.filter(pk__in=list(ids))
    try:
        return rows.as_proxies()
    except DatabaseError as error:
        # Otherwise a worker would keep a connection that a restart of the database has closed.
        close_if_broken(rows.db)
        raise RoundFailed(
            f"the proxies cannot be read from the database: {without_passwords(error)}"
        ) from error


def commit_statuses(statuses: Sequence[ProxyStatus], token: int, **options: Any) -> Commit:
    """Commit statuses with the options of ``commit()``, keep their probes, and request what follows.

    Retry for ``COMMIT_TIMEOUT`` seconds, then raise ``StoreError``.
    """
    end = time.monotonic() + COMMIT_TIMEOUT
    memory = DatabaseMemory()
    while True:
        try:
            result = commit(statuses, token, memory=memory, **options)
            break
        except StoreError as error:
            if isinstance(error, Superseded | TokenTooLow | ForeignSnapshot) or time.monotonic() > end:
                raise
            logger.warning("commit waits for the cache token=%d error=%s", token, error)
            time.sleep(0.25)
    with suppress(StoreError):  # they are no part of the snapshot
        add_probes(statuses)
        add_traces(statuses, token)
    if result.outbox:
        request_task(TaskName.RECORD_HISTORY)
    if result.waiting:
        request_recheck(conf.RECHECK_AFTER)
    return result


def commit_round(
    statuses: list[ProxyStatus], token: int, full_round: Round, lease: int | None = None
) -> None:
    """Commit a round. Retry for ``COMMIT_TIMEOUT`` seconds, then raise ``StoreError``."""
    commit_statuses(statuses, token, full_round=full_round, lease=lease)
    rounds_log.add(
        full_round.outcome,
        token,
        error=full_round.error,
        seconds=full_round.duration,
        proxies=len(statuses) + len(full_round.missing),
        missing=len(full_round.missing),
    )
    logger.info(
        f"round end token=%d duration=%.3f {COUNTS}", token, full_round.duration, *count_statuses(statuses)
    )
    if not full_round.missing:
        heartbeats.send()


def close_round(token: int) -> None:
    """Release the lease, and request another round if one was requested while this one ran."""
    try:
        rerun = end_round(token)
    except StoreError as error:
        logger.warning("the lease of the round could not be released, it will expire: %s", error)
        return
    count_missed()
    if rerun:
        request_check()


@contextmanager
def recording_failures(token: int = 0) -> Iterator[None]:
    """Record an exception, close the round with this token, and raise ``RoundFailed``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if token:
            close_round(token)  # the next round must not wait for the lease of this one to expire
        raise
    except Exception as error:
        failure = record_failure(error, token)
        if token:
            close_round(token)
        raise failure from error


def record_failure(error: Exception, token: int = 0) -> RoundFailed:
    """Log ``error``, count it as a failed round, and return it as ``RoundFailed``."""
    failure = log_failure(error, "round")
    outcome = "offline" if isinstance(failure, ProberOffline) else "failure"
    with suppress(StoreError):
        count_round(outcome, str(failure), token)
    rounds_log.add(outcome, token, error=str(failure))
    return failure


def log_failure(error: Exception, operation: str) -> RoundFailed:
    """Log ``error``, with its traceback if it is unexpected, and return it as ``RoundFailed``."""
    if isinstance(error, RoundFailed):
        failure = error
    elif isinstance(error, Superseded):
        failure = RoundFailed(str(error))
    elif isinstance(error, SoftTimeLimitExceeded):
        failure = RoundFailed("a time limit of Celery ended the task: raise it in CELERY_TASK_ANNOTATIONS")
    elif isinstance(error, StoreError):
        failure = RoundFailed(f"the cache cannot be used: {error}")
    else:
        logger.exception("%s failed unexpectedly", operation)
        text = without_passwords(repr(error))
        return RoundFailed(f"an error of proxyhealth, or of how it is set up: {text}")
    logger.error("%s failed: %s", operation, failure)
    return failure


def count_statuses(statuses: Sequence[ProxyStatus]) -> list[int]:
    """Return the values of ``COUNTS``: the number of proxies, and of those with each status."""
    values = [status.status for status in statuses]
    return [len(values), *map(values.count, _COUNTED)]

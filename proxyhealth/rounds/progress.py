"""The progress of a check that somebody has requested, and what changed since then.

It is read from fencing tokens: whichever check or round has probed a proxy with a token above that of the
request has fulfilled it. So it stays true if other rounds run at the same time.
"""

import enum
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from proxyhealth.history.changes import StatusChange, changes_since
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import broker, steps
from proxyhealth.snapshot import Snapshot
from proxyhealth.storage import reader
from proxyhealth.storage.requests import Request, load_request, save_request

# Seconds after which a request that waits needs an explanation.
PATIENCE = 10.0


class State(enum.StrEnum):
    """The states of a request. All after the first three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    NO_WORKER = "no worker"  # none has taken it for ``PATIENCE`` seconds
    DONE = "done"
    SUPERSEDED = "superseded"  # another round has probed the proxies first
    FAILED = "failed"
    LOST = "lost"  # a worker has taken it, and probably died


@dataclass(frozen=True)
class Progress:
    """The state of a request ``seconds`` after it was made, and ``checked`` of its ``total`` proxies.

    ``queue_length`` is None if it is not known. ``unconfirmed`` are the names of proxies whose last result
    contradicts their status.
    """

    state: State
    seconds: float
    checked: int = 0
    total: int = 0
    changes: Sequence[StatusChange] = ()
    unconfirmed: Sequence[str] = ()
    error: str = ""
    queue_length: int | None = None


def begin(ids: Iterable[UUID] | None) -> UUID:
    """Begin to watch a request that is sent next, and return its id. Raise ``StoreError``."""
    return save_request(None if ids is None else list(ids))


def read_progress(id: UUID) -> Progress | None:
    """Return the progress of a request, or None if it is not known any more. Raise ``StoreError``."""
    request = load_request(id)
    if request is None:
        return None
    if request.ids is None:
        return _of_all(request)
    return _of_some(request, request.ids)


def _of_all(request: Request) -> Progress:
    if request.full > request.token:
        return _done(request, reader.read_anew(), State.DONE)
    if request.holder > request.token:
        return Progress(State.RUNNING, request.seconds)
    if request.closed > request.token:
        return Progress(State.FAILED, request.seconds, error=request.error)
    # A round that began before the request is followed by another one.
    return _waiting(request, is_working=request.holder > 0)


def _of_some(request: Request, ids: Sequence[UUID]) -> Progress:
    snapshot = reader.read()
    left = [id for id in ids if snapshot.tokens.get(id, 0) <= request.token]
    is_pending = not request.pending.isdisjoint(map(str, ids))
    if left and not is_pending:
        left = [*_without_removed(left, snapshot)]
    if not left:
        return _done(request, snapshot, State.SUPERSEDED if is_pending else State.DONE)
    if is_pending:
        return _waiting(request, is_working=False)
    error = _error_of(request, left)
    idle = (request.now - request.last_token) / 1e6
    is_lost = idle > steps.lease_limit(len(ids))
    state = State.FAILED if error else State.LOST if is_lost else State.RUNNING
    return Progress(state, request.seconds, len(ids) - len(left), len(ids), error=error)


def _without_removed(ids: Collection[UUID], snapshot: Snapshot) -> set[UUID]:
    """Return those of ``ids`` that still have to be probed: a deleted proxy leaves the snapshot instead."""
    unknown = [id for id in ids if id not in snapshot.statuses]
    rows = WorkspaceProxy.objects.primary().active().filter(pk__in=unknown) if unknown else ()
    return {*ids} - {*unknown} | {row.pk for row in rows}


def _error_of(request: Request, left: Collection[UUID]) -> str:
    """Return why the check of one of these proxies has failed after the request, or ''."""
    texts = {str(id) for id in left}
    for failure in reversed(request.failures):
        if failure.token > request.token and failure.concerns(texts):
            return failure.error
    return request.error if request.closed > request.token else ""


def _waiting(request: Request, *, is_working: bool) -> Progress:
    if is_working or request.seconds < PATIENCE:
        return Progress(State.QUEUED, request.seconds)
    if request.has_failed_round:  # it could not even begin
        return Progress(State.FAILED, request.seconds, error=request.error)
    return Progress(State.NO_WORKER, request.seconds, queue_length=broker.queue_length())


def _done(request: Request, snapshot: Snapshot, state: State) -> Progress:
    ids = snapshot.statuses if request.ids is None else request.ids
    statuses = [snapshot.statuses[id] for id in ids if id in snapshot.statuses]
    return Progress(
        state,
        request.seconds,
        len(ids),
        len(ids),
        changes=changes_since(request.token, request.ids),
        unconfirmed=[status.proxy.name for status in statuses if status.raw],
    )

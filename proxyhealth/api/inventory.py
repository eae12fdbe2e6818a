"""The active proxies of the database: a copy per process, read again only after a change."""

import logging
import operator
import time
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import NamedTuple, Self

from django.db import Error as DatabaseError
from django.db.models import Count, Max, Q

from proxyhealth import isolation
from proxyhealth.api.representation import public_name
from proxyhealth.conf import conf
from proxyhealth.models import WorkspaceProxy
from proxyhealth.models.rows import is_of_a_row
from proxyhealth.notifications.marks import NO_MARKS, Marks
from proxyhealth.shared_copy import NO_GRACE, SharedCopy
from proxyhealth.snapshot import Proxy
from proxyhealth.texts import clean, without_passwords
from proxyhealth.utils import PerProcess, aware

logger = logging.getLogger(__name__)

# In seconds:
_RETRY_INTERVAL = 2.0  # pause in reads after the database failed
_TIMEOUT = 1.0  # wait for another thread's read, before an overdue copy is returned

_FAULT = "The database cannot be read ({}). These are the proxies that were read last."


@dataclass(frozen=True, eq=False)
class Inventory:
    """The active proxies, sorted by name in lower case, then by id.

    ``changed_at`` is the latest ``updated_at`` of a row. ``fault`` is the reason why this is only the last
    copy of this process. It is empty for a current copy. ``marks`` are those of the proxies.
    """

    proxies: tuple[Proxy, ...]
    changed_at: datetime | None
    fault: str = ""
    marks: Marks = NO_MARKS

    def same_as(self, other: Self) -> bool:
        """Return True if all values are equal and all proxies are the same objects."""
        return (
            (self.changed_at, self.fault) == (other.changed_at, other.fault)
            and len(self.proxies) == len(other.proxies)
            and all(map(operator.is_, self.proxies, other.proxies))
        )


class _Fingerprint(NamedTuple):
    """The result of one small query, which detects most saves and deletions.

    It misses a save that leaves ``updated_at`` as it was, and one with an earlier ``updated_at`` than another
    row has, after a late commit or on a host with a slow clock. The next epoch reveals them.
    """

    active: int
    changed_at: datetime | None


@dataclass(frozen=True)
class _State:
    inventory: Inventory
    fingerprint: _Fingerprint | None  # None after a failure
    epoch: object
    rows_read_at: float  # by the monotonic clock


def read(epoch: object = None, *, now: bool = False) -> Inventory:
    """Return the active proxies of this process. With ``now``, read them now.

    Read them again ``READ_INTERVAL`` seconds after the last read, while other threads get the previous copy.
    A read is three small queries: one of the rows, and those of their marks, which may also change as time
    passes. It reads all rows only if the first one shows a change, if this process saved a
    proxy, or if ``epoch`` is new: the commit of the snapshot, and the last request for a check. It also reads
    them once per ``INTERVAL``, to detect changes that all of these miss, such as ``queryset.update()``.

    If the database fails or does not respond, return the last copy of this process, with a ``fault``. Raise
    the database's error if there is no copy.
    """
    copy = _inventory.value
    if isolation.is_isolated():
        copy.expire()  # tests undo and repeat their changes, which the query may miss
    state = copy.fresh()
    if state is None or state.epoch != epoch or now:
        state = copy.get(
            partial(_refresh, copy, epoch),
            is_current=lambda state: state.epoch == epoch and not now,
            grace=NO_GRACE if now else conf.READ_INTERVAL,
            timeout=_TIMEOUT,
        )
    return state.inventory


def has_fault() -> bool:
    """Return True if the last read failed, or takes too long, without a query."""
    copy = _inventory.value
    return copy.is_late or bool(copy.value and copy.value.inventory.fault)


def expire() -> None:
    """Make the next read include what this process has just saved."""
    _inventory.value.expire()


def _refresh(copy: SharedCopy[_State], epoch: object, previous: _State | None) -> tuple[_State, float]:
    begin = time.monotonic()
    before = previous.inventory if previous else None
    try:
        # Before the rows are read, so that the next read detects a save in between.
        fingerprint = _take_fingerprint()
        if (
            previous is None
            or copy.expired
            or (fingerprint, epoch) != (previous.fingerprint, previous.epoch)
            or begin >= previous.rows_read_at + conf.INTERVAL
        ):
            state = _State(_read_rows(before, fingerprint), fingerprint, epoch, begin)
        else:
            state = previous
        marks = Marks.read(state.inventory.proxies, state.inventory.marks)
        if marks is not state.inventory.marks:
            state = replace(state, inventory=replace(state.inventory, marks=marks))
    except DatabaseError as error:
        if before is None:
            raise
        if not before.fault:
            logger.exception("the proxies cannot be read from the database")
        # No fingerprint: these rows may be older than the epoch, so the next read must read all rows.
        inventory = replace(before, fault=_FAULT.format(clean(without_passwords(error), 300)))
        return _State(inventory, None, epoch, begin), _RETRY_INTERVAL
    if copy.is_late or (before and before.fault):
        logger.info("the proxies can be read from the database again")
    return state, conf.READ_INTERVAL


def _mark_late(state: _State) -> _State:
    if state.inventory.fault:
        return state
    logger.warning("the database does not respond to the query for the proxies")
    return replace(state, inventory=replace(state.inventory, fault=_FAULT.format("it does not respond")))


def _read_rows(before: Inventory | None, fingerprint: _Fingerprint) -> Inventory:
    """Read all rows. Reuse the object of each unchanged row, and the whole inventory if none changed."""
    old_proxies = {proxy.id: proxy for proxy in before.proxies} if before else {}
    rows = WorkspaceProxy.objects.primary().active().as_proxies()
    proxies = [old if (old := old_proxies.get(proxy.id)) == proxy else proxy for proxy in rows]
    changed_at = fingerprint.changed_at and aware(fingerprint.changed_at)
    inventory = Inventory(_sorted(proxies), changed_at, marks=before.marks if before else NO_MARKS)
    return before if before and before.same_as(inventory) else inventory


def _sorted(proxies: list[Proxy]) -> tuple[Proxy, ...]:
    # Not by the database, whose order depends on its collation: pages need this order.
    names = [public_name(proxy.name, proxy.id).lower() for proxy in proxies]
    order = sorted(range(len(names)), key=names.__getitem__)
    if len(set(names)) < len(names):
        order.sort(key=lambda index: (names[index], proxies[index].id))
    return tuple(proxies[index] for index in order)


def _take_fingerprint() -> _Fingerprint:
    rows = WorkspaceProxy.objects.primary()
    active = Count("pk", filter=Q(deleted=False))
    try:
        return _Fingerprint(**rows.aggregate(active=active, changed_at=Max("updated_at")))
    except Exception as error:
        if not is_of_a_row(error):
            raise
        return _Fingerprint(**rows.aggregate(active=active), changed_at=None)


_inventory = PerProcess[SharedCopy[_State]](lambda: SharedCopy(mark_late=_mark_late))

# Drops this process's copy, for tests.
forget = _inventory.reset

"""Every active proxy with its status, and the JSON of it, made once whenever one of them changes."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Literal, NamedTuple
from uuid import UUID

from proxyhealth import health
from proxyhealth.api import inventory
from proxyhealth.api.inventory import Inventory
from proxyhealth.api.query import EVERYTHING, PRIMARY_CURSOR, Selection, cursor_after
from proxyhealth.api.representation import (
    Representation,
    encode,
    region_json,
    row_json,
    snapshot_json,
    status_json,
)
from proxyhealth.conf import Primary, conf
from proxyhealth.snapshot import Proxy, ProxyStatus, Snapshot

# Bytes of answers to queries that a listing keeps: a filter that many use is made once, too.
_KEPT = 8_000_000
_KEPT_PARTS = 64

# "proxies" is for who may see the details, "regions" for every user.
Kind = Literal["proxies", "regions"]


def current(*, now: bool = False) -> Listing:
    """The listing of the snapshot and of the rows as this process has them, or as the rows are ``now``.

    While it is made anew, the others have the one before, which is whole too, if that was good a
    ``READ_INTERVAL`` ago. Raises an error of the database only if this process has never read the rows.
    """
    return _maker.current(now)


def forget() -> None:
    """Drop this process's listing: after a fork, and between tests."""
    global _maker
    _maker = _ListingCache()


class _ListingCache:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listing: Listing | None = None
        self._good_until = float("-inf")  # for who does not wait for the next one

    def current(self, now: bool) -> Listing:
        listing = self._listing
        # Not under the lock: the database may say nothing, and nobody is to wait for it here.
        parts = Parts.read(now)
        if listing is None:
            self._lock.acquire()
        elif listing.parts.same_as(parts):
            self._good_until = self._soon()
            return listing
        elif not self._lock.acquire(blocking=now or time.monotonic() >= self._good_until):
            return listing
        try:
            newest = self._listing
            if newest is None or newest is listing:
                self._listing = newest = Listing(parts, listing)
                self._good_until = self._soon()
                return newest
            # Another one was first, perhaps with something newer than what was read here.
            if not now:
                return newest
        finally:
            self._lock.release()
        return self.current(now=False)  # the rows are as they were then, or newer

    @staticmethod
    def _soon() -> float:
        return time.monotonic() + conf.READ_INTERVAL


class Parts(NamedTuple):
    """What a listing is made of."""

    rows: Inventory
    snapshot: Snapshot
    stale_reason: str
    primary: Primary | None

    @classmethod
    def read(cls, now: bool = False) -> Parts:
        snapshot = health.snapshot()
        rows = inventory.read(snapshot.committed_at, now=now)
        return cls(rows, snapshot, snapshot.stale_reason or rows.fault, conf.PRIMARY)

    def same_as(self, others: Parts) -> bool:
        return (
            self.rows is others.rows
            and self.snapshot is others.snapshot
            and self.stale_reason == others.stale_reason
            and self.primary == others.primary
        )


class Listing:
    """One snapshot and one roster, joined. It does not change."""

    def __init__(self, parts: Parts, before: Listing | None = None) -> None:
        self.parts = parts
        self._lock = threading.Lock()
        self._whole: dict[Kind, Representation] = {}
        self._asked: set[Kind] = set()
        self._parts: dict[tuple[Kind, Selection], Representation] = {}  # the oldest one first
        rows, snapshot, *_ = parts
        self._entries: _Entries
        if before and before.parts.rows is rows and before.parts.snapshot.statuses is snapshot.statuses:
            self._entries = before._entries
        else:
            self._entries = _Entries(rows, snapshot, before._entries if before else None)
        if before:
            # What was asked for is made before anybody has to wait for it.
            for kind in before._asked.copy():
                self._whole[kind] = self._represent(kind, EVERYTHING).reuse_or_replace(before._whole[kind])

    @property
    def stale(self) -> bool:
        return bool(self.parts.stale_reason)

    def find(self, id_or_name: str) -> ProxyStatus | None:
        """The proxy with this id, or with this name in any case."""
        place = self._entries.place(id_or_name)
        return None if place is None else self._entries.statuses[place]

    def one(self, id_or_name: str) -> Representation | None:
        """The same as JSON."""
        place = self._entries.place(id_or_name)
        return None if place is None else Representation(self._entries.proxies[place], self._moments())

    def select(self, kind: Kind, selection: Selection) -> Representation:
        """What is asked for of all proxies; all of them without a selection."""
        if selection != EVERYTHING:
            return self._part(kind, selection)
        with self._lock:
            if kind not in self._whole:
                self._whole[kind] = self._represent(kind, selection)
            self._asked.add(kind)
            return self._whole[kind]

    def _part(self, kind: Kind, selection: Selection) -> Representation:
        key = (kind, selection)
        if known := self._parts.get(key):
            return known
        made = self._represent(kind, selection)
        with self._lock:
            self._parts[key] = made
            size = sum(len(part.body) for part in self._parts.values())
            while size > _KEPT or len(self._parts) > _KEPT_PARTS:
                size -= len(self._parts.pop(next(iter(self._parts))).body)
        return made

    def _represent(self, kind: Kind, selection: Selection) -> Representation:
        found, cursor = self._found(kind, selection)
        parts = [b'{"regions":[', b",".join(found), b"]"]
        if kind == "proxies":
            parts += b',"snapshot":', encode(snapshot_json(self.parts.snapshot, self.parts.stale_reason))
        if selection.paged:
            parts += b',"next_cursor":', encode(cursor)
        return Representation(b"".join([*parts, b"}"]), self._moments())

    def _found(self, kind: Kind, selection: Selection) -> tuple[Sequence[bytes], str | None]:
        """The JSON of what is selected, and the cursor of the next page if there is one."""
        entries = self._entries
        texts = entries.regions if kind == "regions" else entries.proxies
        found = []
        if kind == "regions" and self.parts.primary and selection.after is None:
            primary = region_json(self.parts.primary, healthy=True)
            if selection.admits(None, True, _search_text(self.parts.primary)):
                found.append((PRIMARY_CURSOR, encode(primary)))
        if selection == EVERYTHING:
            return [*(text for _, text in found), *texts], None
        begin = 0 if selection.after is None else bisect_right(entries.names, selection.after)
        for place in range(begin, len(texts)):
            status = entries.statuses[place]
            if selection.limit and len(found) > selection.limit:
                break
            if selection.admits(status.status, status.healthy, entries.search_texts[place]):
                found.append((cursor_after(entries.names[place]), texts[place]))
        page = found[: selection.limit]
        more = len(found) > len(page)
        return [text for _, text in page], page[-1][0] if more else None

    def _moments(self) -> list[datetime | None]:
        """When it changed; to turn stale is a change, too."""
        rows, snapshot, stale_reason, _ = self.parts
        at_fault = bool(snapshot.fault or rows.fault)
        return [
            snapshot.committed_at,
            rows.changed_at,
            snapshot.stale_at if stale_reason and not at_fault else None,
            datetime.now(UTC) if at_fault else None,
        ]


class _Fragment:
    """The JSON of a proxy that rounds leave as it is, unless they find it healthy and it was not, or not any
    more."""

    __slots__ = ("healthy", "proxy", "region", "row")

    def __init__(self, proxy: Proxy, healthy: bool) -> None:
        self.proxy = proxy
        self.healthy = healthy
        self.region = encode(region_json(proxy, healthy))
        self.row = encode(row_json(proxy))


class _Entries:
    """The proxies of a listing, in the order of their names without regard to case."""

    def __init__(self, rows: Inventory, snapshot: Snapshot, before: _Entries | None) -> None:
        known = before._fragments if before else {}
        self.statuses: list[ProxyStatus] = []
        self.names: list[str] = []
        self.regions: list[bytes] = []
        self._fragments: dict[UUID, _Fragment] = {}
        for proxy in rows.proxies:
            status = health.join(proxy, snapshot.statuses.get(proxy.id))
            fragment = known.get(proxy.id)
            if not fragment or fragment.proxy is not proxy or fragment.healthy != status.healthy:
                fragment = _Fragment(proxy, status.healthy)
            self._fragments[proxy.id] = fragment
            self.statuses.append(status)
            self.names.append(proxy.name.lower())
            self.regions.append(fragment.region)

    @cached_property
    def proxies(self) -> list[bytes]:
        """A region, and the details. Objects of JSON are put together at their braces."""
        return [
            b"".join(
                (fragment.region[:-1], b',"status":', encode(status_json(status)), b",", fragment.row[1:])
            )
            for status, fragment in zip(self.statuses, self._fragments.values(), strict=True)
        ]

    @cached_property
    def search_texts(self) -> list[str]:
        return [_search_text(status.proxy) for status in self.statuses]

    @cached_property
    def _by_id(self) -> dict[UUID, int]:
        return {id: place for place, id in enumerate(self._fragments)}

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names)}

    def place(self, id_or_name: str) -> int | None:
        try:
            place = self._by_id.get(UUID(id_or_name))
        except ValueError:
            place = None
        # An id goes before a name that looks like it.
        return self._by_name.get(id_or_name.lower()) if place is None else place


def _search_text(proxy: Proxy | Primary) -> str:
    """Where a text is looked for: in what every user may know. A line each, so that nothing is found across
    two of them."""
    return f"{proxy.name}\n{proxy.display_name}\n{proxy.url}".casefold()


_maker = _ListingCache()

# A thread of the parent may hold the lock, and in the child nobody would ever release it.
os.register_at_fork(after_in_child=forget)

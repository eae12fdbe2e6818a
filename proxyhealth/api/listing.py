"""The active proxies joined with their statuses, and their JSON, encoded once per change."""

import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from typing import Literal, NamedTuple, Self
from uuid import UUID

from proxyhealth import health
from proxyhealth.api import inventory
from proxyhealth.api.inventory import Inventory
from proxyhealth.api.query import EVERYTHING, PRIMARY_CURSOR, Selection, cursor_after
from proxyhealth.api.representation import (
    Representation,
    encode,
    public_stale_reason,
    public_values,
    region_json,
    row_json,
    snapshot_json,
    staleness_json,
    status_json,
)
from proxyhealth.conf import Primary, conf
from proxyhealth.shared_copy import NO_GRACE, SharedCopy
from proxyhealth.snapshot import Proxy, ProxyStatus, Snapshot
from proxyhealth.utils import LazyProperty, PerProcess

# Limits of the filtered lists that a listing caches, because many clients may use the same filter.
_MAX_KEPT_BYTES = 8_000_000
_MAX_KEPT_LISTS = 64

# "proxies" has the details, which need a permission. "regions" is for every user.
Kind = Literal["proxies", "regions"]


def current(*, now: bool = False) -> "Listing":
    """Return the listing of this process's snapshot and rows. With ``now``, read the rows now.

    While one thread makes the next listing, the others get the previous one, if it was current less than a
    ``READ_INTERVAL`` ago. Raise the database's error if this process has never read the rows.
    """
    copy = _listings.value
    listing = copy.value
    # Read before taking the lock, so that a database that hangs does not block other threads.
    parts = Parts.read(now)
    if listing and listing.parts.same_as(parts):
        copy.due_at = time.monotonic() + conf.READ_INTERVAL
        return listing

    def refresh(previous: "Listing | None") -> tuple["Listing", float]:
        if previous and previous is not listing:
            return previous, 0.0  # another thread made it meanwhile, perhaps from newer parts
        return Listing(parts, previous), conf.READ_INTERVAL

    newest = copy.get(refresh, is_current=lambda value: value is not listing, grace=NO_GRACE if now else 0.0)
    # Another thread's listing may have older rows. The inventory already has these rows, or newer ones.
    return current() if now and newest.parts is not parts else newest


class Parts(NamedTuple):
    """The data from which a listing is made."""

    rows: Inventory
    snapshot: Snapshot
    stale_reason: str
    primary: Primary | None

    @classmethod
    def read(cls, now: bool = False) -> Self:
        snapshot = health.snapshot()
        rows = inventory.read((snapshot.committed_at, snapshot.change), now=now)
        return cls(rows, snapshot, snapshot.stale_reason or rows.fault, conf.PRIMARY)

    def same_as(self, other: Self) -> bool:
        same = self.rows is other.rows and self.snapshot is other.snapshot
        return same and self.stale_reason == other.stale_reason and self.primary == other.primary


class Listing:
    """One snapshot joined with one inventory, and the JSON of the parts that clients requested."""

    def __init__(self, parts: Parts, before: "Listing | None" = None) -> None:
        self.parts = parts
        self._lock = threading.Lock()
        self._full: dict[Kind, Representation] = {}
        self._requested: set[Kind] = set()
        self._filtered: dict[tuple[Kind, Selection], Representation] = {}  # the last used one last
        self.turned_at = self._turned_at(before)
        rows, snapshot, *_ = parts
        self._entries: _Entries
        if before and before.parts.rows is rows and before.parts.snapshot.statuses is snapshot.statuses:
            self._entries = before._entries
        else:
            self._entries = _Entries(rows, snapshot, before._entries if before else None)
        if before:
            # Encode now what clients have requested before, so that no request waits for it.
            for kind in before._requested.copy():
                self._full[kind] = self._represent(kind, EVERYTHING).reuse_or_replace(before._full[kind])

    @property
    def stale(self) -> bool:
        return bool(self.parts.stale_reason)

    @property
    def statuses(self) -> Sequence[ProxyStatus]:
        """The status of each proxy, sorted by name."""
        return self._entries.statuses

    def find(self, id_or_name: str) -> ProxyStatus | None:
        """Return the status of the proxy with this id, or with this name in any case, or None."""
        index = self._entries.index(id_or_name)
        return None if index is None else self._entries.statuses[index]

    def one(self, id_or_name: str) -> Representation | None:
        """Return the JSON of the proxy that :meth:`find` returns, or None."""
        index = self._entries.index(id_or_name)
        return None if index is None else Representation(self._entries.proxies[index], self._changes())

    def select(self, kind: Kind, selection: Selection) -> Representation:
        """Return the JSON of the selected proxies."""
        if selection != EVERYTHING:
            return self._select_some(kind, self._entries.canonical(selection))
        with self._lock:
            if kind not in self._full:
                self._full[kind] = self._represent(kind, selection)
            self._requested.add(kind)
            return self._full[kind]

    def _select_some(self, kind: Kind, selection: Selection) -> Representation:
        key = (kind, selection)
        with self._lock:
            if cached := self._filtered.pop(key, None):
                self._filtered[key] = cached
                return cached
        new = self._represent(kind, selection)
        with self._lock:
            # Many queries have the same result, which is compressed only once.
            kept = (*self._full.values(), *self._filtered.values())
            new = next(filter(new.same_as, kept), new)
            if len(new.body) <= _MAX_KEPT_BYTES:
                self._filtered[key] = new
            while len(self._filtered) > _MAX_KEPT_LISTS or self._kept_bytes() > _MAX_KEPT_BYTES:
                del self._filtered[next(iter(self._filtered))]
        return new

    def _kept_bytes(self) -> int:
        return sum(len(cached.body) for cached in set(self._filtered.values()))

    def _represent(self, kind: Kind, selection: Selection) -> Representation:
        regions, cursor = self._page(kind, selection)
        _, snapshot, stale_reason, _ = self.parts
        if kind == "regions":
            fields = staleness_json(public_stale_reason(snapshot, stale_reason, self._has_fault))
        else:
            fields = staleness_json(stale_reason) | {"snapshot": snapshot_json(snapshot, stale_reason)}
        if selection.limit is not None:
            fields["next_cursor"] = cursor
        # The bytes of the regions, which are encoded already, and the other fields without their brace.
        body = b"".join((b'{"regions":[', b",".join(regions), b"],", encode(fields)[1:]))
        return Representation(body, self._changes())

    def _page(self, kind: Kind, selection: Selection) -> tuple[Sequence[bytes], str | None]:
        """Return the JSON of each selected proxy, and the cursor of the next page or None."""
        entries = self._entries
        texts = entries.regions if kind == "regions" else entries.proxies
        primary = self._primary(selection) if kind == "regions" else []
        if selection == EVERYTHING:
            return [*primary, *texts], None
        indices = entries.select(selection)
        if selection.limit is None:
            return [*primary, *(texts[index] for index in indices)], None
        limit = selection.limit - len(primary)
        found = list(islice(indices, limit + 1))
        page = [*primary, *(texts[index] for index in found[:limit])]
        if len(found) <= limit:
            return page, None
        return page, cursor_after(entries.key(found[limit - 1])) if limit else PRIMARY_CURSOR

    def _primary(self, selection: Selection) -> list[bytes]:
        """Return the JSON of the primary region if it is selected. It precedes all proxies."""
        primary = self.parts.primary
        if primary is None or selection.after is not None:
            return []
        is_selected = selection.healthy is not False and selection.text in _search_text(primary)
        return [encode(region_json(primary, healthy=True))] if is_selected else []

    @property
    def _has_fault(self) -> bool:
        return bool(self.parts.snapshot.fault or self.parts.rows.fault)

    def _turned_at(self, before: "Listing | None") -> datetime | None:
        """Return the time at which the data turned stale, or current again, or the reason changed."""
        if before and before.parts.stale_reason == self.parts.stale_reason:
            return before.turned_at
        if self.stale and not self._has_fault and not (before and before.stale):
            return self.parts.snapshot.stale_at
        return datetime.now(UTC) if before or self._has_fault else None

    def _changes(self) -> tuple[datetime | None, ...]:
        """Return the times of the last changes. Data that turns stale is a change, too."""
        return self.parts.snapshot.committed_at, self.parts.rows.changed_at, self.turned_at


class _Fragment:
    """The JSON of a proxy without its status. A round changes it only if ``healthy`` changes."""

    __slots__ = ("healthy", "name", "proxy", "public", "region", "row")

    def __init__(self, status: ProxyStatus) -> None:
        self.proxy = status.proxy
        self.healthy = status.healthy
        self.public = public_values(status.proxy)
        self.name = self.public.name.lower()
        # Encoded once, and cut where the values of the row begin. A string in JSON has no bare quotes.
        text = encode(region_json(self.public, status.healthy) | row_json(self.public))
        end = text.index(b',"created_at":')
        self.region, self.row = text[:end] + b"}", text[end:]


class _Entries:
    """The proxies of a listing and their JSON, as lists sorted by name in lower case."""

    def __init__(self, rows: Inventory, snapshot: Snapshot, before: Self | None) -> None:
        fragments = before._fragments if before else {}
        self.statuses: list[ProxyStatus] = []
        self.names: list[str] = []
        self.regions: list[bytes] = []
        self._fragments: dict[UUID, _Fragment] = {}
        self._marks = rows.marks
        for proxy in rows.proxies:
            status = health.join(proxy, snapshot.statuses.get(proxy.id))
            fragment = fragments.get(proxy.id)
            if not fragment or fragment.proxy is not proxy or fragment.healthy != status.healthy:
                fragment = _Fragment(status)
            self._fragments[proxy.id] = fragment
            self.statuses.append(status)
            self.names.append(fragment.name)
            self.regions.append(fragment.region)

    @LazyProperty
    def proxies(self) -> list[bytes]:
        """The JSON of each proxy with all details: fragments joined at their braces, to encode them once."""
        marks, marked = self._marks, self._marks.ids
        return [
            b"".join(
                (
                    fragment.region[:-1],
                    b',"status":',
                    encode(status_json(status, marks if id in marked else None)),
                    fragment.row,
                )
            )
            for status, (id, fragment) in zip(self.statuses, self._fragments.items(), strict=True)
        ]

    @LazyProperty
    def search_texts(self) -> list[str]:
        return [_search_text(fragment.public) for fragment in self._fragments.values()]

    @LazyProperty
    def label_sets(self) -> list[frozenset[tuple[str, str]]]:
        return [
            frozenset((key.lower(), value.lower()) for key, value in status.proxy.labels.items())
            for status in self.statuses
        ]

    def canonical(self, selection: Selection) -> Selection:
        """Return the same selection for each cursor of the same page, whatever key the cursor has."""
        if selection.after is None:
            return selection
        begin = self.first_after(selection.after)
        return replace(selection, after=self.key(begin - 1) if begin else "")

    def select(self, selection: Selection) -> Iterator[int]:
        """Return the indices of the selected proxies, lazily, because a page needs only the first ones."""
        indices: Iterable[int] = range(self.first_after(selection.after or ""), len(self.names))
        if text := selection.text:
            search_texts = self.search_texts
            indices = (index for index in indices if text in search_texts[index])
        if labels := selection.labels:
            label_sets = self.label_sets
            indices = (index for index in indices if labels <= label_sets[index])
        if chosen := selection.statuses:
            indices = (index for index in indices if self.statuses[index].status in chosen)
        if selection.healthy is not None:
            indices = (index for index in indices if self.statuses[index].healthy is selection.healthy)
        return iter(indices)

    @LazyProperty
    def _by_id(self) -> dict[UUID, int]:
        return {id: index for index, id in enumerate(self._fragments)}

    @LazyProperty
    def _by_name(self) -> dict[str, int]:
        exact = [fragment.public.name for fragment in self._fragments.values()]
        return {name: index for names in (self.names, exact) for index, name in enumerate(names)}

    def key(self, index: int) -> str:
        """Return the place of a proxy in the order of all: the lower-case name, and the id.

        Some databases let names differ only in the case of letters other than A to Z.
        """
        return f"{self.names[index]}\t{self.statuses[index].proxy.id}"

    def first_after(self, key: str) -> int:
        """Return the index of the first proxy after this key, whose proxy may be gone."""
        index = bisect_left(self.names, key.partition("\t")[0])
        while index < len(self.names) and self.key(index) <= key:
            index += 1
        return index

    def index(self, id_or_name: str) -> int | None:
        try:
            index = self._by_id.get(UUID(id_or_name))
        except ValueError:
            index = None
        # An id takes precedence over a name that looks like it, and an exact name over one in another case.
        if index is None:
            index = self._by_name.get(id_or_name, self._by_name.get(id_or_name.lower()))
        return index


def _search_text(proxy: Proxy | Primary) -> str:
    """Return the values to search, which every user may read, one per line so that no match spans two."""
    return f"{proxy.name}\n{proxy.display_name}\n{proxy.url}".casefold()


_listings = PerProcess[SharedCopy["Listing"]](SharedCopy)

# Drops this process's listing, for tests.
forget = _listings.reset

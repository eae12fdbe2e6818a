"""What is known of proxies, as frozen values. Pure Python: no Django, no I/O."""

from __future__ import annotations

import enum
import json
import re
import time
from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NoReturn, Self, TypeVar
from uuid import UUID

K = TypeVar("K")
V = TypeVar("V")

MAX_ITEMS = 50
MAX_ITEM_LENGTH = 1_000
MAX_BRACKETS = 4_096

_WHITE_SPACE = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]+")
# C0 and C1 controls, the marks that turn text around, and lone surrogates, which UTF-8 cannot carry.
_UNWANTED = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Status(enum.StrEnum):
    """The judgement on a proxy. ``number`` is its value in metrics."""

    OK = "ok"
    UNHEALTHY = "unhealthy"
    UNREACHABLE = "unreachable"
    UNREGISTERED = "unregistered"
    UNKNOWN = "unknown"

    @property
    def number(self) -> int:
        return _NUMBERS[self]


_NUMBERS = {
    Status.UNKNOWN: -3,
    Status.UNREACHABLE: -2,
    Status.UNHEALTHY: -1,
    Status.UNREGISTERED: 0,
    Status.OK: 1,
}


class Reason(enum.StrEnum):
    """Why a proxy is not ``ok``; ``NONE``, the empty string, where the status says it all."""

    NONE = ""
    INVALID_URL = "invalid_url"
    BLOCKED = "blocked"
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"
    STATUS_CODE = "status_code"
    TRUNCATED = "truncated"
    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    BAD_REPORT = "bad_report"
    REPORT_ERRORS = "report_errors"
    INTERNAL = "internal"


# To look one up takes a tenth of the time that a call of its class takes; the call says what is wrong.
_STATUSES: dict[str, Status] = {status.value: status for status in Status}
_REASONS: dict[str, Reason] = {reason.value: reason for reason in Reason}


class BadReport(Exception):
    """A body that is no health report: ``reason`` is ``not_json`` or ``bad_report``.

    ``beginning`` is that of a body that is not JSON.
    """

    def __init__(self, reason: Reason, message: str, beginning: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.beginning = beginning


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What a proxy says of itself: at most 50 items a list, 1,000 characters an item, no controls."""

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, errors: Sequence[str] = (), warnings: Sequence[str] = ()) -> Self:
        """A report of texts from anywhere, made safe to keep and to show; what is cut is marked."""
        return cls(_clean_items(errors), _clean_items(warnings))

    @classmethod
    def parse(cls, body: bytes, warnings: Sequence[str] = ()) -> Self:
        """The report in the body of a response, behind ``warnings`` of ours.

        Raises :class:`BadReport` if there is none.
        """
        beginning = body.strip()[:60].decode(errors="replace")
        try:
            text = body.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise BadReport(Reason.NOT_JSON, "the body is not UTF-8", beginning) from None
        del body  # while the text is taken apart, there is no room for it
        if not text.strip():
            raise BadReport(Reason.NOT_JSON, "the body is empty")
        if text.count("[") + text.count("{") > MAX_BRACKETS:
            # Depth, and empty lists, cost much more memory than they take room.
            raise BadReport(Reason.BAD_REPORT, "the JSON is nested too deeply, or has too many parts")
        try:
            # Numbers have no place in a report; converting one of a million digits would only cost.
            document = json.loads(
                text,
                object_pairs_hook=_Object,
                parse_int=_ignore,
                parse_float=_ignore,
                parse_constant=_refuse_constant,
            )
        except RecursionError:
            raise BadReport(
                Reason.BAD_REPORT, "the JSON is nested too deeply, or has too many parts"
            ) from None
        except ValueError as error:
            raise BadReport(Reason.NOT_JSON, f"the body is not JSON ({error})", beginning) from None
        if not isinstance(document, _Object):
            raise BadReport(Reason.BAD_REPORT, "the JSON is not an object")
        own = document.texts("warnings")
        return cls.of(document.texts("errors"), [*warnings, *own] if warnings else own)


_EMPTY_REPORT = HealthReport()


class _Object(list[tuple[str, Any]]):
    """A JSON object as its pairs, so that no repeated key is lost."""

    __slots__ = ()

    def texts(self, key: str) -> list[str]:
        found: list[str] = []
        for name, value in self:
            if name.lower() != key or value is None:
                continue
            if (
                isinstance(value, _Object)
                or not isinstance(value, list)
                or not all(isinstance(item, str) for item in value)
            ):
                raise BadReport(Reason.BAD_REPORT, f'"{key}" is not a list of strings')
            # Two lists under one key are both heard: no error may hide behind a second key.
            found = [*found, *value] if found else value
        return found


def _ignore(digits: str) -> float:
    return 0.0


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _clean_items(items: Sequence[str]) -> tuple[str, ...]:
    if len(items) <= MAX_ITEMS:
        return tuple(_clean_item(item) for item in items)
    kept = MAX_ITEMS - 1
    return (*(_clean_item(item) for item in items[:kept]), f"… and {len(items) - kept:,} more")


def _clean_item(item: str) -> str:
    text = clean(item)
    return "(empty)" if text.isspace() or not text else text  # a blank line explains nothing


def clean(text: str, length: int = MAX_ITEM_LENGTH) -> str:
    """``text`` on one line, without control characters, ``length`` characters at most; a cut ends in …."""
    cut = text[: 8 * length]  # a megabyte of controls is not worth a look
    result = _UNWANTED.sub("", _WHITE_SPACE.sub(" ", cut))
    if len(result) > length or len(cut) < len(text):
        result = result[: length - 1] + "…"
    return result


@dataclass(frozen=True, slots=True)
class Proxy:
    """The values of a ``WorkspaceProxy`` row at one moment."""

    id: UUID
    name: str
    display_name: str
    icon: str
    url: str
    wildcard_hostname: str
    version: str
    deleted: bool
    created_at: datetime
    updated_at: datetime

    def to_json(self) -> dict[str, Any]:
        return {
            "id": str(self.id),
            "name": self.name,
            "display_name": self.display_name,
            "icon": self.icon,
            "url": self.url,
            "wildcard_hostname": self.wildcard_hostname,
            "version": self.version,
            "deleted": self.deleted,
            "created_at": rfc3339(self.created_at),
            "updated_at": rfc3339(self.updated_at),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            UUID(data["id"]),
            data["name"],
            data["display_name"],
            data["icon"],
            data["url"],
            data["wildcard_hostname"],
            data["version"],
            data["deleted"],
            datetime.fromisoformat(data["created_at"]),
            datetime.fromisoformat(data["updated_at"]),
        )


# What there is in a judgement.
JUDGEMENT = ("proxy_host", "status", "reason", "errors", "warnings", "latency", "tls_expires_at")


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    """One judgement on one proxy.

    ``proxy`` holds the row's values when it was checked, ``proxy_host`` the ``host[:port]`` of its
    URL (empty without one). ``latency`` is the seconds from the start of the probe to its
    judgement, None if no response came. ``tls_expires_at`` is when its certificate ends, None if
    there was none to see. ``checked_at`` is None only if ``status`` is ``unknown``.
    """

    proxy: Proxy
    proxy_host: str
    status: Status
    reason: Reason = Reason.NONE
    report: HealthReport = _EMPTY_REPORT
    checked_at: datetime | None = None
    latency: float | None = None
    tls_expires_at: datetime | None = None

    @property
    def healthy(self) -> bool:
        return self.status is Status.OK

    def judgement(self) -> dict[str, Any]:
        """What the probe found out and nothing else, as JSON without what is empty: it has to travel."""
        found = {
            "proxy_host": self.proxy_host,
            "status": self.status.value,
            "reason": self.reason.value,
            "errors": self.report.errors,
            "warnings": self.report.warnings,
            "latency": self.latency,
            "tls_expires_at": self.tls_expires_at and rfc3339(self.tls_expires_at),
        }
        return {key: value for key, value in found.items() if value not in ("", (), None)}

    @classmethod
    def from_judgement(cls, proxy: Proxy, checked_at: datetime | None, data: Mapping[str, Any]) -> Self:
        """The status that :meth:`judgement` was made of; there may be more in ``data``."""
        return cls.judged(proxy, checked_at, *map(data.get, JUDGEMENT))

    @classmethod
    def judged(
        cls,
        proxy: Proxy,
        checked_at: datetime | None,
        proxy_host: str | None,
        status: Any,
        reason: Any,
        errors: Sequence[str] | None,
        warnings: Sequence[str] | None,
        latency: float | None,
        tls_expires_at: str | None,
    ) -> Self:
        """As :meth:`from_judgement`, of the values of ``JUDGEMENT``, None where there is none."""
        return cls(
            proxy,
            proxy_host or "",
            _STATUSES.get(status) or Status(status),
            _REASONS.get(reason) or Reason(reason) if reason else Reason.NONE,
            HealthReport(tuple(errors or ()), tuple(warnings or ())) if errors or warnings else _EMPTY_REPORT,
            checked_at,
            latency,
            moment(tls_expires_at) if tls_expires_at else None,
        )


class FrozenMapping(Mapping[K, V]):
    """A mapping that cannot be written to, and unlike ``MappingProxyType`` can be copied and pickled."""

    __slots__ = ("_data",)

    def __init__(self, data: Mapping[K, V] | None = None) -> None:
        self._data = dict(data or {})

    def __getitem__(self, key: K) -> V:
        return self._data[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return repr(self._data)

    # The views of a dictionary are faster than those that Mapping makes, and read-only too.

    def keys(self) -> KeysView[K]:
        return self._data.keys()

    def values(self) -> ValuesView[V]:
        return self._data.values()

    def items(self) -> ItemsView[K, V]:
        return self._data.items()


class FrozenList(list[V]):
    """A list that cannot be written to. What copy and pickle make of it is a plain list."""

    __slots__ = ()

    def _refuse(self, *args: Any, **options: Any) -> NoReturn:
        raise TypeError("this list is shared and cannot be written to: make a copy of it with list()")

    append = extend = insert = remove = pop = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


@dataclass(frozen=True)
class RoundHistogram:
    """How long rounds took, since the snapshot began: ``counts[i]`` rounds of at most ``BOUNDS[i]``
    seconds and above the bound before, the last one of those above all bounds; ``sum`` in seconds."""

    BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)

    counts: tuple[int, ...] = (0,) * 12
    sum: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {"counts": self.counts, "sum": self.sum}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises ``ValueError`` for one of other bounds."""
        counts = tuple(map(int, data["counts"]))
        if len(counts) != len(cls.BOUNDS) + 1:
            raise ValueError(f"{len(counts)} counts are not of these bounds")
        return cls(counts, float(data["sum"]))

    def observe(self, seconds: float) -> RoundHistogram:
        """This histogram and one round more."""
        place = sum(bound < seconds for bound in self.BOUNDS)
        counts = tuple(count + (i == place) for i, count in enumerate(self.counts))
        return RoundHistogram(counts, self.sum + seconds)


_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Snapshot:
    """The statuses of all active proxies, as of one commit.

    ``checked_at``, ``duration`` (seconds) and ``stale_at`` are of the last full round, None before
    the first. ``number`` goes up by one with every commit; ``committed_at`` is when the last one was made,
    by the clock of the worker that made it. ``outcomes`` counts rounds by how they ended, and ticks that
    were ``skipped``; ``error`` says why the last one that was not a success was none, at ``error_at``.
    ``offline`` says that the workers' own network is gone, if it is. ``fault`` says why this is only the
    last copy that a process has, when it could not get a newer one.

    ``fresh_until`` is when it turns stale on this machine's monotonic clock, which nobody can set back;
    None where only ``stale_at`` can tell.
    """

    statuses: Mapping[UUID, ProxyStatus] = field(default_factory=FrozenMapping)
    checked_at: datetime | None = None
    duration: float | None = None
    number: int = 0
    stale_at: datetime | None = None
    committed_at: datetime | None = None
    rounds: RoundHistogram = RoundHistogram()
    outcomes: Mapping[str, int] = field(default_factory=FrozenMapping)
    error: str = ""
    error_at: datetime | None = None
    offline: str = ""
    fault: str = ""
    fresh_until: float | None = field(default=None, compare=False, repr=False)

    @property
    def stale(self) -> bool:
        """Whether the snapshot is older than it should be, now."""
        return bool(self.stale_reason)

    @property
    def stale_reason(self) -> str:
        """What is wrong, as a sentence; empty if the snapshot is not stale."""
        if self.fault:
            return self.fault
        if self.offline:
            return self.offline
        if self.checked_at is None or self.stale_at is None:
            return "No round has ended yet. Are the Celery worker and beat running?"
        if self.fresh_until is None:
            late = datetime.now(UTC) >= self.stale_at
        else:
            late = time.monotonic() >= self.fresh_until
        if late:
            return (
                f"No round has ended since the one of {self.checked_at:%Y-%m-%d %H:%M:%S} UTC. "
                "Are the Celery worker and beat running, and does the last round's error say more?"
            )
        return ""

    @cached_property
    def hosts(self) -> FrozenList[str]:
        """``host[:port]`` of every registered proxy, each once, in the order of their names."""
        return self._hosts(healthy_only=False)

    @cached_property
    def healthy_hosts(self) -> FrozenList[str]:
        """``host[:port]`` of every proxy that is ``ok``."""
        return self._hosts(healthy_only=True)

    def _hosts(self, *, healthy_only: bool) -> FrozenList[str]:
        return FrozenList(
            dict.fromkeys(
                status.proxy_host
                for status in self.statuses.values()
                if status.proxy_host and (status.healthy or not healthy_only)
            )
        )

    @cached_property
    def by_name(self) -> Mapping[str, ProxyStatus]:
        """The statuses by name, in lower case.

        A name that went from one proxy to another is that of both until both were checked; it has the status
        of the later check.
        """
        by_check = sorted(self.statuses.values(), key=lambda status: status.checked_at or _NEVER)
        return FrozenMapping({status.proxy.name.lower(): status for status in by_check})


def rfc3339(moment: datetime) -> str:
    """``moment`` (aware) as RFC 3339 in UTC, to the microsecond."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def moment(text: str | None) -> datetime | None:
    """What :func:`rfc3339` was given."""
    return None if text is None else datetime.fromisoformat(text)

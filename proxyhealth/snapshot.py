"""Proxies, their statuses and the snapshot of all statuses, as frozen values."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice, repeat
from operator import attrgetter
from typing import Any, Self
from uuid import UUID

from proxyhealth.report import EMPTY_REPORT, HealthReport
from proxyhealth.statuses import Reason, Status
from proxyhealth.texts import MAX_LABELS, is_label
from proxyhealth.utils import FrozenList, FrozenMapping, LazyProperty, parse_rfc3339, rfc3339

_STATUSES = {status.value: status for status in Status}
_REASONS = {reason.value: reason for reason in Reason}

_NEVER = datetime.fromtimestamp(0, UTC)

NO_LABELS: FrozenMapping[str, str] = FrozenMapping()


def labels_of(value: Any) -> FrozenMapping[str, str]:
    """Return the labels of a row or of JSON, without those that are not valid: they skipped validation."""
    if not value or not isinstance(value, dict):
        return NO_LABELS
    valid = ((key, text) for key, text in value.items() if is_label(key) and is_label(text))
    return FrozenMapping(dict(islice(valid, MAX_LABELS)))


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
    labels: Mapping[str, str] = NO_LABELS

    def to_json(self) -> dict[str, Any]:
        data = {name: getattr(self, name) for name in Proxy.__slots__[:-1]} | {
            "id": str(self.id),
            "created_at": rfc3339(self.created_at),
            "updated_at": rfc3339(self.updated_at),
        }
        if self.labels is not NO_LABELS:  # most proxies of most fleets have none
            data["labels"] = dict(self.labels.items())
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the proxy of ``data``, with defaults for all but ``id`` and ``name``.

        Raise ``ValueError``, ``LookupError``, ``TypeError`` or ``AttributeError`` for other data.
        """
        texts = (
            data["name"],
            data.get("display_name", ""),
            data.get("icon", ""),
            data.get("url", ""),
            data.get("wildcard_hostname", ""),
            data.get("version", ""),
        )
        "".join(texts)  # raises TypeError if one is no text, and takes the least time
        return cls(
            UUID(data["id"]),
            *texts,
            bool(data.get("deleted", False)),
            parse_rfc3339(data.get("created_at")) or _NEVER,
            parse_rfc3339(data.get("updated_at")) or _NEVER,
            labels_of(labels) if (labels := data.get("labels")) else NO_LABELS,
        )


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    """The confirmed status of a proxy, with the last probe that found it; or the result of one probe.

    ``proxy`` holds the values of the row at the time of the probe. ``proxy_host`` is the ``host[:port]`` of
    its URL, or empty. ``latency`` is the duration of the probe in seconds, or None without a response.
    ``tls_expires_at`` is None without a certificate. ``checked_at`` is None before the first probe.

    The status began at ``since``, with the first probe that found it; None if that is not known. ``raw`` is
    the result of the last probe if it contradicts the status, and is not confirmed yet, else None.
    ``course`` is that of the probe, for its trace, in the process that probed, and None elsewhere.
    """

    proxy: Proxy
    proxy_host: str
    status: Status
    reason: Reason = Reason.NONE
    report: HealthReport = EMPTY_REPORT
    checked_at: datetime | None = None
    latency: float | None = None
    tls_expires_at: datetime | None = None
    since: datetime | None = None
    raw: "ProxyStatus | None" = None
    course: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    @property
    def healthy(self) -> bool:
        return self.status is Status.OK

    @property
    def last(self) -> "ProxyStatus":
        """The result of the last probe: this object, unless that result is not confirmed yet."""
        return self.raw or self

    def judgement(self) -> dict[str, Any]:
        """Return the fields of ``JUDGEMENT`` as JSON, without empty ones, to keep it small."""
        return {
            name: value
            for name, (_, value_of) in JUDGEMENT.items()
            if (value := value_of(self)) not in ("", (), None)
        }

    @classmethod
    def from_judgements(
        cls, proxies: Sequence[Proxy], checked_at: datetime | None, rows: Sequence[Mapping[str, Any]]
    ) -> Iterator[Self]:
        """Yield the status of each proxy from its judgement in ``rows``, as :meth:`from_columns` does."""
        columns = {name: [row.get(name) for row in rows] for name in JUDGEMENT}
        return cls.from_columns(proxies, repeat(checked_at), columns)

    @classmethod
    def from_columns(
        cls,
        proxies: Sequence[Proxy],
        checked_at: Iterable[datetime | None],
        columns: Mapping[str, Sequence[Any]],
    ) -> Iterator[Self]:
        """Yield a status for each proxy. Each column has one value, or None, per proxy.

        All columns may be missing. A status of a newer version becomes ``unknown``, and a reason of a newer
        version ``NONE``, so that the other statuses can be read.
        """
        nothing = [None] * len(proxies)
        column = {name: columns.get(name, nothing) for name in JUDGEMENT}
        reports = [
            HealthReport.stored(errors or (), warnings or ()) if errors or warnings else EMPTY_REPORT
            for errors, warnings in zip(column["errors"], column["warnings"], strict=True)
        ]
        return map(
            cls,
            proxies,
            [host or "" for host in column["proxy_host"]],
            convert(column["status"], lambda status: _STATUSES.get(status, Status.UNKNOWN)),
            convert(column["reason"], lambda reason: _REASONS.get(reason, Reason.NONE)),
            reports,
            checked_at,
            column["latency"],
            convert(column["tls_expires_at"], parse_rfc3339),
            convert(columns.get("since", nothing), parse_rfc3339),
        )


# The fields of a judgement in JSON, in order: the type of each, and the function that gets it.
JUDGEMENT: dict[str, tuple[type, Callable[[ProxyStatus], Any]]] = {
    "proxy_host": (str, attrgetter("proxy_host")),
    "status": (str, attrgetter("status.value")),
    "reason": (str, attrgetter("reason.value")),
    "errors": (list, attrgetter("report.errors")),
    "warnings": (list, attrgetter("report.warnings")),
    "latency": (float, attrgetter("latency")),
    "tls_expires_at": (str, lambda status: status.tls_expires_at and rfc3339(status.tls_expires_at)),
}


def convert(column: Iterable[Any], function: Callable[[Any], Any]) -> Iterator[Any]:
    """Convert a column, calling ``function`` once for each distinct value."""
    converted = {value: function(value) for value in set(column)}
    return map(converted.__getitem__, column)


def finite(value: Any) -> float:
    """Return ``value`` in seconds as a float. Raise ``ValueError`` if JSON cannot have it in milliseconds."""
    number = float(value)
    if not math.isfinite(1000 * number):
        raise ValueError(f"{number} is not finite")
    return number


@dataclass(frozen=True)
class RoundHistogram:
    """The durations of all full rounds.

    ``counts[i]`` rounds took at most ``BOUNDS[i]`` seconds and more than the bound before; the last count is
    of rounds above all bounds. ``sum`` is in seconds.
    """

    BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)

    counts: tuple[int, ...] = (0,) * 12
    sum: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {"counts": self.counts, "sum": self.sum}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the histogram of ``data``, or an empty one if it has the bounds of another version.

        Raise ``ValueError`` for numbers that metrics cannot have.
        """
        counts = tuple(map(int, data.get("counts", cls.counts)))
        if max(map(abs, counts), default=0) >= 1 << 63:
            raise ValueError("a count is too large")
        if len(counts) != len(cls.BOUNDS) + 1:
            return cls()
        return cls(counts, finite(data.get("sum", 0)))

    def observe(self, seconds: float) -> Self:
        """Return this histogram with one more round."""
        place = sum(bound < seconds for bound in self.BOUNDS)
        counts = tuple(count + (i == place) for i, count in enumerate(self.counts))
        return replace(self, counts=counts, sum=self.sum + seconds)


@dataclass(frozen=True)
class Snapshot:
    """The statuses of all active proxies, as of one commit.

    ``checked_at``, ``duration`` (seconds) and ``stale_at`` belong to the last full round and are None before
    the first. ``number`` goes up by one with each commit. ``committed_at`` is the time of the last commit by
    the clock of its worker. ``outcomes`` counts rounds by outcome, and ``skipped`` ticks. ``error`` is the
    error of the last round that had one, ``error_at`` its time.

    ``offline`` is an error while the workers' own network is down. ``fault`` is the reason why this is only
    the last copy of the process, or what the database knows. ``refusal`` is the reason why the cache refuses
    to store a round that is overdue. ``fresh_until`` is ``stale_at`` on the monotonic clock, which nobody can
    set back; it is None if only ``stale_at`` is available. ``change`` differs after each request to check
    saved or deleted rows.
    ``watched`` is the time for which rounds had watched the proxies until ``checked_at``, in microseconds, or
    None if that is not known. ``result_tokens`` are those of ``tokens``, in order.
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
    refusal: str = ""
    watched: int | None = None
    fresh_until: float | None = field(default=None, compare=False, repr=False)
    change: str = field(default="", compare=False, repr=False)
    result_tokens: Sequence[int] = field(default=(), compare=False, repr=False)

    @LazyProperty
    def token(self) -> int:
        """The highest token of a result, or 0. It grows with each result, also after Redis was emptied."""
        return max(self.result_tokens, default=0)

    @LazyProperty
    def tokens(self) -> Mapping[UUID, int]:
        """The token of the check or round that probed each proxy last."""
        return FrozenMapping(dict(zip(self.statuses, self.result_tokens, strict=False)))

    @property
    def age(self) -> float | None:
        """The seconds since the last full round began, or None before the first."""
        if self.checked_at is None:
            return None
        if self.fresh_until is None or self.stale_at is None:
            return (datetime.now(UTC) - self.checked_at).total_seconds()
        return (self.stale_at - self.checked_at).total_seconds() - (self.fresh_until - time.monotonic())

    @property
    def stale(self) -> bool:
        """True if the statuses may be out of date."""
        return bool(self.stale_reason)

    @property
    def stale_reason(self) -> str:
        """The reason why the snapshot is stale, as a sentence, or an empty string."""
        return self.why_stale(lambda moment: f"{moment:%Y-%m-%d %H:%M:%S} UTC")

    def why_stale(self, clock: Callable[[datetime], str], culprit: str = "") -> str:
        """Return ``stale_reason`` with times as ``clock`` shows them.

        ``culprit`` are sentences about what is missing, in place of the question for it.
        """
        cause = f"Rounds cannot be stored: {self.refusal}" if self.refusal else ""
        if self.fault or self.offline:
            return f"{self.fault or self.offline} {cause}".rstrip()
        # Failed rounds have ended, too.
        kind = "full round" if self.last_round_failed else "round"
        question = culprit or "Are the Celery worker and beat running?"
        hint = culprit or "Are the Celery worker and beat running, and does the last round's error say more?"
        if self.checked_at is None or self.stale_at is None:
            return f"No {kind} has ended yet. {cause or (hint if self.last_round_failed else question)}"
        if self.fresh_until is None:
            late = datetime.now(UTC) >= self.stale_at
        else:
            late = time.monotonic() >= self.fresh_until
        if late:
            return f"No {kind} has ended since the one of {clock(self.checked_at)}. {cause or hint}"
        return ""

    @property
    def last_round_failed(self) -> bool:
        """True if a round failed or was incomplete after the last full round."""
        return bool(self.error_at and (self.checked_at is None or self.error_at > self.checked_at))

    @LazyProperty
    def hosts(self) -> FrozenList[str]:
        """The ``host[:port]`` of all proxies with a valid URL, each once, in order of the proxies' names."""
        return FrozenList(dict.fromkeys(s.proxy_host for s in self.statuses.values() if s.proxy_host))

    @LazyProperty
    def healthy_hosts(self) -> FrozenList[str]:
        """The ``host[:port]`` of all proxies that are ``ok``."""
        healthy = (s for s in self.statuses.values() if s.healthy)
        return FrozenList(dict.fromkeys(s.proxy_host for s in healthy if s.proxy_host))

    @LazyProperty
    def by_name(self) -> Mapping[str, ProxyStatus]:
        """The statuses by name in lower case.

        When a proxy takes the name of another, both have it until both are checked. The later check wins, by
        the clocks of the workers.
        """
        by_check = sorted(self.statuses.values(), key=lambda status: status.checked_at or _NEVER)
        return FrozenMapping({status.proxy.name.lower(): status for status in by_check})

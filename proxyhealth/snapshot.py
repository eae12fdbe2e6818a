"""What is known of proxies, as frozen values. Pure Python: no Django, no I/O."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Self
from uuid import UUID

from proxyhealth.report import EMPTY_REPORT, HealthReport
from proxyhealth.statuses import Reason, Status
from proxyhealth.utils import FrozenList, FrozenMapping, parse_rfc3339, rfc3339

# To look one up takes a tenth of the time that a call of its class takes; the call says what is wrong.
_STATUSES: dict[str, Status] = {status.value: status for status in Status}
_REASONS: dict[str, Reason] = {reason.value: reason for reason in Reason}


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
    report: HealthReport = EMPTY_REPORT
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
        return cls.from_columns(proxy, checked_at, *map(data.get, JUDGEMENT))

    @classmethod
    def from_columns(
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
            HealthReport(tuple(errors or ()), tuple(warnings or ())) if errors or warnings else EMPTY_REPORT,
            checked_at,
            latency,
            parse_rfc3339(tls_expires_at) if tls_expires_at else None,
        )


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

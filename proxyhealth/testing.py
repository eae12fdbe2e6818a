"""Fake statuses for the tests of other projects. docs/testing.md describes them."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from inspect import getattr_static, isasyncgenfunction, iscoroutinefunction, isfunction, isgeneratorfunction
from types import TracebackType
from typing import Any, Generic, TypeVar
from unittest import TestCase
from uuid import NAMESPACE_DNS, UUID, uuid4, uuid5

from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db.models.signals import post_delete, post_save

from proxyhealth import isolation
from proxyhealth.api import inventory, listing
from proxyhealth.conf import conf
from proxyhealth.models import WorkspaceProxy
from proxyhealth.notifications import backlog, culprit, silences
from proxyhealth.overview import prober
from proxyhealth.readiness import parts
from proxyhealth.report import HealthReport
from proxyhealth.snapshot import Proxy, ProxyStatus, RoundHistogram, Snapshot
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage import counters, deployment, reader
from proxyhealth.texts import is_label
from proxyhealth.utils import FrozenMapping, aware
from proxyhealth.validators import parse_proxy_url

__all__ = ["FakeSnapshot", "FakeStatus", "active_fake", "fake_snapshot", "real_services", "reset"]

T = TypeVar("T", bound=Callable[..., Any])
S = TypeVar("S", bound=isolation.Substitute | None)

logger = logging.getLogger(__name__)

_IN_COROUTINE = "in a coroutine, the rows cannot be read: use 'async with fake_snapshot()'"
_FOREVER = timedelta(days=365)
_DURATION = 0.05  # seconds of a fake round, and of a probe that got a response
_WITHOUT_REASON = (Status.OK, Status.UNREGISTERED, Status.UNKNOWN)
_CONTRADICTIONS = ({Status.OK, Status.UNHEALTHY}, {Status.OK, Status.UNREACHABLE})
_USUAL_REASONS = {Status.UNHEALTHY: Reason.REPORT_ERRORS, Status.UNREACHABLE: Reason.CONNECT}


@dataclass(frozen=True)
class FakeStatus:
    """The status of one proxy, with details. Those that are not given have usual values.

    ``url`` and ``labels`` count only without a row. ``checked_at`` is by default that of the snapshot, and
    ``since``, the time when the status began, is ``checked_at``. ``raw`` is the result of a later probe that
    contradicts the status, and is not confirmed.
    """

    status: str
    reason: str = ""
    errors: Sequence[str] | None = None
    warnings: Sequence[str] = ()
    latency: float | None = None
    checked_at: datetime | None = None
    tls_expires_at: datetime | None = None
    url: str | None = None
    since: datetime | None = None
    raw: "Fake | None" = None
    labels: Mapping[str, str] = FrozenMapping()

    def __post_init__(self) -> None:
        _member(Status, "status", self.status)
        if _member(Reason, "reason", self.reason) and self.status in _WITHOUT_REASON:
            raise ValueError(f"The status {self.status!r} has no reason. Remove {self.reason!r}.")
        if faults := [item for item in self.labels.items() if not all(map(is_label, item))]:
            raise ValueError(f"The label {faults[0]!r} cannot be used. Use short plain texts.")
        if self.raw is not None and {self.status, raw := _fake(self.raw).status} not in _CONTRADICTIONS:
            raise ValueError(
                f"The raw status {raw!r} cannot contradict {self.status!r}. "
                "One of both must be 'ok', and the other 'unhealthy' or 'unreachable'."
            )

    def to_status(self, proxy: Proxy, checked_at: datetime) -> ProxyStatus:
        """Return the status of ``proxy`` in a snapshot of the time ``checked_at``."""
        status = Status(self.status)
        reason = Reason(self.reason) or _USUAL_REASONS.get(status, Reason.NONE)
        errors = [f"{reason} (fake)"] if self.errors is None and reason else self.errors or ()
        responded = status in (Status.OK, Status.UNHEALTHY)
        own_checked_at = aware(self.checked_at) if self.checked_at else checked_at
        return ProxyStatus(
            proxy,
            _host(proxy.url),
            status,
            reason,
            HealthReport.sanitized(errors, self.warnings),
            own_checked_at,
            _DURATION if self.latency is None and responded else self.latency,
            self.tls_expires_at and aware(self.tls_expires_at),
            aware(self.since) if self.since else own_checked_at,
            None if self.raw is None else replace(_fake(self.raw).to_status(proxy, checked_at), since=None),
        )

    def to_proxy(self, name: str, now: datetime) -> Proxy:
        """Return a proxy that stands for a row that does not exist."""
        url = self.url
        if url is None:
            host = name.lower().replace("_", "-")
            url = "" if self.status == Status.UNREGISTERED else f"https://{host}.example.com"
        id = uuid5(NAMESPACE_DNS, f"{name.lower()}.proxyhealth.testing")
        labels = FrozenMapping(self.labels)
        return Proxy(id, name, "", "", url, "", "", False, created_at=now, updated_at=now, labels=labels)


# A status, a status with its reason, or all details.
Fake = str | tuple[str, str] | FakeStatus


def _member(kind: type[Status] | type[Reason], word: str, value: str) -> Status | Reason:
    try:
        return kind(value)
    except ValueError:
        valid = ", ".join(filter(None, kind))
        raise ValueError(f"Unknown {word} {value!r}. Valid: {valid}.") from None


def _host(url: str) -> str:
    try:
        return parse_proxy_url(url).netloc
    except ValueError:
        return ""


class FakeSnapshot:
    """The snapshot that a test reads, and the requests that it makes.

    ``requested_checks`` has a set of ids for each request, or None for a request to check all proxies.
    ``forced_updates`` counts the calls of ``force_update()``.
    """

    def __init__(
        self, fakes: Mapping[str, FakeStatus], stale: bool, stale_reason: str, checked_at: datetime | None
    ) -> None:
        self.requested_checks: list[set[UUID] | None] = []
        self.forced_updates = 0
        self._lock = threading.RLock()
        self._fakes = {name.lower(): fake for name, fake in fakes.items()}
        now, lifetime = datetime.now(UTC), timedelta(seconds=conf.STALE_AFTER)
        begin = aware(checked_at) if checked_at else now - 2 * lifetime if stale else now
        if stale:
            stale_at = min(begin + lifetime, now)
        elif checked_at:
            stale_at = begin + lifetime
        else:
            stale_at = begin + _FOREVER  # also if the test stops in a debugger, or moves the clock
        self.snapshot = Snapshot(
            checked_at=begin,
            duration=_DURATION,
            stale_at=stale_at,
            committed_at=begin,
            rounds=RoundHistogram().observe(_DURATION),
            outcomes=FrozenMapping({"success": 1}),
            fault=stale_reason,
        )
        self._proxies = {name.lower(): fake.to_proxy(name, now) for name, fake in fakes.items()}
        self._known_ids: set[UUID] = set()
        self._rebuild()

    def request_check(self, ids: Iterable[UUID] | None) -> None:
        requested = None if ids is None else set(ids)
        if requested is None or not requested <= self._known_ids:
            self._read_rows()  # such as those of bulk_create(), which sends no signals
        if requested is None or requested:
            self.requested_checks.append(requested)

    def force_update(self) -> Snapshot:
        self.forced_updates += 1
        self._read_rows()
        return self.snapshot

    def begin(self) -> None:
        """Match the statuses with the rows, and with all rows that the test saves."""
        post_save.connect(self._match_saved, sender=WorkspaceProxy)
        post_delete.connect(self._match_deleted, sender=WorkspaceProxy)
        self._read_rows()

    def end(self) -> None:
        post_save.disconnect(self._match_saved, sender=WorkspaceProxy)
        post_delete.disconnect(self._match_deleted, sender=WorkspaceProxy)

    def _match_saved(self, instance: WorkspaceProxy, **kwargs: Any) -> None:
        self._match([instance.as_proxy()])

    def _match_deleted(self, instance: WorkspaceProxy, **kwargs: Any) -> None:
        self._match([replace(instance.as_proxy(), deleted=True)])

    def _read_rows(self) -> None:
        try:
            rows = WorkspaceProxy.objects.primary().active().as_proxies()
        except SynchronousOnlyOperation:
            logger.warning(_IN_COROUTINE)
        except Exception as error:
            logger.debug("the test may not use the database: %s", error)
        else:
            self._match(rows)

    def _match(self, rows: Iterable[Proxy]) -> None:
        with self._lock:
            for row in rows:
                self._known_ids.add(row.id)
                # The row may have had another name before.
                self._proxies = {name: proxy for name, proxy in self._proxies.items() if proxy.id != row.id}
                if row.name.lower() in self._fakes and not row.deleted:
                    self._proxies[row.name.lower()] = row
            self._rebuild()

    def _rebuild(self) -> None:
        begin = self.snapshot.checked_at or datetime.now(UTC)
        statuses = {
            proxy.id: fake.to_status(proxy, begin)
            for name, proxy in sorted(self._proxies.items())
            # A proxy that was not probed yet is not in a snapshot.
            if (fake := self._fakes[name]).status != Status.UNKNOWN
        }
        self.snapshot = replace(
            self.snapshot,
            statuses=FrozenMapping(statuses),
            number=self.snapshot.number + 1,
            change=uuid4().hex,  # nobody keeps JSON of earlier rows
        )


class Scope(Generic[S]):
    """A context manager, also asynchronous, and a decorator of functions, coroutines, and test classes.

    Each use creates another substitute for the cache and the broker.
    """

    def __init__(self, create: Callable[[], S]) -> None:
        self._create = create
        self._entered: list[S] = []

    def __enter__(self) -> S:
        substitute = self._create()
        isolation.enter(substitute)
        self._entered.append(substitute)
        reset()
        if isinstance(substitute, FakeSnapshot):
            substitute.begin()
        return substitute

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        substitute = self._entered.pop()
        if isinstance(substitute, FakeSnapshot):
            substitute.end()
        isolation.leave(substitute)
        reset()

    async def __aenter__(self) -> S:
        # In a thread that may query the database.
        return await sync_to_async(self.__enter__)()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, target: T) -> T:
        """Return ``target``, a function or a class with tests, so that each run is a use of its own."""
        if isinstance(target, type):
            self._decorate_class(target)
            return target
        if isgeneratorfunction(target) or isasyncgenfunction(target):
            raise TypeError(f"{target.__name__}() is a generator. Use a with statement inside of it.")
        decorate = self._decorate_coroutine if iscoroutinefunction(target) else self._decorate
        return decorate(target)  # type: ignore[return-value]  # it has the same parameters

    def _decorate(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with Scope(self._create):
                return function(*args, **kwargs)

        return run

    def _decorate_coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        async def run(*args: Any, **kwargs: Any) -> Any:
            async with Scope(self._create):
                return await function(*args, **kwargs)

        return run

    def _decorate_class(self, cls: type) -> None:
        # The whole run of a TestCase has also setUp and tearDown. debug() is a run for debuggers.
        names = ("run", "debug") if issubclass(cls, TestCase) else tuple(_tests_of(cls))
        if not names:
            raise TypeError(f"{cls.__name__} has no tests: no method begins with 'test'.")
        for name in names:
            setattr(cls, name, self(getattr_static(cls, name)))


def _tests_of(cls: type) -> Iterator[str]:
    return (name for name in dir(cls) if name.startswith("test") and isfunction(getattr_static(cls, name)))


def fake_snapshot(
    statuses: Mapping[str, Fake] | None = None,
    /,
    *,
    stale: bool = False,
    stale_reason: str = "",
    checked_at: datetime | None = None,
    **more: Fake,
) -> Scope[FakeSnapshot]:
    """Return a context manager and decorator, inside which the app has these statuses, by name.

    Inside, nothing reads or writes the cache or the broker. Pass names that are no identifiers, such as
    ``us-east``, in the mapping ``statuses``. ``stale`` makes the snapshot old. With ``stale_reason``, it is
    the last copy after the cache failed. ``checked_at`` is the time of the last round: without it, the
    snapshot stays current. Raise ``ValueError`` for an unknown status or reason.
    """
    if statuses is not None and not isinstance(statuses, Mapping):
        raise TypeError("fake_snapshot() takes statuses by name. As a decorator: @fake_snapshot(paris='ok').")
    fakes = {name: _fake(value) for name, value in {**(statuses or {}), **more}.items()}
    return Scope(partial(FakeSnapshot, fakes, stale, stale_reason, checked_at))


def _fake(value: Fake) -> FakeStatus:
    if isinstance(value, FakeStatus):
        return value
    if isinstance(value, str):
        return FakeStatus(value)
    if not isinstance(value, tuple | list):
        raise TypeError(
            f"a status is a text, a tuple such as ('unreachable', 'timeout'), or FakeStatus: {value!r}"
        )
    return FakeStatus(*value)


def active_fake() -> FakeSnapshot:
    """Return the innermost active fake, for tests with the decorator. Raise ``LookupError`` outside."""
    fake = isolation.current()
    if not isinstance(fake, FakeSnapshot):
        raise LookupError("No fake snapshot is active. Use fake_snapshot().")
    return fake


def real_services() -> Scope[None]:
    """Return a context manager and decorator, inside which a test uses the real cache and broker.

    The test must be sure that its settings do not lead to those of a live deployment.
    """
    return Scope(lambda: None)


def reset() -> None:
    """Forget everything that this process has read, such as after a test emptied its real cache."""
    for module in (
        counters,
        reader,
        deployment,
        inventory,
        listing,
        parts,
        silences,
        backlog,
        culprit,
        prober,
    ):
        module.forget()

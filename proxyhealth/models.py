import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import fields, replace
from datetime import datetime
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from django.conf import settings
from django.db import DataError, connections, models, router
from django.db.models.functions import Lower

from proxyhealth.display import name_of
from proxyhealth.snapshot import Proxy
from proxyhealth.statuses import Status
from proxyhealth.texts import clean, is_suspicious
from proxyhealth.utils import aware
from proxyhealth.validators import (
    MAX_URL_LENGTH,
    validate_icon,
    validate_proxy_name,
    validate_proxy_url,
    validate_text,
    validate_wildcard_hostname,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

_COLUMNS = tuple(field.name for field in fields(Proxy))
_TIMES = ("created_at", "updated_at")
# Characters of all texts of a row, below which a long one needs no cut.
_USUAL_LENGTH = 512
_texts_of = attrgetter("name", "display_name", "icon", "url", "wildcard_hostname", "version")


class Confirmed(NamedTuple):
    """The last transition of a proxy, and the token of the last full round in the history, or None."""

    proxy: Proxy
    status: str
    reason: str
    report: Any
    at: datetime
    round_token: int | None


class WorkspaceProxyQuerySet(models.QuerySet["WorkspaceProxy"]):
    def primary(self) -> Self:
        """Use the database for writes, as all our own queries do: a replica may lag behind a saved row."""
        return self.using(router.db_for_write(self.model))

    def active(self) -> Self:
        """Return the proxies that are not deleted. A round probes these."""
        return self.filter(deleted=False)

    def as_proxies(self) -> list[Proxy]:
        """Return the rows, sorted by name, as values that threads can share. Omit and log unreadable ones."""
        proxies, errors = _read_rows(self.order_by(Lower("name")).values(*_COLUMNS), _to_proxies)
        for error in errors:
            logger.error("a row of the proxies cannot be read, correct or delete it: %r", error)
        return proxies

    def with_last_transition(self) -> tuple[list[Confirmed], list[Exception]]:
        """Return the last transition of each proxy that has one, and the errors of unreadable rows.

        It is one query, which looks up the transitions of each proxy in an index. A join would let PostgreSQL
        read all of them.
        """
        last = Transition.objects.filter(proxy_uuid=models.OuterRef("pk")).order_by("-token")
        names = ("after", "reason", "report", "at")
        columns = {f"last_{name}": models.Subquery(last.values(name)[:1]) for name in names}
        columns["round"] = models.Subquery(Watch.objects.values("token")[:1])
        rows = self.order_by().annotate(**columns)
        return _read_rows(rows.values_list(*_COLUMNS, *columns), _to_confirmed)


class WorkspaceProxy(models.Model):
    """An HTTP relay in another region, to which the control plane sends users."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.SlugField(
        max_length=64,
        # The unique constraint below already has an index, which ignores case.
        db_index=False,
        validators=[validate_proxy_name],
        help_text="Letters, digits, hyphens and underscores. Unique among the proxies that are not deleted, "
        "without regard to case.",
    )
    display_name = models.CharField(
        max_length=128,
        blank=True,
        validators=[validate_text],
        help_text="What users see. The name, if empty.",
    )
    icon = models.CharField(
        max_length=512,
        blank=True,
        validators=[validate_icon],
        help_text="URL or path of an icon, for example /emojis/1f1eb.png",
    )
    url = models.CharField(
        "URL",
        max_length=512,
        blank=True,
        validators=[validate_proxy_url],
        help_text="http:// or https://, a host, and a port if need be. Empty until the proxy has registered.",
    )
    wildcard_hostname = models.CharField(
        max_length=255,
        blank=True,
        validators=[validate_wildcard_hostname],
        help_text="Host name under which the proxy serves applications, for example *.paris.example.com",
    )
    version = models.CharField(max_length=64, blank=True, validators=[validate_text])
    deleted = models.BooleanField(
        default=False, help_text="A deleted proxy is neither probed nor shown, but kept."
    )
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects: ClassVar[WorkspaceProxyQuerySet] = WorkspaceProxyQuerySet.as_manager()  # type: ignore[assignment]

    class Meta:
        verbose_name = "workspace proxy"
        verbose_name_plural = "workspace proxies"
        ordering: ClassVar[list[str]] = ["name"]
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                Lower("name"),
                # A new proxy may take the name of a deleted one.
                condition=models.Q(deleted=False),
                name="proxyhealth_unique_name",
                violation_error_message="There is already a proxy with this name "
                "(upper and lower case are the same).",
            ),
        ]

    def __str__(self) -> str:
        # Django puts this into titles, headings, messages, and the log of changes.
        return name_of(self)

    def as_proxy(self) -> Proxy:
        """Return the values of the row, as :meth:`WorkspaceProxyQuerySet.as_proxies` does."""
        row = {column: getattr(self, column) for column in _COLUMNS}
        proxy = Proxy(**(row if settings.USE_TZ else _with_time_zone(row)))
        with suppress(TypeError):  # bytes, which raw SQL has stored
            return _bounded(proxy)
        return proxy


class TransitionQuerySet(models.QuerySet["Transition"]):
    def primary(self) -> Self:
        """Use the database for writes, as :meth:`WorkspaceProxyQuerySet.primary` does."""
        return self.using(router.db_for_write(self.model))

    def last_of_each(self, proxies: Iterable[uuid.UUID] | None = None) -> Self:
        """Return the last transition of each of these proxies, or of all that ever had one."""
        rows = self if proxies is None else self.filter(proxy_uuid__in=list(proxies))
        last = rows.order_by().values("proxy_uuid").annotate(last=models.Max("pk")).values("last")
        return self.filter(pk__in=last)


# The statuses that count for the uptime. Nobody can probe a proxy that has not registered.
KNOWN_STATUSES = (Status.OK.value, Status.UNHEALTHY.value, Status.UNREACHABLE.value)


class ChangeField(models.SmallIntegerField):  # type: ignore[type-arg]  # generic for type checkers only
    """1 for a transition to one of ``statuses`` from another status, -1 for the opposite, else None.

    It is set on each save. A generated column would do, but SQLite reads the whole row for it.
    """

    def __init__(self, *args: Any, statuses: Collection[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._statuses = statuses

    def deconstruct(self) -> Any:
        name, _, args, kwargs = super().deconstruct()
        return name, "django.db.models.SmallIntegerField", args, kwargs  # for migrations

    def pre_save(self, model_instance: Any, add: bool) -> int | None:
        was, is_now = (status in self._statuses for status in (model_instance.before, model_instance.after))
        value = (is_now - was) or None
        setattr(model_instance, self.attname, value)
        return value


class Transition(models.Model):
    """One change of the confirmed status of a proxy.

    ``before`` and ``after`` are statuses: ``unknown`` before the first one, ``removed`` after a deletion. The
    new status began ``at``, with the first probe that found it. ``token`` is that of the commit.
    ``watched`` is the time that rounds had watched the proxies until then, in microseconds: it stands still
    in gaps, so that differences are times that are known. ``ok_change`` is 1 if the proxy became ``ok``, -1
    if it no longer is, else None. ``known_change`` is the same for the ``KNOWN_STATUSES``.
    """

    REMOVED = "removed"

    proxy = models.ForeignKey(
        WorkspaceProxy, models.SET_NULL, null=True, editable=False, related_name="transitions"
    )
    proxy_uuid = models.UUIDField("id of the proxy", editable=False)
    proxy_name = models.CharField("name of the proxy", max_length=65, editable=False)
    before = models.CharField(max_length=32, editable=False)
    after = models.CharField(max_length=32, editable=False)
    at = models.DateTimeField(editable=False)
    reason = models.CharField(max_length=32, blank=True, editable=False)
    report = models.JSONField(default=dict, editable=False)
    token = models.BigIntegerField(editable=False)
    watched = models.BigIntegerField(editable=False)
    ok_change = ChangeField(statuses=[Status.OK.value], null=True, editable=False)
    known_change = ChangeField(statuses=KNOWN_STATUSES, null=True, editable=False)
    # For the signal. None in ``signal_due_at`` means that nothing is left to send.
    signal_due_at = models.DateTimeField(null=True, editable=False)
    signal_attempts = models.PositiveSmallIntegerField(default=0, editable=False)

    objects: ClassVar[TransitionQuerySet] = TransitionQuerySet.as_manager()  # type: ignore[assignment]

    class Meta:
        ordering: ClassVar[list[str]] = ["-token", "-pk"]
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["proxy_uuid", "token"], name="proxyhealth_one_transition"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["token"], name="proxyhealth_transition_token"),
            # For the uptime, which reads no other columns.
            models.Index(
                fields=["proxy_uuid", "watched", "token", "ok_change"],
                condition=models.Q(ok_change__isnull=False),
                name="proxyhealth_transition_ok",
            ),
            models.Index(
                fields=["proxy_uuid", "watched", "token", "known_change"],
                condition=models.Q(known_change__isnull=False),
                name="proxyhealth_transition_known",
            ),
            models.Index(
                fields=["signal_due_at"],
                condition=models.Q(signal_due_at__isnull=False),
                name="proxyhealth_transition_signal",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.proxy_name}: {self.before} → {self.after}"


class Gap(models.Model):
    """A time in which the statuses were stale, so that nobody knew them.

    ``token`` is that of the full round that ended it.
    """

    class Why(models.TextChoices):
        NO_ROUNDS = "no_rounds", "no rounds"
        OFFLINE = "offline", "prober offline"
        REDIS_LOST = "redis_lost", "Redis lost its data"

    start = models.DateTimeField(editable=False)
    end = models.DateTimeField(editable=False)
    why = models.CharField("reason", max_length=16, choices=Why.choices, editable=False)
    token = models.BigIntegerField(unique=True, editable=False)
    microseconds = models.BigIntegerField("duration in microseconds", editable=False)

    class Meta:
        ordering: ClassVar[list[str]] = ["-token"]

    def __str__(self) -> str:
        return f"{self.start:%Y-%m-%d %H:%M:%S} to {self.end:%Y-%m-%d %H:%M:%S}: {self.get_why_display()}"


class Watch(models.Model):
    """The last full round in the history, as a single row with the key 1.

    ``token`` is that of the round, and so its time in microseconds since 1970. ``watched`` is as in
    :class:`Transition`. After Redis was emptied, rounds continue from here.
    """

    token = models.BigIntegerField(editable=False)
    watched = models.BigIntegerField(editable=False)

    class Meta:
        verbose_name_plural = "watches"

    def __str__(self) -> str:
        return str(self.token)


def close_if_broken(alias: str) -> None:
    """Close the connection to a database after an error that broke it, so that the next query opens another.

    Leave it open in a transaction, which its owner has to end: Django would close a connection that works.
    """
    if not connections[alias].in_atomic_block:
        connections[alias].close_if_unusable_or_obsolete()


def is_of_a_row(error: Exception) -> bool:
    """Return True if a value in the database caused ``error``, not the connection.

    Raw SQL and other programs can write such values: into SQLite everything, into PostgreSQL ``infinity``.
    """
    kinds = (ValueError, TypeError, AttributeError, OverflowError, DataError)
    return isinstance(error, kinds) or "decode to UTF-8" in str(error)


def _read_rows(rows: Any, parse: Callable[[Any], list[T]]) -> tuple[list[T], list[Exception]]:
    """Return the parsed rows, and the errors of those that cannot be read."""
    try:
        return parse(rows), []
    except Exception as error:
        if not is_of_a_row(error):
            raise
    errors: list[Exception] = []
    rows = rows.order_by(*rows.query.order_by, "pk")  # so that no slice has a row of another one
    return list(_readable_rows(rows, parse, 0, rows.count(), errors)), errors


def _readable_rows(
    rows: Any, parse: Callable[[Any], list[T]], begin: int, end: int, errors: list[Exception]
) -> Iterator[T]:
    # Halves that can be read need one query, so that a few bad rows among many cost few queries.
    try:
        yield from parse(rows[begin:end])
    except Exception as error:
        if not is_of_a_row(error):
            raise
        if end - begin <= 1:
            errors.append(error)
            return
        middle = (begin + end) // 2
        yield from _readable_rows(rows, parse, begin, middle, errors)
        yield from _readable_rows(rows, parse, middle, end, errors)


def _to_confirmed(rows: Iterable[tuple[Any, ...]]) -> list[Confirmed]:
    end = len(_COLUMNS)
    rows = [row for row in rows if row[end]]
    proxies = _to_proxies(dict(zip(_COLUMNS, row, strict=False)) for row in rows)
    found = [Confirmed(proxy, *row[end:]) for proxy, row in zip(proxies, rows, strict=True)]
    for each in found:
        _ = each.at.tzinfo  # as in _to_proxies()
    return found


def _to_proxies(rows: Iterable[dict[str, Any]]) -> list[Proxy]:
    proxies = [Proxy(**row) for row in (rows if settings.USE_TZ else map(_with_time_zone, rows))]
    for proxy in proxies:
        _ = proxy.created_at.tzinfo, proxy.updated_at.tzinfo  # raises AttributeError for None
    return list(map(_bounded, proxies))


def _bounded(proxy: Proxy) -> Proxy:
    """Return ``proxy`` without invisible characters in the texts that users see, and with no text too long.

    Rows may have skipped validation. What is cut of a name or a URL stays too long to be valid. Raise
    ``TypeError`` for bytes.
    """
    length = len("".join(_texts_of(proxy)))
    if length <= _USUAL_LENGTH and not is_suspicious(proxy.display_name + proxy.version):
        return proxy
    return replace(
        proxy,
        name=proxy.name[:65],
        display_name=clean(proxy.display_name, 128).strip(),
        icon=proxy.icon if len(proxy.icon) <= 512 else "",
        url=proxy.url[: MAX_URL_LENGTH + 1],
        wildcard_hostname=proxy.wildcard_hostname[:256],
        version=clean(proxy.version, 64).strip(),
    )


def _with_time_zone(row: dict[str, Any]) -> dict[str, Any]:
    # An unsaved row has no times yet.
    return row | {name: aware(row[name]) for name in _TIMES if row[name]}

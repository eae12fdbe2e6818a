"""The history: each change of a status, the times of which nothing is known, and the last round."""

import uuid
from collections.abc import Collection, Iterable
from typing import Any, ClassVar, Self

from django.db import models, router
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from proxyhealth.statuses import Status


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
        "proxyhealth.WorkspaceProxy", models.SET_NULL, null=True, editable=False, related_name="transitions"
    )
    proxy_uuid = models.UUIDField(_("id of the proxy"), editable=False)
    proxy_name = models.CharField(_("name of the proxy"), max_length=65, editable=False)
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
        NO_ROUNDS = "no_rounds", _("no rounds")
        OFFLINE = "offline", _("prober offline")
        REDIS_LOST = "redis_lost", _("Redis lost its data")

    start = models.DateTimeField(editable=False)
    end = models.DateTimeField(editable=False)
    why = models.CharField(_("reason"), max_length=16, choices=Why.choices, editable=False)
    token = models.BigIntegerField(unique=True, editable=False)
    microseconds = models.BigIntegerField(_("duration in microseconds"), editable=False)

    class Meta:
        ordering: ClassVar[list[str]] = ["-token"]

    def __str__(self) -> str:
        values = {"start": self.start, "end": self.end, "why": self.get_why_display()}
        return gettext("{start:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S}: {why}").format(**values)


class Watch(models.Model):
    """The last full round in the history, as a single row with the key 1.

    ``token`` is that of the round, and so its time in microseconds since 1970. ``watched`` is as in
    :class:`Transition`. After Redis was emptied, rounds continue from here.
    """

    token = models.BigIntegerField(editable=False)
    watched = models.BigIntegerField(editable=False)

    class Meta:
        verbose_name_plural = _("watches")

    def __str__(self) -> str:
        return str(self.token)

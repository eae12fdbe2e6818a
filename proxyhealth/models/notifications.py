"""Telling people: channels, deliveries, silences, and the alarms about the prober itself."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models, router
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from proxyhealth.models.outages import BAD_STATUSES
from proxyhealth.selectors import validate_selectors
from proxyhealth.targets import new_secret, validate_target
from proxyhealth.utils import aware
from proxyhealth.validators import validate_text, validate_time_zone, validate_weekdays

# The arithmetic of times ends with the year 9999.
_LAST_YEAR = 9_998


def default_statuses() -> list[str]:
    return list(BAD_STATUSES)


class Channel(models.Model):
    """A place where people are told: the recipients of a mail, a webhook, or an address of Apprise.

    ``proxies`` has selectors, one on each line (:mod:`proxyhealth.selectors`); empty means all proxies.
    ``statuses`` are those whose begin is told. The end of what was told is always told. A channel is told
    nothing that happened before ``listens_since``.
    """

    class Kind(models.TextChoices):
        EMAIL = "email", _("Email")
        WEBHOOK = "webhook", _("Webhook")
        APPRISE = "apprise", _("Apprise")

    name = models.CharField(max_length=64, unique=True)
    kind = models.CharField(max_length=16, choices=Kind.choices)
    target = models.TextField(max_length=4000)
    secret = models.CharField(max_length=128, blank=True)
    proxies = models.TextField(blank=True, max_length=10_000, validators=[validate_selectors])
    statuses = models.JSONField(default=default_statuses)
    delay = models.PositiveIntegerField(default=0)  # seconds
    remind_every = models.PositiveIntegerField(default=0)  # seconds; 0: never
    enabled = models.BooleanField(default=True)
    listens_since = models.DateTimeField(editable=False)
    # After a message, the channel rests until then.
    rests_until = models.DateTimeField(null=True, editable=False)
    # One process at a time sends to a channel. Its claim expires, because the process may be killed.
    claim = models.UUIDField(null=True, editable=False)
    claimed_until = models.DateTimeField(null=True, editable=False)
    # The last answer of the other side.
    last_success_at = models.DateTimeField(null=True, editable=False)
    last_failure_at = models.DateTimeField(null=True, editable=False)
    last_error = models.TextField(blank=True, editable=False)
    # The deliveries that were sent, and those that were given up, since the channel was made.
    sent_count = models.PositiveBigIntegerField(default=0, editable=False)
    failed_count = models.PositiveBigIntegerField(default=0, editable=False)

    class Meta:
        ordering: ClassVar[list[str]] = ["name"]

    def __str__(self) -> str:
        return self.name

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the channel. A webhook without a secret gets one."""
        if self.kind == self.Kind.WEBHOOK and not self.secret.strip():
            self.secret = new_secret()
        super().save(*args, **kwargs)

    def clean_fields(self, exclude: Collection[str] | None = None) -> None:
        """Validate the fields, and the target by its kind."""
        super().clean_fields(exclude=exclude)
        if "target" not in (exclude or ()):
            try:
                validate_target(self.kind, self.target)
            except ValidationError as error:
                raise ValidationError({"target": error}) from None

    @property
    def is_failing(self) -> bool:
        """True if the last answer of the other side was a failure."""
        failure, success = self.last_failure_at, self.last_success_at
        return failure is not None and (success is None or failure > success)


class Alarm(models.Model):
    """A fault of the prober itself, while no proxy's status can be believed."""

    class Kind(models.TextChoices):
        NO_ROUNDS = "no_rounds", _("no rounds")
        OFFLINE = "offline", _("prober offline")
        REDIS = "redis", _("Redis out of reach")

    kind = models.CharField(max_length=16, choices=Kind.choices, editable=False)
    detail = models.TextField(blank=True, editable=False)
    began_at = models.DateTimeField(editable=False)
    ended_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        ordering: ClassVar[list[str]] = ["-began_at", "-pk"]
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                fields=["kind"],
                condition=models.Q(ended_at__isnull=True),
                name="proxyhealth_one_open_alarm",
            ),
        ]

    def __str__(self) -> str:
        return self.get_kind_display()


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    def primary(self) -> Self:
        """Use the database for writes, as :meth:`WorkspaceProxyQuerySet.primary` does."""
        return self.using(router.db_for_write(self.model))

    def pending(self) -> Self:
        # Both say the same. SQLite uses no index whose condition has a value.
        return self.filter(state=Delivery.State.PENDING, next_attempt_at__isnull=False)


class Delivery(models.Model):
    """One change, reminder or alarm, on its way to one channel.

    It has either a ``transition`` or an ``alarm``. ``number`` counts the reminders of a transition from 1; 0
    is the change itself. For an alarm, 0 is its begin and 1 its end. Deliveries with the same ``message``
    are sent together, and again together under that id if the first attempt may have failed. The message
    was made at ``message_at``. ``flaps`` is the number of changes in the last minutes if it says that the
    proxy is flapping, else None. ``next_attempt_at`` is None unless the state is ``pending``. ``error`` is
    also the reason of the state ``dropped``.
    """

    class State(models.TextChoices):
        PENDING = "pending", _("pending")
        SENT = "sent", _("sent")
        FAILED = "failed", _("failed")
        DROPPED = "dropped", _("not needed")  # the outage was too short, or silenced

    channel = models.ForeignKey(Channel, models.CASCADE, editable=False, related_name="deliveries")
    transition = models.ForeignKey(
        "proxyhealth.Transition", models.CASCADE, null=True, editable=False, related_name="deliveries"
    )
    outage = models.ForeignKey(
        "proxyhealth.Outage", models.SET_NULL, null=True, editable=False, related_name="deliveries"
    )
    alarm = models.ForeignKey(Alarm, models.CASCADE, null=True, editable=False, related_name="deliveries")
    number = models.PositiveIntegerField(default=0, editable=False)
    state = models.CharField(max_length=16, choices=State.choices, default=State.PENDING, editable=False)
    attempts = models.PositiveIntegerField(default=0, editable=False)
    next_attempt_at = models.DateTimeField(null=True, editable=False)
    error = models.TextField(blank=True, editable=False)
    message = models.UUIDField(null=True, editable=False)
    message_at = models.DateTimeField(null=True, editable=False)
    flaps = models.PositiveIntegerField(null=True, editable=False)
    created_at = models.DateTimeField(editable=False)
    sent_at = models.DateTimeField(null=True, editable=False)

    objects: ClassVar[DeliveryQuerySet] = DeliveryQuerySet.as_manager()  # type: ignore[assignment]

    class Meta:
        ordering: ClassVar[list[str]] = ["-pk"]
        verbose_name_plural = _("deliveries")
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                fields=["channel", "transition", "number"],
                condition=models.Q(transition__isnull=False),
                name="proxyhealth_one_delivery",
            ),
            models.UniqueConstraint(
                fields=["channel", "alarm", "number"],
                condition=models.Q(alarm__isnull=False),
                name="proxyhealth_one_alarm_delivery",
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(
                fields=["channel", "next_attempt_at"],
                condition=models.Q(next_attempt_at__isnull=False),
                name="proxyhealth_delivery_due",
            ),
            models.Index(fields=["channel", "outage"], name="proxyhealth_delivery_outage"),
            # For the filters of the list.
            models.Index(fields=["state", "id"], name="proxyhealth_delivery_state"),
            models.Index(fields=["created_at"], name="proxyhealth_delivery_created"),
            models.Index(
                fields=["channel"],
                condition=models.Q(flaps__isnull=False),
                name="proxyhealth_delivery_flaps",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.channel}: {self.transition or self.alarm}"


class Silence(models.Model):
    """A time in which chosen proxies tell nobody. They are probed all the same.

    It is in force from ``starts`` until ``ends``. With ``weekdays`` (0 is Monday), it is in force only on
    these days, from ``begin`` until ``end`` by the clocks of ``time_zone``; an ``end`` that is not later
    than ``begin`` is on the next day. Without ``begin`` and ``end``, it is in force all day.
    """

    MAX_LENGTH = timedelta(days=366)

    proxies = models.TextField(
        max_length=10_000,
        validators=[validate_selectors],
        help_text=_(
            "One pattern a line: of names, such as paris or eu-*, or of a label, such as region:eu. "
            "A proxy is silenced if one line matches it. * matches all proxies."
        ),
    )
    starts = models.DateTimeField()
    ends = models.DateTimeField()
    weekdays = models.JSONField(default=list, blank=True, validators=[validate_weekdays])
    begin = models.TimeField(_("from"), null=True, blank=True)
    end = models.TimeField(_("until"), null=True, blank=True)
    time_zone = models.CharField(max_length=64, blank=True, validators=[validate_time_zone])
    reason = models.CharField(max_length=255, validators=[validate_text])
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, editable=False, related_name="+"
    )

    class Meta:
        ordering: ClassVar[list[str]] = ["-starts", "-pk"]

    def __str__(self) -> str:
        return self.reason

    def clean(self) -> None:
        faults = self._faults_of_times() | self._faults_of_repetition()
        if faults:
            raise ValidationError(faults)

    def _faults_of_times(self) -> dict[str, str]:
        given: list[Any] = [self.starts, self.ends]
        if not all(isinstance(moment, datetime) for moment in given):
            return {}  # an error of its own
        starts, ends = map(aware, given)
        if ends <= starts:
            return {"ends": gettext("It must end after it starts.")}
        if ends - starts > self.MAX_LENGTH:
            return {"ends": gettext("A silence lasts a year at most. Choose an earlier end.")}
        if ends.year > _LAST_YEAR:
            return {"ends": gettext("The year must be %(year)s at most.") % {"year": _LAST_YEAR}}
        return {}

    def _faults_of_repetition(self) -> dict[str, str]:
        times: dict[str, Any] = {"begin": self.begin, "end": self.end}
        missing = [name for name, value in times.items() if value is None]
        if not self.weekdays:
            chosen = sorted(times.keys() - missing)
            return dict.fromkeys(chosen, gettext("A time needs weekdays. Choose them, or empty it."))
        faults = {}
        if len(missing) == 1:
            faults[missing[0]] = gettext("Give both times, or none for whole days.")
        if not self.time_zone:
            faults["time_zone"] = gettext("Weekdays need a time zone, for example Europe/Paris.")
        return faults

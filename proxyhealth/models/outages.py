"""The outages: the times in which a proxy was not usable."""

from typing import Any, ClassVar, Self

from django.conf import settings
from django.db import models, router
from django.utils.translation import gettext_lazy as _

from proxyhealth.statuses import Status

BAD_STATUSES = (Status.UNHEALTHY.value, Status.UNREACHABLE.value)


class OutageQuerySet(models.QuerySet["Outage"]):
    def primary(self) -> Self:
        """Use the database for writes, as :meth:`WorkspaceProxyQuerySet.primary` does."""
        return self.using(router.db_for_write(self.model))

    def open(self) -> Self:
        """Return the outages that have not ended."""
        return self.filter(ended_at__isnull=True)


class Outage(models.Model):
    """A time in which a proxy was ``unhealthy`` or ``unreachable``, from one transition to another.

    ``status`` and ``reason`` are those of its last transition into a bad status. ``token`` is that of the
    transition that began it, and ``end_token`` that of the one that ended it. An acknowledgement belongs to
    an open outage: it says that a person takes care of it.
    """

    proxy = models.ForeignKey(
        "proxyhealth.WorkspaceProxy", models.SET_NULL, null=True, editable=False, related_name="outages"
    )
    proxy_uuid = models.UUIDField(_("id of the proxy"), editable=False)
    proxy_name = models.CharField(_("name of the proxy"), max_length=65, editable=False)
    status = models.CharField(max_length=32, editable=False)
    reason = models.CharField(max_length=32, blank=True, editable=False)
    began_at = models.DateTimeField(_("began"), editable=False)
    ended_at = models.DateTimeField(_("ended"), null=True, editable=False)
    token = models.BigIntegerField(editable=False)
    end_token = models.BigIntegerField(null=True, editable=False)
    acknowledged_at = models.DateTimeField(_("acknowledged"), null=True, editable=False)
    acknowledged_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, editable=False, related_name="+"
    )
    # The name stays when the user is deleted.
    acknowledged_name = models.CharField(_("acknowledged by"), max_length=150, blank=True, editable=False)
    note = models.TextField(blank=True, max_length=2000)

    objects: ClassVar[OutageQuerySet] = OutageQuerySet.as_manager()  # type: ignore[assignment]

    class Meta:
        ordering: ClassVar[list[str]] = ["-token", "-pk"]
        permissions: ClassVar[Any] = [("acknowledge_outage", "Can acknowledge outages")]
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["proxy_uuid", "token"], name="proxyhealth_one_outage"),
            models.UniqueConstraint(
                fields=["proxy_uuid"],
                condition=models.Q(ended_at__isnull=True),
                name="proxyhealth_one_open_outage",
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["token"], name="proxyhealth_outage_token"),
            models.Index(
                fields=["token"],
                condition=models.Q(ended_at__isnull=True),
                name="proxyhealth_outage_open",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.proxy_name}: {self.status}"

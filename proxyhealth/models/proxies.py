"""The proxies, and their values that threads can share."""

import json
import logging
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields, replace
from datetime import datetime
from functools import lru_cache
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple, Self

from django.conf import settings
from django.db import models, router
from django.db.models.functions import Cast, Lower
from django.utils.translation import gettext_lazy as _

from proxyhealth.display import name_of
from proxyhealth.models.history import Transition, Watch
from proxyhealth.models.rows import read_rows
from proxyhealth.snapshot import NO_LABELS, Proxy, labels_of
from proxyhealth.texts import clean, is_suspicious
from proxyhealth.utils import FrozenMapping, aware
from proxyhealth.validators import (
    MAX_URL_LENGTH,
    validate_icon,
    validate_labels,
    validate_proxy_name,
    validate_proxy_url,
    validate_text,
    validate_wildcard_hostname,
)

logger = logging.getLogger(__name__)

# The labels as text: almost all rows have one of a few texts, and need not be parsed.
_LABELS_TEXT = Cast("labels", models.TextField())
_COLUMNS = tuple(field.name if field.name != "labels" else "labels_text" for field in fields(Proxy))
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
        rows = self.order_by(Lower("name")).annotate(labels_text=_LABELS_TEXT)
        proxies, errors = read_rows(rows.values_list(*_COLUMNS), _to_proxies)
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
        rows = self.order_by().annotate(labels_text=_LABELS_TEXT, **columns)
        return read_rows(rows.values_list(*_COLUMNS, *columns), _to_confirmed)


class WorkspaceProxy(models.Model):
    """An HTTP relay in another region, to which the control plane sends users."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.SlugField(
        max_length=64,
        # The unique constraint below already has an index, which ignores case.
        db_index=False,
        validators=[validate_proxy_name],
        help_text=_(
            "Letters, digits, hyphens and underscores. Unique among the proxies that are not deleted, "
            "without regard to case."
        ),
    )
    display_name = models.CharField(
        max_length=128,
        blank=True,
        validators=[validate_text],
        help_text=_("What users see. The name, if empty."),
    )
    icon = models.CharField(
        max_length=512,
        blank=True,
        validators=[validate_icon],
        help_text=_("URL or path of an icon, for example /emojis/1f1eb.png"),
    )
    url = models.CharField(
        _("URL"),
        max_length=512,
        blank=True,
        validators=[validate_proxy_url],
        help_text=_(
            "http:// or https://, a host, and a port if need be. Empty until the proxy has registered."
        ),
    )
    wildcard_hostname = models.CharField(
        max_length=255,
        blank=True,
        validators=[validate_wildcard_hostname],
        help_text=_("Host name under which the proxy serves applications, for example *.paris.example.com"),
    )
    version = models.CharField(max_length=64, blank=True, validators=[validate_text])
    labels = models.JSONField(
        default=dict,
        blank=True,
        # During an upgrade, processes of the version before insert rows without labels.
        db_default=models.Value({}, models.JSONField()),
        validators=[validate_labels],
        help_text=_("Labels by which channels, silences and filters choose proxies, for example region: eu"),
    )
    deleted = models.BooleanField(
        default=False, help_text=_("A deleted proxy is neither probed nor shown, but kept.")
    )
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects: ClassVar[WorkspaceProxyQuerySet] = WorkspaceProxyQuerySet.as_manager()  # type: ignore[assignment]

    class Meta:
        verbose_name = _("workspace proxy")
        verbose_name_plural = _("workspace proxies")
        ordering: ClassVar[list[str]] = ["name"]
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                Lower("name"),
                # A new proxy may take the name of a deleted one.
                condition=models.Q(deleted=False),
                name="proxyhealth_unique_name",
                violation_error_message=_(
                    "There is already a proxy with this name (upper and lower case are the same)."
                ),
            ),
        ]

    def __str__(self) -> str:
        # Django puts this into titles, headings, messages, and the log of changes.
        return name_of(self)

    def as_proxy(self) -> Proxy:
        """Return the values of the row, as :meth:`WorkspaceProxyQuerySet.as_proxies` does."""
        row = {field.name: getattr(self, field.name) for field in fields(Proxy)}
        row["labels"] = labels_of(row["labels"])
        if not settings.USE_TZ:  # an unsaved row has no times yet
            row |= {name: aware(row[name]) for name in ("created_at", "updated_at") if row[name]}
        proxy = Proxy(**row)
        with suppress(TypeError):  # bytes, which raw SQL has stored
            return _bounded(proxy)
        return proxy


def _to_confirmed(rows: Iterable[tuple[Any, ...]]) -> list[Confirmed]:
    end = len(_COLUMNS)
    rows = [row for row in rows if row[end]]
    proxies = _to_proxies(row[:end] for row in rows)
    found = [Confirmed(proxy, *row[end:]) for proxy, row in zip(proxies, rows, strict=True)]
    for each in found:
        _ = each.at.tzinfo  # as in _to_proxies()
    return found


def _to_proxies(rows: Iterable[tuple[Any, ...]]) -> list[Proxy]:
    proxies = [
        Proxy(*(*values, _parse_labels(labels) if labels != "{}" else NO_LABELS)) for *values, labels in rows
    ]
    for proxy in proxies:
        _ = proxy.created_at.tzinfo, proxy.updated_at.tzinfo  # raises AttributeError for None
    if not settings.USE_TZ:
        proxies = list(map(_with_time_zone, proxies))
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


@lru_cache(maxsize=1_024)
def _parse_labels(text: str) -> FrozenMapping[str, str]:
    try:
        return labels_of(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return NO_LABELS


def _with_time_zone(proxy: Proxy) -> Proxy:
    return replace(proxy, created_at=aware(proxy.created_at), updated_at=aware(proxy.updated_at))

"""The names of models and fields in the language of the reader.

Django derives a name from that of the class or the field. To declare the same name as translatable would need
a migration in which nothing changes.
"""

from collections.abc import Iterable
from typing import Any

from django.db import models
from django.utils.translation import gettext_lazy, gettext_noop

# The derived names that pages show.
NAMES = frozenset(
    (
        *(gettext_noop("alarm"), gettext_noop("alarms"), gettext_noop("channel"), gettext_noop("channels")),
        *(gettext_noop("delivery"), gettext_noop("gap"), gettext_noop("gaps"), gettext_noop("outage")),
        *(gettext_noop("outages"), gettext_noop("silence"), gettext_noop("silences")),
        *(gettext_noop("transition"), gettext_noop("transitions"), gettext_noop("watch")),
        *(
            gettext_noop("id"),
            gettext_noop("name"),
            gettext_noop("display name"),
            gettext_noop("icon"),
            gettext_noop("version"),
        ),
        *(gettext_noop("wildcard hostname"), gettext_noop("labels"), gettext_noop("deleted")),
        *(
            gettext_noop("created at"),
            gettext_noop("updated at"),
            gettext_noop("created by"),
            gettext_noop("ended at"),
        ),
        *(gettext_noop("reason"), gettext_noop("status"), gettext_noop("note"), gettext_noop("kind")),
        *(gettext_noop("detail"), gettext_noop("attempts"), gettext_noop("message")),
        *(gettext_noop("target"), gettext_noop("secret"), gettext_noop("proxies"), gettext_noop("statuses")),
        *(gettext_noop("delay"), gettext_noop("remind every"), gettext_noop("enabled")),
        *(gettext_noop("starts"), gettext_noop("ends"), gettext_noop("weekdays"), gettext_noop("time zone")),
    )
)


def translate_names(kinds: Iterable[type[models.Model]]) -> None:
    """Make the derived names of these models, and of their fields, translatable."""
    for kind in kinds:
        options = kind._meta
        for name in ("verbose_name", "verbose_name_plural"):
            if name not in options.original_attrs:
                _translate(options, name)
        for field in options.fields:
            if isinstance(field.verbose_name, str):  # those that are declared are translatable
                _translate(field, "verbose_name")


def _translate(holder: Any, name: str) -> None:
    text = str(getattr(holder, name))
    if text in NAMES:
        setattr(holder, name, gettext_lazy(text))

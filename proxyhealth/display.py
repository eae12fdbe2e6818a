"""Times, numbers, and names as the pages show them: in the current time zone and the current language."""

from datetime import datetime
from typing import Any

from django.utils.formats import number_format
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.timezone import localtime

from proxyhealth.conf import conf
from proxyhealth.statuses import Status
from proxyhealth.texts import clean
from proxyhealth.utils import aware

# The sections of the runbook about proxies with these statuses.
STATUS_ALERTS: dict[str, str] = {Status.UNHEALTHY: "proxyunhealthy", Status.UNREACHABLE: "proxyunreachable"}


def clock(moment: datetime) -> str:
    """Return ``moment`` in the current time zone, also without ``USE_TZ``, with the name of the zone."""
    local = _local(moment)
    zone = local.tzname() or ""
    if zone.startswith(("+", "-")):  # many zones have only an offset
        zone = f"UTC{zone}"
    return f"{local:%Y-%m-%d %H:%M:%S} {zone}"


def time_tag(moment: datetime, *, with_age: bool = True) -> SafeString:
    """Return ``moment`` as HTML. The script of the health page adds the age, except to a time to come."""
    return format_html(
        '<time dir="ltr" datetime="{}"{}>{}</time>',
        _local(moment).isoformat(timespec="seconds"),
        mark_safe(" data-ago") if with_age else "",
        clock(moment),
    )


def _local(moment: datetime) -> datetime:
    moment = aware(moment)
    try:
        return localtime(moment)
    except OverflowError:  # the first or the last year of all
        return moment


def number(value: float, decimals: int = 0) -> str:
    """Return a number with the separators of the current language."""
    return number_format(round(value, decimals), decimals, force_grouping=True)


def quantity(value: float, unit: str, decimals: int = 0) -> SafeString:
    """Return a number and its unit as HTML that also a text from right to left shows in this order."""
    return format_html('<bdi class="proxyhealth-number" dir="ltr">{} {}</bdi>', number(value, decimals), unit)


def name_of(proxy: Any) -> str:
    """Return the text by which people know ``proxy``, a row or a ``Proxy``: visible, and on one line."""
    texts = (clean(text, 128).strip() for text in (proxy.display_name, proxy.name))
    return next(filter(None, texts), str(proxy.id))


def runbook_url(alert: str) -> str:
    """Return the address of the runbook's section about an alert, or '' if there is none."""
    return f"{conf.RUNBOOK_URL}#proxyhealth{alert}" if conf.RUNBOOK_URL and alert else ""

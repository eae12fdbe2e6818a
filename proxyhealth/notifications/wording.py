"""The words of messages: lengths of time, names, and the reasons in plain words."""

import unicodedata
from collections.abc import Mapping
from datetime import datetime

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from proxyhealth.display import clock, number
from proxyhealth.notifications.messages import Change
from proxyhealth.statuses import Reason
from proxyhealth.texts import clean
from proxyhealth.utils import aware

MAX_NAME = 128
MAX_REASON = 64

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))

# Each sentence says what was found, and what to do. docs/statuses.md has more.
REASONS: Mapping[str, str | Promise] = {
    Reason.INVALID_URL: gettext_lazy(
        "The URL of the proxy is not valid, so nothing is sent to it. Correct the URL in the admin."
    ),
    Reason.BLOCKED: gettext_lazy(
        "ADDRESS_DENY or ADDRESS_ALLOW refuses the address of the proxy, or of a redirect. Find out if a DNS "
        "record or a redirect has changed; if the address is correct, change these settings."
    ),
    Reason.DNS: gettext_lazy(
        "The name of the host cannot be resolved. Check the DNS records, and the resolver of the worker's "
        "host."
    ),
    Reason.CONNECT: gettext_lazy(
        "The connection was refused or reset, or there is no route. Check that the proxy runs, and that "
        "firewalls allow connections from the workers."
    ),
    Reason.TLS: gettext_lazy(
        "The certificate is not valid for all browsers, or the TLS handshake failed. Renew or correct the "
        "certificate that the message names."
    ),
    Reason.TIMEOUT: gettext_lazy(
        "The response was not complete within the time limit. Check the load of the proxy, and the packet "
        "loss of its network."
    ),
    Reason.PROTOCOL: gettext_lazy(
        "The response is not valid HTTP/1, or there are too many redirects. Check the port in the URL, and "
        "what listens there."
    ),
    Reason.STATUS_CODE: gettext_lazy(
        "The proxy responded with a status code other than 200. Read the log of the proxy, or of the load "
        "balancer or firewall in front of it."
    ),
    Reason.TRUNCATED: gettext_lazy(
        "The report was cut off. Look for a load balancer, or for a crash, between the proxy and the worker."
    ),
    Reason.TOO_LARGE: gettext_lazy(
        "The response is too large for a health report. Check the URL: it is probably that of another page."
    ),
    Reason.NOT_JSON: gettext_lazy(
        "The response is not JSON. Check the URL, and look for a sign-in page in front of the proxy."
    ),
    Reason.BAD_REPORT: gettext_lazy(
        "The response is JSON, but not a health report. Check that the versions of the proxy and of the "
        "control plane match."
    ),
    Reason.REPORT_ERRORS: gettext_lazy("The proxy itself reports errors. Read them: they are its own words."),
    Reason.INTERNAL: gettext_lazy(
        "The probe itself failed: a bug, or a worker without free file descriptors or memory. Read the "
        "traceback in the worker's log."
    ),
}


def reason_sentence(reason: str) -> str:
    """Return what a reason means and what to do, or '' for one that only a newer version knows."""
    return str(REASONS.get(reason, ""))


def reason_code(reason: str) -> str:
    return clean(reason, MAX_REASON)


def duration(seconds: float) -> str:
    """Return a length of time in its two largest units, such as ``3 h 5 min``."""
    left = max(0, int(seconds))
    for place, (size, unit) in enumerate(_UNITS):
        if left >= size:
            count, left = divmod(left, size)
            lower = _UNITS[place + 1 : place + 2]
            rest = [f"{left // size} {unit}" for size, unit in lower if left >= size]
            return " ".join([f"{number(count)} {unit}", *rest])
    return "0 s"


def seconds_between(begin: datetime, end: datetime) -> float:
    """Return the seconds from ``begin`` to ``end``. Without ``USE_TZ``, either may have no time zone."""
    return (aware(end) - aware(begin)).total_seconds()


def moment(at: datetime, now: datetime) -> str:
    """Return a time with its zone, and how long ago it was."""
    seconds = seconds_between(at, now)
    if seconds < 1:  # the clocks of two hosts may differ
        return clock(at)
    return _("%(time)s (%(duration)s ago)") % {"time": clock(at), "duration": duration(seconds)}


def name_of(change: Change) -> str:
    """Return the text by which people know a proxy: visible, and on one line."""
    names = (clean(text, MAX_NAME).strip() for text in (change.display_name, change.proxy_name))
    return next(filter(None, names), str(change.proxy_id))


def isolated(text: str) -> str:
    """Return ``text`` so that letters from right to left in it do not reorder what is around it."""
    if text.isascii() or not any(unicodedata.bidirectional(char) in ("R", "AL", "AN") for char in text):
        return text
    return f"\u2068{text}\u2069"


def proxies(count: int, total: int = 0) -> str:
    """Return a number of proxies in words, such as ``41 of 148 proxies``."""
    numbers = {"count": number(count), "total": number(total)}
    if count == total and count > 1:
        return _("all %(count)s proxies") % numbers
    if count < total:
        return ngettext("%(count)s of %(total)s proxy", "%(count)s of %(total)s proxies", total) % numbers
    return ngettext("%(count)s proxy", "%(count)s proxies", count) % numbers


def times(count: int) -> str:
    return ngettext("%(count)s time", "%(count)s times", count) % {"count": number(count)}

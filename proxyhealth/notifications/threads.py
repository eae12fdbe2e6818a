"""The headers of mails. Those about one outage are one conversation.

The outage has a Message-ID of its own, which no mail has. All mails about it refer to that one, so their
order does not matter, and a lost one breaks nothing.
"""

import re
from contextlib import suppress
from email.utils import parseaddr
from ipaddress import ip_address
from urllib.parse import urlsplit

from django.conf import settings

from proxyhealth.conf import conf
from proxyhealth.notifications.messages import Message

# A header must stay short: some servers refuse more than a few kilobytes.
MAX_THREADS = 40
# Python's email package encodes a word that does not fit into a line of 78 characters, which breaks an id.
MAX_DOMAIN = 32
_DOMAIN = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*")


def headers(message: Message) -> dict[str, str]:
    """Return the headers that a mail of ``message`` needs besides those of addresses and the subject."""
    domain = _domain()
    threads = _threads(message)
    values = {
        "Message-ID": f"<{message.id}@{domain}>",
        # Neither an answering machine nor another system may reply to it.
        "Auto-Submitted": "auto-generated",
        "X-Auto-Response-Suppress": "All",
        "X-Proxyhealth-Event": message.event.value,
    }
    if threads:
        values["In-Reply-To"] = f"<{threads[0]}@{domain}>"
        values["References"] = " ".join(f"<{thread}@{domain}>" for thread in threads)
    return values


def _threads(message: Message) -> list[str]:
    """Return the names of the conversations of a message, those of alarms first."""
    names = [f"alarm-{change.alarm}" for change in message.alarms]
    for change in message.changes:
        has_outage = change.outage is not None
        names.append(f"outage-{change.outage}" if has_outage else f"proxy-{change.proxy_id.hex}")
    return list(dict.fromkeys(names))[:MAX_THREADS]


def _domain() -> str:
    """Return the domain of ``BASE_URL``, or of the sender of mails."""
    with suppress(ValueError):
        if domain := _usable(urlsplit(conf.BASE_URL).hostname or ""):
            return domain
    sender = parseaddr(str(settings.DEFAULT_FROM_EMAIL))[1]
    return _usable(sender.partition("@")[2]) or "proxyhealth.invalid"


def _usable(domain: str) -> str:
    with suppress(ValueError):
        ip_address(domain)
        return ""  # in an id, an address would need brackets
    with suppress(UnicodeError):
        domain = domain.encode("idna").decode().lower()
        while len(domain) > MAX_DOMAIN and "." in domain:
            domain = domain.partition(".")[2]
        if len(domain) <= MAX_DOMAIN and _DOMAIN.fullmatch(domain):
            return domain
    return ""

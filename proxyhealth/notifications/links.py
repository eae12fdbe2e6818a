"""Links in messages: to pages of the admin, below ``BASE_URL``."""

import logging
from typing import Any
from urllib.parse import urlencode

from django.urls import NoReverseMatch, get_script_prefix, reverse

from proxyhealth.conf import conf
from proxyhealth.notifications.messages import Change, Message

logger = logging.getLogger(__name__)

_MAX_NAMES = 20  # of proxies in a link


def admin_url(page: str, *args: Any) -> str:
    """Return the address of a page of the admin, such as ``outage_change``. '' without ``BASE_URL``."""
    if not conf.BASE_URL:
        return ""
    try:
        path = reverse(f"admin:proxyhealth_{page}", args=args)
    except NoReverseMatch:  # a project without the admin, or without this page
        return ""
    except Exception:  # a message without links is better than none
        logger.exception("messages have no links, because the URLs of the project cannot be read")
        return ""
    # BASE_URL has the prefix already, which only a web server knows.
    return f"{conf.BASE_URL.rstrip('/')}/{path.removeprefix(get_script_prefix())}"


def outage_url(change: Change) -> str:
    """Return the address of the page where a person acknowledges the outage, or ''."""
    return "" if change.outage is None else admin_url("outage_change", change.outage)


def proxy_url(change: Change) -> str:
    return admin_url("workspaceproxy_detail", change.proxy_id)


def footer_links(message: Message) -> list[tuple[str, str]]:
    """Return the titles and addresses of the pages that are useful in each message."""
    pages = [("Health page", admin_url("workspaceproxy_health"))]
    if message.changes:
        pages += [
            ("Open outages", _filtered("outage_changelist", "?state=open")),
            ("Silence proxies", _filtered("silence_add", _selectors(message))),
        ]
    if message.alarms:
        pages.append(("Alarms", admin_url("alarm_changelist")))
    pages.append(("Channels", admin_url("channel_changelist")))
    return [(title, url) for title, url in pages if url]


def _selectors(message: Message) -> str:
    """Return the query that fills in the proxies of the message, unless these are too many for a form."""
    names = sorted({change.proxy_name for change in message.changes})
    if len(names) > _MAX_NAMES:
        return ""
    return "?" + urlencode({"proxies": "\n".join(names)}, errors="replace")  # a lone surrogate, by raw SQL


def _filtered(page: str, query: str) -> str:
    url = admin_url(page)
    return url and url + query

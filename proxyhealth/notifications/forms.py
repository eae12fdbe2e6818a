"""The forms of a message: subject, plain text, HTML, JSON, headers, and a short text for chats.

All times are in ``TIME_ZONE`` and all words in ``LANGUAGE_CODE``, whichever process makes the form. The same
message has the same forms.
"""

import logging
import re
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from django.conf import settings
from django.template import Engine
from django.template.loader import render_to_string
from django.utils import timezone, translation
from django.utils.translation import gettext as _

from proxyhealth import display
from proxyhealth.notifications import payload as payloads
from proxyhealth.notifications import subjects, threads
from proxyhealth.notifications.links import footer_links
from proxyhealth.notifications.messages import Event, Message
from proxyhealth.notifications.outline import Outline, Section, short_list
from proxyhealth.notifications.outline import outline as make_outline
from proxyhealth.notifications.wording import isolated
from proxyhealth.texts import clean, cut

logger = logging.getLogger(__name__)

# What Discord shows. Others have room for more, but nobody reads it.
MAX_SHORT = 1_900
_MAX_SHORT_NAMES = 600
_EMPTY_LINES = re.compile(r"\n(?:[ \t]*\n){2,}")

P = ParamSpec("P")
R = TypeVar("R")


def _localized(function: Callable[P, R]) -> Callable[P, R]:
    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with timezone.override(timezone.get_default_timezone()), translation.override(settings.LANGUAGE_CODE):
            return function(*args, **kwargs)

    return call


@_localized
def subject(message: Message) -> str:
    """Return the subject of a mail, which is also the title in a chat: one line of at most 100 characters."""
    return subjects.subject(message, make_outline(message))


@_localized
def plain(message: Message) -> str:
    """Return the whole message as plain text."""
    text = _render("proxyhealth/mail.txt", _context(message))
    return _EMPTY_LINES.sub("\n\n", text).strip() + "\n"


@_localized
def html(message: Message) -> str:
    """Return the whole message as HTML, without any address of a file that a mail client would load."""
    return _render("proxyhealth/mail.html", _context(message))


@_localized
def short(message: Message) -> str:
    """Return the message as a few lines of plain text for chats, the worst first."""
    outline = make_outline(message)
    lines = [_test_text(message)] if message.event == Event.TEST else []
    for alarm in outline.alarms:
        lines += [alarm.headline, alarm.facts, alarm.sentence, alarm.detail, alarm.runbook]
    for section in outline.sections:
        lines += _short_section(section)
    lines += [outline.summary, outline.summary_runbook]
    links = [f"{title}: {url}" for title, url in footer_links(message)[:2]]
    text = "\n".join(filter(None, lines))
    return "\n".join([cut(text, MAX_SHORT - sum(len(link) + 1 for link in links)), *links])


def payload(message: Message) -> dict[str, Any]:
    """Return the JSON of a webhook."""
    return payloads.payload(message, subject(message), short(message))


def headers(message: Message) -> dict[str, str]:
    """Return the headers of a mail, by which clients make one conversation of an outage."""
    return threads.headers(message)


def _short_section(section: Section) -> list[str]:
    if len(section.rows) > 1:
        names = short_list([row.unique_name for row in section.rows], _MAX_SHORT_NAMES)
        reasons = ", ".join(f"{each.code} ({each.proxies})" for each in section.reasons)
        return [section.headline, names, reasons, section.runbook]
    detail = section.details[0]
    reasons = "\n".join(f"{each.code}: {each.sentence}" for each in section.reasons)
    errors = [f"“{text}”" for kind, text in detail.lines if kind == "error"][:2]
    return [section.headline, detail.facts, reasons, *errors, section.runbook, detail.url]


def _render(name: str, context: dict[str, Any]) -> str:
    """Render a template. One of the project that fails must not prevent a message."""
    try:
        return render_to_string(name, context)
    except Exception:
        logger.exception("the template %s cannot be rendered, that of the app is used instead", name)
        return _own_templates().render_to_string(name, context)


@cache
def _own_templates() -> Engine:
    folder = Path(__file__).parents[1] / "templates"
    return Engine(dirs=[str(folder)], libraries={"i18n": "django.templatetags.i18n"})


def _context(message: Message) -> dict[str, Any]:
    outline: Outline = make_outline(message)
    return {
        "message": message,
        "subject": subjects.subject(message, outline),
        "outline": outline,
        "test": _test_text(message) if message.event == Event.TEST else "",
        "channel": isolated(clean(message.channel, 64)),
        "made_at": display.clock(message.made_at),
        "links": footer_links(message),
        "language": translation.get_language() or "en",
    }


def _test_text(message: Message) -> str:
    return _("This is a test of the channel %(channel)s. Messages about your proxies arrive here.") % {
        "channel": isolated(clean(message.channel, 64))
    }

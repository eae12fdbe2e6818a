"""Subjects: one line of at most 100 characters.

What changes between the begin and the end of an outage is in brackets. Mail clients that compare subjects
ignore the brackets, so both are in one conversation.
"""

from collections.abc import Sequence

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from proxyhealth.display import number
from proxyhealth.models.outages import BAD_STATUSES
from proxyhealth.notifications import wording
from proxyhealth.notifications.common import common_part
from proxyhealth.notifications.kinds import Kind
from proxyhealth.notifications.messages import Event, Message
from proxyhealth.notifications.outline import Outline, Row, short_list, status_word
from proxyhealth.texts import clean, cut

MAX_LENGTH = 100
MAX_TAGS = 60
MAX_NAMES = 3


def subject(message: Message, outline: Outline) -> str:
    """Return the subject: what happened in brackets, then to which proxies."""
    tags = cut(", ".join(_tags(message, outline)).translate(_NO_BRACKETS), MAX_TAGS)
    text = f"[{tags}] "
    return text + _base(message, outline, MAX_LENGTH - len(text))


_NO_BRACKETS = str.maketrans("[]", "()")


def _tags(message: Message, outline: Outline) -> list[str]:
    if message.event == Event.TEST:
        return [_("test")]
    tags = [line.tag for line in outline.alarms]
    if sum(len(section.rows) for section in outline.sections) == 1:
        tags.append(_tag(outline.sections[0].rows[0]))
    else:
        for place, section in enumerate(outline.sections):
            count = number(len(section.rows))
            of = _("%(count)s of %(total)s") % {"count": count, "total": number(message.total)}
            tags.append(f"{count if place or not message.total else of} {section.kind.word}")
    return tags


def _tag(row: Row) -> str:
    """Return what happened to the only proxy of a message."""
    change = row.change
    length = wording.duration(change.outage_seconds or 0)
    if row.kind in (Kind.STILL_UNREACHABLE, Kind.STILL_UNHEALTHY):
        return _("%(status)s after %(duration)s") % {"status": row.kind.word, "duration": length}
    if row.kind == Kind.FLAPPING:
        return row.kind.word
    status = status_word(change.after)
    if change.after in BAD_STATUSES:
        return f"{status}: {wording.reason_code(change.reason)}" if change.reason else status
    if change.outage_seconds is None:
        return status
    return _("%(status)s after %(duration)s") % {"status": status, "duration": length}


def _base(message: Message, outline: Outline, length: int) -> str:
    rows = [row for section in outline.sections for row in section.rows]
    if message.event == Event.TEST:
        text = _("proxyhealth, channel %(name)s") % {"name": message.channel}
    elif not rows:
        text = _("prober of the proxies")
    elif len(rows) <= MAX_NAMES:
        names = short_list(_sorted_names(rows), length - 8)
        text = ngettext("proxy %(names)s", "proxies %(names)s", len(rows)) % {"names": names}
    else:
        where = common_part([(row.slug, row.change.labels) for row in rows])
        text = f"{wording.proxies(len(rows))}, {where}" if where else wording.proxies(len(rows))
    return clean(text, length).strip()


def _sorted_names(rows: Sequence[Row]) -> list[str]:
    return sorted(row.name for row in rows)

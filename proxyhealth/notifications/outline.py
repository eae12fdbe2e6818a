"""The outline of a message, worst first, in words that all kinds of channels share."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from django.utils.translation import gettext as _

from proxyhealth import display
from proxyhealth.models.outages import BAD_STATUSES
from proxyhealth.notifications import wording
from proxyhealth.notifications.alarm_words import AlarmLine, alarm_lines
from proxyhealth.notifications.common import common_part
from proxyhealth.notifications.kinds import Kind
from proxyhealth.notifications.links import outage_url, proxy_url
from proxyhealth.notifications.messages import Change, Event, Message
from proxyhealth.statuses import Status
from proxyhealth.texts import clean, cut

# Proxies with details. All others are named.
MAX_DETAILS = 20
MIN_DETAILS = 3  # of a section, if worse ones have used up the others
MAX_LINES = 5
MAX_LINE_LENGTH = 300
MAX_EARLIER = 5


@dataclass(frozen=True)
class Row:
    """One proxy with its last change in the message, and those before that one."""

    change: Change
    earlier: Sequence[Change]
    kind: Kind

    @property
    def name(self) -> str:
        return wording.name_of(self.change)

    @property
    def slug(self) -> str:
        """The unique name, also on one line."""
        return clean(self.change.proxy_name, 65).strip() or str(self.change.proxy_id)

    @property
    def unique_name(self) -> str:
        """The name if it is unique: if it is the unique one, but for its case. Otherwise, the unique one."""
        return self.name if self.name.lower() == self.slug.lower() else self.slug

    @property
    def sort_key(self) -> list[tuple[int, str]]:
        """The name for sorting, with numbers by their value: ``eu-2`` is before ``eu-10``."""
        parts = re.split(r"([0-9]+)", self.slug.lower())
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


@dataclass(frozen=True)
class Detail:
    """The details of one of the first proxies."""

    name: str
    slug: str
    badge: str
    facts: str
    lines: Sequence[tuple[str, str]]
    earlier: Sequence[str]
    url: str
    action: str
    is_urgent: bool  # a person should acknowledge it


@dataclass(frozen=True)
class Group:
    """The names of further proxies with the same reason."""

    title: str
    names: Sequence[str]


@dataclass(frozen=True)
class ReasonLine:
    """A reason, the number of proxies with it, and what to do."""

    code: str
    proxies: str
    sentence: str


@dataclass(frozen=True)
class Section:
    """Proxies to which the same happened."""

    kind: Kind
    rows: Sequence[Row]
    headline: str
    reasons: Sequence[ReasonLine]
    runbook: str
    details: Sequence[Detail]
    groups: Sequence[Group]


@dataclass(frozen=True)
class Outline:
    """All that a message says, in order."""

    alarms: Sequence[AlarmLine]
    sections: Sequence[Section]
    summary: str
    summary_runbook: str


def outline(message: Message) -> Outline:
    """Return the outline of ``message``."""
    sections: list[Section] = []
    left = MAX_DETAILS
    for kind, found in groupby(rows_of(message.changes), key=lambda row: row.kind):
        rows = list(found)
        sections.append(_section(kind, rows, message, left))
        left = max(MIN_DETAILS, left - len(rows))
    alarms = alarm_lines(message)
    return Outline(alarms, sections, *_summary(message))


def rows_of(changes: Iterable[Change]) -> list[Row]:
    """Return one row per proxy, the worst first, and those of a kind by name."""
    by_proxy: dict[object, list[Change]] = {}
    for change in changes:
        by_proxy.setdefault(change.proxy_id, []).append(change)
    rows = [Row(found[-1], tuple(found[:-1]), Kind.of(found[-1])) for found in by_proxy.values()]
    return sorted(rows, key=lambda row: (row.kind.place, row.sort_key))


def _section(kind: Kind, rows: Sequence[Row], message: Message, left: int) -> Section:
    return Section(
        kind=kind,
        rows=rows,
        headline=_headline(kind, rows, message.total),
        reasons=_reasons(rows),
        runbook=display.runbook_url(_alert(kind, rows)),
        details=[_detail(row, message) for row in rows[:left]],
        groups=_groups(rows[left:]),
    )


def _headline(kind: Kind, rows: Sequence[Row], total: int) -> str:
    count = len(rows)
    who = wording.isolated(rows[0].name) if count == 1 else wording.proxies(count, total)
    # If it is all of them, what they have in common explains nothing.
    where = "" if count == total else common_part([(row.slug, row.change.labels) for row in rows])
    text = kind.headline(count, who, where and f", {where}")
    return text[:1].upper() + text[1:] if count > 1 else text


def _reasons(rows: Sequence[Row]) -> list[ReasonLine]:
    counts = Counter(row.change.reason for row in rows if row.change.reason)
    return [
        ReasonLine(
            wording.reason_code(reason),
            wording.proxies(count) if len(rows) > 1 else "",
            wording.reason_sentence(reason),
        )
        for reason, count in counts.most_common()
    ]


def _alert(kind: Kind, rows: Sequence[Row]) -> str:
    return "proxyflapping" if kind == Kind.FLAPPING else display.STATUS_ALERTS.get(rows[0].change.after, "")


def _detail(row: Row, message: Message) -> Detail:
    change = row.change
    outage = outage_url(change)
    is_urgent = bool(outage) and change.after in BAD_STATUSES
    return Detail(
        name=wording.isolated(row.name),
        slug=row.slug if row.name != row.unique_name else "",
        badge=status_word(change.after),
        facts=facts(change, message),
        lines=_lines(change),
        earlier=_earlier(row.earlier),
        url=outage or proxy_url(change),
        action=_("Acknowledge") if is_urgent else _("Outage") if outage else _("Proxy"),
        is_urgent=is_urgent,
    )


def status_word(status: str) -> str:
    return _("deleted") if status == "removed" else clean(status, 32)


def facts(change: Change, message: Message) -> str:
    """Return since when a status holds, what it was before, and how long an outage is or was."""
    if change.flaps:
        return _(
            "It changed %(times)s in %(duration)s, and is %(status)s at the moment. The next message about "
            "it follows when it is calm."
        ) % {
            "times": wording.times(change.flaps),
            "duration": wording.duration(change.flap_seconds),
            "status": status_word(change.after),
        }
    moment = wording.moment(change.at, message.made_at)
    parts = [_("%(status)s since %(moment)s") % {"status": status_word(change.after), "moment": moment}]
    if not change.number and change.before != change.after:
        parts.append(_before(change.before))
    parts.append(_outage(change))
    return "; ".join(filter(None, parts))


def _before(status: str) -> str:
    if status == Status.UNKNOWN:
        return _("its status was not known before")
    return _("%(status)s before") % {"status": status_word(status)}


def _outage(change: Change) -> str:
    if change.since is None or change.outage_seconds is None:
        return ""
    values = {
        "duration": wording.duration(change.outage_seconds),
        "since": display.clock(change.since),
    }
    if change.after not in BAD_STATUSES:
        return _("the outage lasted %(duration)s, from %(since)s") % values
    is_older = wording.seconds_between(change.since, change.at) > 0  # another bad status came before this one
    return _("not usable for %(duration)s, since %(since)s") % values if is_older else ""


def _lines(change: Change) -> list[tuple[str, str]]:
    lines = [
        *(("error", text) for text in change.report.errors),
        *(("warning", text) for text in change.report.warnings),
    ]
    shown = [(kind, clean(text, MAX_LINE_LENGTH)) for kind, text in lines[:MAX_LINES]]
    if more := len(lines) - len(shown):
        shown.append(("more", _("… and %(count)s more") % {"count": display.number(more)}))
    return shown


def _earlier(changes: Sequence[Change]) -> list[str]:
    """Return the changes before the last one. Of many, return the last ones."""
    texts = [
        f"{display.clock(change.at)}: {status_word(change.after)}"
        + (f" ({wording.reason_code(change.reason)})" if change.reason else "")
        for change in changes[-MAX_EARLIER:]
    ]
    if more := len(changes) - len(texts):
        texts.insert(0, _("… and %(count)s before") % {"count": display.number(more)})
    return texts


def _groups(rows: Sequence[Row]) -> list[Group]:
    by_reason: dict[str, list[Row]] = {}
    for row in rows:
        by_reason.setdefault(row.change.reason, []).append(row)
    return [_group(reason, found) for reason, found in by_reason.items()]


def _group(reason: str, rows: Sequence[Row]) -> Group:
    moments = [row.change.at for row in rows]
    first, last = display.clock(min(moments)), display.clock(max(moments))
    since = (
        _("since %(first)s") % {"first": first}
        if first == last
        else _("since times from %(first)s to %(last)s") % {"first": first, "last": last}
    )
    title = ", ".join(filter(None, [wording.reason_code(reason), wording.proxies(len(rows)), since]))
    return Group(title, list(map(_compact, rows)))


def _compact(row: Row) -> str:
    change = row.change
    note = ""
    if change.flaps:
        note = wording.times(change.flaps)
    elif change.outage_seconds and row.kind not in (Kind.UNREACHABLE, Kind.UNHEALTHY):
        note = wording.duration(change.outage_seconds)
    return f"{row.unique_name} ({note})" if note else row.unique_name


def _summary(message: Message) -> tuple[str, str]:
    """Return how many proxies of the channel are in an outage now, and the section of the runbook."""
    bad, total = message.bad, message.total
    if not total or message.event == Event.TEST or not message.changes:
        return "", ""
    if not bad:
        return _("No proxy of this channel is in an outage now."), ""
    if bad >= total > 1:
        text, alert = _("No proxy of this channel is usable now."), "noproxyusable"
    else:
        values = {"proxies": wording.proxies(bad, total)}
        text = _("In an outage now: %(proxies)s of this channel.") % values
        alert = "manyproxiesfailing" if bad >= max(3, total / 2) else ""
    return text, display.runbook_url(alert)


def short_list(names: Sequence[str], length: int) -> str:
    """Return as many names as fit into ``length`` characters, and the number of the others."""
    text = ", ".join(names)
    if len(text) <= length:
        return text
    kept = cut(text, length).rpartition(",")[0]
    more = len(names) - (kept.count(",") + 1 if kept else 0)
    return _("%(names)s and %(count)s more") % {"names": kept, "count": display.number(more)}

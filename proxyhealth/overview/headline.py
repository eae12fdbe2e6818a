"""The state of all proxies in one sentence, for pages, panels and terminals."""

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from proxyhealth.display import number
from proxyhealth.models.outages import BAD_STATUSES
from proxyhealth.notifications.wording import duration, seconds_between
from proxyhealth.snapshot import ProxyStatus, Snapshot
from proxyhealth.statuses import Status


class Level(enum.StrEnum):
    """The worst that is known. ``UNKNOWN`` if that is too little, or too old."""

    OK = "ok"
    DOWN = "down"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Headline:
    """The sentence as plain text in the current language, and the facts in it.

    ``counts`` has each status. ``first_since`` is the earliest known begin of a status that is down.
    """

    text: str
    level: Level
    counts: Mapping[Status, int]
    first_since: datetime | None = None


def headline(snapshot: Snapshot, statuses: Sequence[ProxyStatus], now: datetime) -> Headline:
    """Return the headline of these proxies. ``statuses`` are those of ``snapshot``, or some of them."""
    counter = Counter(status.status for status in statuses)
    counts = {status: counter[status] for status in Status}
    sinces = [status.since for status in statuses if status.since and status.status in BAD_STATUSES]
    first = min(sinces, default=None)
    down, total = sum(counts[Status(status)] for status in BAD_STATUSES), len(statuses)
    if not total:
        level = Level.UNKNOWN if snapshot.stale else Level.OK
        return Headline(_("There are no workspace proxies"), level, counts)
    if snapshot.stale:
        some_known = counts[Status.UNKNOWN] < total
        return Headline(_stale_text(snapshot, some_known), Level.UNKNOWN, counts, first)
    if down:
        return Headline(_down_text(down, total, first, now), Level.DOWN, counts, first)
    level = Level.UNKNOWN if counts[Status.UNKNOWN] else Level.OK
    return Headline(_good_text(counts, total), level, counts)


def length(seconds: float) -> str:
    """Return a length of time to the minute, such as ``3 h 12 min``: pages change once per minute."""
    return duration(seconds - seconds % 60) if seconds >= 60 else _("less than a minute")


def _stale_text(snapshot: Snapshot, some_known: bool) -> str:
    """Return what is wrong with a stale snapshot, and how much of it to believe."""
    age = {"duration": "" if snapshot.age is None else length(snapshot.age)}
    if snapshot.fault:
        if not some_known:
            return _("No status can be read")
        if not age["duration"]:
            return _("No current status can be read: nothing below is current")
        return _("No current status can be read: those below are from %(duration)s ago") % age
    if not age["duration"]:
        if snapshot.offline:
            return _("The prober is offline, and no full round has ended yet")
        if some_known:
            return _("No full round has ended yet: not all statuses are known")
        return _("No round has ended yet: no status is known")
    if snapshot.offline:
        return _("The prober is offline, the last round was %(duration)s ago: nothing below is current") % age
    if snapshot.refusal:
        return _("No round could be stored for %(duration)s: nothing below is current") % age
    return _("No round for %(duration)s: nothing below is current") % age


def _down_text(down: int, total: int, first: datetime | None, now: datetime) -> str:
    values = {"down": number(down), "total": number(total)}
    if first is not None:
        return _lasting_text(down, total, values | {"duration": length(seconds_between(first, now))})
    if total == 1:
        return _("The only proxy is down")
    if down == total:
        return _("All %(total)s proxies are down") % values
    text = ngettext("%(down)s of %(total)s proxies is down", "%(down)s of %(total)s proxies are down", down)
    return text % values


def _lasting_text(down: int, total: int, values: Mapping[str, str]) -> str:
    if total == 1:
        return _("The only proxy is down, for %(duration)s") % values
    if down == total:
        text = _("All %(total)s proxies are down, the first for %(duration)s")
    else:
        text = ngettext(
            "%(down)s of %(total)s proxies is down, for %(duration)s",
            "%(down)s of %(total)s proxies are down, the first for %(duration)s",
            down,
        )
    return text % values


def _good_text(counts: Mapping[Status, int], total: int) -> str:
    """Return the sentence if nothing is down."""
    if unknown := counts[Status.UNKNOWN]:
        text = ngettext(
            "No proxy is known to be down, but %(count)s of %(total)s has no status yet",
            "No proxy is known to be down, but %(count)s of %(total)s have no status yet",
            unknown,
        )
        return text % {"count": number(unknown), "total": number(total)}
    if unregistered := counts[Status.UNREGISTERED]:
        text = ngettext(
            "No proxy is down, %(count)s of %(total)s is not registered yet",
            "No proxy is down, %(count)s of %(total)s are not registered yet",
            unregistered,
        )
        return text % {"count": number(unregistered), "total": number(total)}
    if total == 1:
        return _("The only proxy is ok")
    return _("All %(total)s proxies are ok") % {"total": number(total)}

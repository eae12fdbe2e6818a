"""Alarms about the prober itself, in words."""

from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from proxyhealth import display
from proxyhealth.models.notifications import Alarm
from proxyhealth.notifications import wording
from proxyhealth.notifications.messages import AlarmChange, Message
from proxyhealth.texts import clean

MAX_DETAIL = 1_000


@dataclass(frozen=True)
class _Words:
    begin: str | Promise
    end: str | Promise
    sentence: str | Promise
    tag: str | Promise
    end_tag: str | Promise
    alert: str  # the section of the runbook


_WORDS: dict[str, _Words] = {
    Alarm.Kind.NO_ROUNDS: _Words(
        begin=gettext_lazy(
            "No complete check of the proxies for %(duration)s: no status can be believed now."
        ),
        end=gettext_lazy("The proxies are checked again, after %(duration)s."),
        sentence=gettext_lazy(
            "A proxy that fails now is not noticed. Pages show the last statuses, marked as stale. Look at "
            "the Celery workers and at Celery beat: both must run. If they do, look for “round failed” in "
            "the log of the workers."
        ),
        tag=gettext_lazy("no rounds for %(duration)s"),
        end_tag=gettext_lazy("rounds again after %(duration)s"),
        alert="snapshotstale",
    ),
    Alarm.Kind.OFFLINE: _Words(
        begin=gettext_lazy("The workers have been offline for %(duration)s: no status can be believed now."),
        end=gettext_lazy("The workers are online again, after %(duration)s."),
        sentence=gettext_lazy(
            "No address of CANARY_URLS responds to the workers, so their own network has failed. A proxy "
            "that fails now is not noticed. Look at the network of the hosts of the workers: routes, DNS, "
            "and firewall. Or start workers on another host."
        ),
        tag=gettext_lazy("prober offline for %(duration)s"),
        end_tag=gettext_lazy("prober online after %(duration)s"),
        alert="proberoffline",
    ),
    Alarm.Kind.REDIS: _Words(
        begin=gettext_lazy("Redis has been out of reach for %(duration)s: no status can be believed now."),
        end=gettext_lazy("Redis is within reach again, after %(duration)s."),
        sentence=gettext_lazy(
            "No results can be stored. Pages show the last statuses, marked as stale. Look at the Redis "
            "server: it must run, have free memory, and accept connections from web servers and workers. "
            "When it is back, check that the workers run."
        ),
        tag=gettext_lazy("Redis out of reach for %(duration)s"),
        end_tag=gettext_lazy("Redis again after %(duration)s"),
        alert="snapshotunreadable",
    ),
}
# Of a kind that only a newer version knows.
_OTHER_WORDS = _Words(
    begin=gettext_lazy("The prober has failed for %(duration)s: no status can be believed now."),
    end=gettext_lazy("The prober works again, after %(duration)s."),
    sentence="",
    tag=gettext_lazy("prober failed for %(duration)s"),
    end_tag=gettext_lazy("prober again after %(duration)s"),
    alert="",
)


@dataclass(frozen=True)
class AlarmLine:
    """An alarm as it is told: what, since when or for how long, and what to do."""

    headline: str
    facts: str
    sentence: str
    detail: str
    runbook: str
    has_ended: bool
    tag: str


def alarm_lines(message: Message) -> list[AlarmLine]:
    """Return the alarms of a message, those that go on first. One that began and ended is told as ended."""
    last = {change.alarm: change for change in message.alarms}
    lines = [_ended(change) if change.ended_at else _begun(change, message) for change in last.values()]
    return sorted(lines, key=lambda line: line.has_ended)


def _begun(change: AlarmChange, message: Message) -> AlarmLine:
    words = _WORDS.get(change.kind, _OTHER_WORDS)
    length = {"duration": wording.duration(wording.seconds_between(change.began_at, message.made_at))}
    return AlarmLine(
        headline=str(words.begin) % length,
        facts=_("Since %(moment)s.") % {"moment": wording.moment(change.began_at, message.made_at)},
        sentence=str(words.sentence),
        detail=clean(change.detail, MAX_DETAIL),
        runbook=display.runbook_url(words.alert),
        has_ended=False,
        tag=str(words.tag) % length,
    )


def _ended(change: AlarmChange) -> AlarmLine:
    words = _WORDS.get(change.kind, _OTHER_WORDS)
    end = change.ended_at or change.began_at
    length = {"duration": wording.duration(wording.seconds_between(change.began_at, end))}
    times = {"begin": display.clock(change.began_at), "end": display.clock(end)}
    return AlarmLine(
        headline=str(words.end) % length,
        facts=_("It lasted from %(begin)s to %(end)s.") % times,
        sentence="",
        detail="",
        runbook="",
        has_ended=True,
        tag=str(words.end_tag) % length,
    )

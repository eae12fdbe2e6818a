"""The judgement of each part of the prober."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any

from django.db.models import Min, OuterRef, Subquery
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from proxyhealth import display
from proxyhealth.conf import conf
from proxyhealth.exceptions import HistoryUnavailable
from proxyhealth.models import Alarm, Channel, Delivery
from proxyhealth.models.rows import using_database_of
from proxyhealth.notifications import culprit, wording
from proxyhealth.notifications import heartbeats as senders
from proxyhealth.notifications.culprit import Fault
from proxyhealth.readiness.parts import Part
from proxyhealth.snapshot import Snapshot
from proxyhealth.storage.presence import GONE_AFTER, Presence, Sign
from proxyhealth.storage.rounds_log import KILLED, RUNNING, RoundEntry
from proxyhealth.utils import aware

_PILE = 3  # messages: fewer may wait between two looks of a worker


class State(enum.StrEnum):
    """The state of a part. ``OFF`` is not set up, and so neither good nor bad."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    UNKNOWN = "unknown"
    OFF = "off"

    @property
    def word(self) -> str:
        return str(_WORDS[self])


_WORDS: dict[State, Promise] = {
    State.OK: gettext_lazy("works"),
    State.WARNING: gettext_lazy("warning"),
    State.FAILED: gettext_lazy("failed"),
    State.UNKNOWN: gettext_lazy("not known"),
    State.OFF: gettext_lazy("not set up"),
}

_LABELS: dict[str, Promise] = {
    "redis": gettext_lazy("Redis"),
    "database": gettext_lazy("Database"),
    "workers": gettext_lazy("Celery workers"),
    "beat": gettext_lazy("Celery beat"),
    "queue": gettext_lazy("Queue"),
    "rounds": gettext_lazy("Rounds"),
    "network": gettext_lazy("Network of the workers"),
    "snapshot": gettext_lazy("Snapshot"),
    "channels": gettext_lazy("Channels"),
    "heartbeats": gettext_lazy("Heartbeats"),
}

_WORKERS = gettext_lazy("Start more workers, or see which tasks keep the ones that run busy.")
_TOO_LONG = gettext_lazy("Add workers, or raise INTERVAL.")
_START_WORKER = gettext_lazy("Start a worker, and read its log for the reason why it ended.")


# The sections of the runbook about rounds with these outcomes.
_ALERTS = {"incomplete": "roundsincomplete", "offline": "proberoffline"}


@dataclass(frozen=True)
class PartState:
    """A part of the prober: what is the matter, since when, and what to do. ``alert`` names the runbook."""

    name: str
    state: State
    text: str
    since: datetime | None = None
    facts: Sequence[str] = ()
    advice: str | Promise = ""
    alert: str = ""

    @property
    def label(self) -> str:
        return str(_LABELS[self.name])

    @property
    def runbook(self) -> str:
        return display.runbook_url(self.alert) if self.state in (State.WARNING, State.FAILED) else ""


def _without_redis(name: str) -> PartState:
    return PartState(name, State.UNKNOWN, _("Redis has to respond before this is known."))


def _failure(part: Part) -> str:
    return part.error or part.message


def redis(part: Part, snapshot: Snapshot | None, alarms: Mapping[str, Alarm]) -> PartState:
    if not part.ok:
        alarm = alarms.get(Alarm.Kind.REDIS)
        return PartState(
            "redis",
            State.FAILED,
            _failure(part),
            aware(alarm.began_at) if alarm else part.since,
            advice=gettext_lazy("Bring Redis back. Web servers and beat need no restart."),
            alert="snapshotunreadable",
        )
    if snapshot and snapshot.refusal:
        return PartState(
            "redis",
            State.FAILED,
            _("Redis responds, but it refuses what rounds need: %(error)s") % {"error": snapshot.refusal},
            advice=gettext_lazy("Remove the cause. Nothing needs a restart."),
            alert="cacherefusesrounds",
        )
    return PartState("redis", State.OK, _("Redis responds, and accepts what rounds write."))


def database(part: Part) -> PartState:
    if part.ok:
        return PartState("database", State.OK, _("The database responds."))
    advice = gettext_lazy("Bring the database back. Rounds fail until they can read the proxies.")
    return PartState(
        "database", State.FAILED, _failure(part), part.since, advice=advice, alert="roundsfailing"
    )


def workers(signs: Presence | None, value: Snapshot | None = None) -> PartState:
    if signs is None:
        return _without_redis("workers")
    fault, running = culprit.fault_of_workers(signs), signs.running
    if fault and not running and _has_round_after(signs, value):
        text = _("Rounds end, although no worker gives a sign. Those of an earlier version do not.")
        return PartState("workers", State.UNKNOWN, text)
    if fault:
        return _faulty("workers", fault, _START_WORKER if not running else "")
    if not running and signs.settled_for <= GONE_AFTER:
        text = _("Redis was away a moment ago. A worker that runs gives a sign within %(seconds)s s.")
        return PartState("workers", State.UNKNOWN, text % {"seconds": display.number(GONE_AFTER)})
    if not running:
        text = _("No worker has reported itself. Those of an earlier version do not.")
        return PartState("workers", State.UNKNOWN, text)
    cut_off = [sign.text("name") for sign in running if sign.values.get("connected") is False]
    if cut_off:
        text = _("Not connected to the broker: %(names)s.") % {"names": ", ".join(cut_off)}
        return PartState("workers", State.WARNING, text, alert="taskspilingup")
    count = len(running)
    text = ngettext("%(count)s worker runs.", "%(count)s workers run.", count)
    return PartState("workers", State.OK, text % {"count": display.number(count)})


def _has_round_after(signs: Presence, value: Snapshot | None) -> bool:
    """Return True if rounds go on after the last sign of a worker."""
    if value is None or value.stale or value.checked_at is None:
        return False
    last = signs.workers[0].at if signs.workers else None
    return last is None or value.checked_at > last + timedelta(seconds=GONE_AFTER)


def _faulty(name: str, fault: Fault, advice: str | Promise, alert: str = "snapshotstale") -> PartState:
    return PartState(name, State.FAILED, fault.text, fault.since, advice=advice, alert=alert)


def beat(signs: Presence | None) -> PartState:
    if signs is None:
        return _without_redis("beat")
    if fault := culprit.fault_of_beat(signs):
        return _faulty(
            "beat", fault, gettext_lazy("Start beat, or read its log. Until then, no round begins.")
        )
    last = culprit.last_beat(signs)
    if last is None:
        return PartState("beat", State.UNKNOWN, _("No tick has been seen yet."))
    if last.age > culprit.late_after(last):
        return PartState("beat", State.UNKNOWN, _("Redis was away. Beat gives a sign with its next tick."))
    facts = {"age": wording.duration(last.age), "interval": display.number(conf.INTERVAL)}
    text = _("The last sign of beat is %(age)s old. It sends a tick every %(interval)s s.")
    hosts = [f"{sign.text('host')} ({sign.count('pid')})" for sign in running_beats(signs)]
    if len(hosts) > 1:
        more = _("More than one beat runs. That is harmless: the ticks that come too early are skipped.")
        return PartState("beat", State.WARNING, more, facts=hosts, alert="ticksskipped")
    return PartState("beat", State.OK, text % facts, facts=hosts)


def running_beats(signs: Presence) -> list[Sign]:
    """Return the last beat, and those that have sent something since it began."""
    if not signs.beats:
        return []
    last = signs.beats[0]
    uptime = timedelta(seconds=min(last.count("uptime"), 10**9))
    recent = [sign for sign in signs.beats[1:] if sign.age <= culprit.late_after(sign)]
    return [last, *(sign for sign in recent if sign.at > last.at - uptime)]


def queue(part: Part, signs: Presence | None) -> PartState:
    if not part.ok:
        if "can be queried" in part.error:
            text = _("Only a broker on Redis shows how many tasks wait.")
            return PartState("queue", State.UNKNOWN, text)
        text = _("The broker does not respond: %(error)s") % {"error": _failure(part)}
        advice = gettext_lazy("Bring the broker back. Beat and the workers connect to it again.")
        return PartState("queue", State.FAILED, text, part.since, advice=advice, alert="taskspilingup")
    length = part.facts.get("value")
    if not isinstance(length, int):
        return PartState("queue", State.OFF, _("Tasks run in the process that requests them."))
    count = ngettext("%(count)s task waits for a worker.", "%(count)s tasks wait for a worker.", length)
    text = count % {"count": display.number(length)} if length else _("No task waits for a worker.")
    tick = signs.tick if signs else None
    if length and tick and tick.age > culprit.late_after(tick):
        more = _("%(tasks)s No tick has been taken since %(moment)s.")
        facts = {"tasks": text, "moment": display.clock(tick.at)}
        return PartState("queue", State.FAILED, more % facts, tick.at, advice=_WORKERS, alert="taskspilingup")
    if length >= _PILE:
        return PartState("queue", State.WARNING, text, advice=_WORKERS, alert="taskspilingup")
    return PartState("queue", State.OK, text)


def rounds(entries: Sequence[RoundEntry] | None) -> PartState:
    if entries is None:
        return _without_redis("rounds")
    ended = [entry for entry in entries if entry.outcome not in (RUNNING, "skipped")]
    if not ended:
        return PartState("rounds", State.UNKNOWN, _("No round has ended yet."))
    last = ended[0]
    moment = display.clock(last.at)
    bad = list(takewhile(lambda entry: entry.outcome != "success", ended))
    if last.outcome == "success":
        facts = {"moment": moment, "seconds": display.number(last.seconds or 0, 2)}
        text = _("The last round, of %(moment)s, took %(seconds)s s.") % facts
        if (last.seconds or 0) > conf.INTERVAL:
            return PartState("rounds", State.WARNING, text, alert="roundstoolong", advice=_TOO_LONG)
        return PartState("rounds", State.OK, text)
    if last.outcome == KILLED:
        text = _("The process of the round of %(moment)s was killed.") % {"moment": moment}
    else:
        text = _("The round of %(moment)s failed: %(error)s") % {"moment": moment, "error": last.error}
    is_partial = last.outcome == "incomplete"
    state = State.WARNING if is_partial else State.FAILED
    return PartState("rounds", state, text, bad[-1].at, alert=_ALERTS.get(last.outcome, "roundsfailing"))


def network(
    value: Snapshot | None, alarms: Mapping[str, Alarm], entries: Sequence[RoundEntry] | None
) -> PartState:
    if value and value.offline:
        alarm = alarms.get(Alarm.Kind.OFFLINE)
        ended = [entry for entry in entries or () if entry.outcome not in (RUNNING, "skipped")]
        begun = [entry.at for entry in takewhile(lambda entry: entry.outcome != "success", ended)]
        since = min(begun, default=aware(alarm.began_at) if alarm else None)
        advice = gettext_lazy("Repair the network of that host, or start workers on a host with a network.")
        return PartState("network", State.FAILED, value.offline, since, advice=advice, alert="proberoffline")
    if not conf.CANARY_URLS:
        text = _("CANARY_URLS is empty, so a fault of this network looks like proxies that fail.")
        return PartState("network", State.OFF, text)
    if value is None or value.fault:
        return _without_redis("network")
    return PartState("network", State.OK, _("The last round did not find the workers cut off."))


def snapshot(value: Snapshot | None, alarms: Mapping[str, Alarm]) -> PartState:
    if value is None:
        text = _("Reading the snapshot does not end.")
        return PartState("snapshot", State.UNKNOWN, text, alert="snapshotunreadable")
    alarm = next(iter(alarms.values()), None)
    since = aware(alarm.began_at) if alarm else value.stale_at
    if value.fault:
        return PartState("snapshot", State.FAILED, value.fault, since, alert="snapshotunreadable")
    if value.checked_at is None:
        return PartState("snapshot", State.UNKNOWN, _("No full round has ended yet."))
    facts = {"moment": display.clock(value.checked_at), "age": wording.duration(value.age or 0)}
    if value.stale:  # also while the workers are cut off
        text = _("It is stale: the last full round began at %(moment)s.") % facts
        return PartState("snapshot", State.FAILED, text, since, alert="snapshotstale")
    return PartState("snapshot", State.OK, _("It is %(age)s old.") % facts)


def channels(part: Part) -> PartState:
    """Judge the channels, by one query. The database has just responded, or is not asked."""
    try:
        if not part.ok:
            raise HistoryUnavailable
        with using_database_of(Channel) as alias:
            rows = list(_with_failures(alias))
    except HistoryUnavailable:
        return PartState("channels", State.UNKNOWN, _("The database has to respond before this is known."))
    enabled = [row for row in rows if row.enabled]
    failing = [row for row in enabled if row.is_failing]
    count = len(rows) - len(enabled)
    disabled = ngettext("%(count)s channel is disabled.", "%(count)s channels are disabled.", count)
    facts = [disabled % {"count": display.number(count)}] if count else []
    if failing:
        text = ngettext("%(count)s channel fails.", "%(count)s channels fail.", len(failing))
        since = min(aware(row.failing_since or row.last_failure_at) for row in failing)
        text %= {"count": display.number(len(failing))}
        return PartState("channels", State.FAILED, text, since, facts, alert="channelfailing")
    if not enabled:
        text = (
            _("Nobody is told: no channel is enabled.") if rows else _("Nobody is told: there is no channel.")
        )
        return PartState("channels", State.OFF, text, facts=facts)
    text = ngettext("%(count)s channel is enabled.", "%(count)s channels are enabled.", len(enabled))
    return PartState("channels", State.OK, text % {"count": display.number(len(enabled))}, facts=facts)


def _with_failures(alias: str) -> Any:
    tried = Delivery.objects.using(alias).pending().filter(channel=OuterRef("pk"), attempts__gt=0)
    since: Any = tried.order_by().values("channel").annotate(value=Min("created_at")).values("value")
    return Channel.objects.using(alias).defer("target", "secret").annotate(failing_since=Subquery(since))


def heartbeats(signs: Presence | None) -> PartState:
    urls = conf.HEARTBEAT_URLS
    if not urls:
        return PartState("heartbeats", State.OFF, _("HEARTBEAT_URLS is empty."))
    if signs is None:
        return _without_redis("heartbeats")
    found = {url: signs.heartbeats.get(senders.id_of(url)) for url in urls}
    failed = {url: sign for url, sign in found.items() if sign and sign.text("error")}
    facts = [
        _("%(host)s: %(error)s") % {"host": senders.host_of(url), "error": sign.text("error")}
        for url, sign in failed.items()
    ]
    if failed:
        text = _("%(count)s of %(total)s heartbeats were not accepted.")
        text %= {"count": display.number(len(failed)), "total": display.number(len(urls))}
        since = min(sign.since or sign.at for sign in failed.values())
        advice = gettext_lazy("Check the addresses in HEARTBEAT_URLS, and the service behind them.")
        return PartState("heartbeats", State.FAILED, text, since, facts, advice)
    moments = [sign.at for sign in found.values() if sign]
    if len(moments) < len(urls):
        return PartState("heartbeats", State.UNKNOWN, _("Not every heartbeat has been sent yet."))
    text = _("All were accepted, the first of them at %(moment)s.") % {"moment": display.clock(min(moments))}
    return PartState("heartbeats", State.OK, text)

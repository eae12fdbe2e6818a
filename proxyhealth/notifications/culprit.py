"""The part that is missing while no round ends: a worker, beat, or the way between them."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from django.utils.translation import gettext as _
from django.utils.translation import override

from proxyhealth import display, isolation
from proxyhealth.conf import conf
from proxyhealth.exceptions import StoreError
from proxyhealth.notifications import wording
from proxyhealth.shared_copy import SharedCopy
from proxyhealth.snapshot import Snapshot
from proxyhealth.storage import presence
from proxyhealth.storage.presence import GONE_AFTER, Presence, Sign
from proxyhealth.task_names import TaskName
from proxyhealth.texts import clean
from proxyhealth.utils import PerProcess

# In seconds:
_FRESH = 2.0  # for which a process uses what it has read
_TIMEOUT = 1.0  # for which a reader waits for the read of another one
_LEEWAY = 2.0  # that a tick may be late
_DAYS = 1e6  # a longer interval is a damaged value

_OURS = frozenset(TaskName)

Clock = Callable[[datetime], str]


def late_after(sign: Sign) -> float:
    """Return the age of a sign at which the next tick is late. Beat knows its own interval."""
    interval = sign.values.get("interval")
    own = float(interval) if isinstance(interval, int | float) and 0 < interval < _DAYS else 0.0
    return 1.5 * max(conf.INTERVAL, own) + _LEEWAY


def last_beat(signs: Presence) -> Sign | None:
    """Return the last sign of life of beat: its own, or a tick of it that a worker has taken."""
    found = [*signs.beats[:1], *([signs.tick] if signs.tick else [])]
    return max(found, key=lambda sign: sign.at, default=None)


@dataclass(frozen=True)
class Fault:
    """A part that is missing, as a sentence, and the time since which it is."""

    text: str
    since: datetime | None = None


def fault_of_beat(signs: Presence, clock: Clock = display.clock) -> Fault | None:
    """Return what is wrong with beat, or None if nothing is, or if that is not known."""
    sign = last_beat(signs)
    if sign is None:
        sign = signs.begun
        if sign is None or sign.age <= late_after(sign):
            return None  # there may have been no time for a tick
        return Fault(_("No tick of Celery beat has been seen since %s.") % clock(sign.at), sign.at)
    if sign.age > late_after(sign):
        if signs.settled_for <= late_after(sign):
            return None
        return Fault(_("Celery beat has sent no tick since %s.") % clock(sign.at), sign.at)
    if not sign.text("error"):
        return None
    facts = {"host": sign.text("host"), "error": sign.text("error")}
    text = _("Celery beat runs on %(host)s, but it cannot send its ticks: %(error)s") % facts
    return Fault(text, sign.since or sign.at)


def fault_of_workers(signs: Presence, clock: Clock = display.clock) -> Fault | None:
    """Return what is wrong with the workers, or None if nothing is, or if that is not known."""
    running = signs.running
    if not running:
        return _fault_without_workers(signs, clock)
    if free := unconsumed_queues(signs):
        return Fault(_("No Celery worker is known to take tasks from the queue %s.") % ", ".join(free))
    takers = [sign for sign in running if sign.items("takes")]
    if all(sign.values.get("connected") is False for sign in takers):
        name = takers[0].text("name") if takers else running[0].text("name")
        return Fault(_("The Celery worker %s runs, but it is not connected to the broker.") % name)
    return _fault_of_busy(takers)


def _fault_without_workers(signs: Presence, clock: Clock) -> Fault | None:
    if signs.settled_for <= GONE_AFTER:
        return None
    if signs.workers:
        last = signs.workers[0]
        facts = {"name": last.text("name"), "moment": clock(last.at)}
        if last.values.get("stopped"):
            text = _("No Celery worker runs. The last one, %(name)s, was stopped at %(moment)s.")
        else:
            text = _("No Celery worker runs. The last one, %(name)s, was last seen at %(moment)s.")
        return Fault(text % facts, last.at)
    if signs.begun is None or signs.begun.age <= GONE_AFTER or signs.tick:
        return None  # a tick was taken by a worker of an earlier version, which does not report itself
    return Fault(_("No Celery worker has been seen since %s.") % clock(signs.begun.at), signs.begun.at)


def unconsumed_queues(signs: Presence) -> list[str]:
    """Return our queues from which no running worker takes tasks."""
    missing, taken = set(), set()
    for sign in signs.running:
        missing |= {name for name in sign.items("missing") if isinstance(name, str)}
        taken |= {name for name in sign.items("takes") if isinstance(name, str)}
    return sorted(clean(name, 100) for name in missing - taken)


def tasks_of(sign: Sign) -> list[tuple[str, float]]:
    """Return the names of the tasks that a worker runs, and the seconds for which it has been seen to."""
    tasks = []
    for item in sign.items("tasks"):
        with suppress(TypeError, ValueError):
            name, seconds = item
            tasks.append((clean(str(name), 200), min(1e9, max(0.0, float(seconds) + sign.age))))
    return tasks


def is_busy(sign: Sign) -> bool:
    """Return True if all processes or threads of a worker run a task."""
    return 0 < sign.count("concurrency") <= sign.count("active")


def _fault_of_busy(takers: list[Sign]) -> Fault | None:
    if not takers or not all(map(is_busy, takers)):
        return None
    running = sorted((task for sign in takers for task in tasks_of(sign)), key=lambda task: -task[1])
    foreign = [task for task in running if task[0] not in _OURS]
    if not running or (not foreign and running[0][1] <= conf.INTERVAL):
        return None
    name, seconds = (foreign or running)[0]
    facts = {"task": name, "duration": wording.duration(seconds)}
    return Fault(_("All workers are busy, for example with %(task)s for %(duration)s.") % facts)


def _fault_between(signs: Presence, clock: Clock) -> Fault | None:
    """Return that nobody takes the ticks, although beat sends them and workers run."""
    if not signs.tick or not signs.beats:
        return None
    if min(signs.tick.age, signs.settled_for) <= late_after(signs.tick):
        return None
    text = _("Celery beat and a worker run, but no worker has taken a tick since %s.")
    return Fault(text % clock(signs.tick.at), signs.tick.at)


def describe(signs: Presence, clock: Clock = display.clock) -> str:
    """Return the parts that are missing as sentences, or an empty string if none is known to be."""
    faults = [fault_of_workers(signs, clock), fault_of_beat(signs, clock)]
    if not any(faults):
        faults = [_fault_between(signs, clock)]
    return " ".join(fault.text for fault in faults if fault)


# What this process has read, and the last time at which it saw that the cache could not be read.


class _Copy:
    def __init__(self) -> None:
        self.signs: SharedCopy[Presence] = SharedCopy()
        self.failed_at = -math.inf  # monotonic


_copy = PerProcess(_Copy)

# Drops this process's copy.
forget = _copy.reset


def note_outage() -> None:
    """Remember that the cache takes no signs of life now."""
    _copy.value.failed_at = time.monotonic()


def settled(signs: Presence) -> Presence:
    """Return ``signs`` with the time for which the cache has taken them."""
    return signs._replace(settled_for=time.monotonic() - _copy.value.failed_at)


def culprit(snapshot: Snapshot, clock: Clock = display.clock) -> str:
    """Return which part is missing while ``snapshot`` is late, as sentences in the current language.

    Return an empty string if none is known to be, or if the snapshot has another reason. Never raise.
    """
    copy = _copy.value
    if isolation.is_isolated() or not snapshot.stale:
        return ""
    if snapshot.fault or snapshot.refusal:
        note_outage()
    if snapshot.fault or snapshot.offline or snapshot.refusal:
        return ""
    try:
        signs = copy.signs.get(lambda previous: (presence.read(), _FRESH), timeout=_TIMEOUT)
    except StoreError:
        note_outage()
        return ""
    signs = settled(signs)
    text = describe(signs, clock)
    if not text and snapshot.last_round_failed and signs.running and last_beat(signs):
        return _("Celery beat and a worker run. The error of the last round says what is wrong.")
    return text


def utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def why_stale(snapshot: Snapshot) -> str:
    """Return the reason why the snapshot is stale, with the culprit: English, with times in UTC."""
    with override("en"):
        return snapshot.why_stale(utc, culprit(snapshot, utc))

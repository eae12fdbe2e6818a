"""The parts of the prober itself, each with its state, so that “is it us?” has an answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from proxyhealth import display
from proxyhealth.exceptions import HistoryUnavailable
from proxyhealth.models import Alarm
from proxyhealth.models.rows import using_database_of
from proxyhealth.notifications.culprit import culprit, note_outage, settled
from proxyhealth.overview import prober_parts as each
from proxyhealth.overview.prober_parts import PartState, State
from proxyhealth.readiness import parts as readiness
from proxyhealth.readiness.parts import Examination, Part
from proxyhealth.rounds import broker
from proxyhealth.snapshot import Snapshot
from proxyhealth.storage import presence, reader, rounds_log
from proxyhealth.storage.presence import Presence
from proxyhealth.storage.rounds_log import RoundEntry

__all__ = ["PartState", "Prober", "State", "culprit", "examine", "parts", "why_stale"]


@dataclass(frozen=True)
class Prober:
    """The prober at one moment. ``presence`` and ``rounds`` are None if Redis does not give them."""

    parts: Sequence[PartState]
    presence: Presence | None
    rounds: Sequence[RoundEntry] | None
    snapshot: Snapshot | None

    def names(self, state: State, *, telling: bool = False) -> str:
        """Return the labels of the parts in a state: those behind the statuses, or those that tell people."""
        chosen = (part for part in self.parts if (part.name in _TELLING) == telling)
        return ", ".join(part.label for part in chosen if part.state is state)

    @property
    def state(self) -> State:
        """The state of the whole. A part that cannot be judged is no good news."""
        for state in (State.FAILED, State.UNKNOWN, State.WARNING):
            if self.names(state):
                return state
        is_doubtful = self.names(State.FAILED, telling=True) or self._is_network_unknown
        return State.WARNING if is_doubtful else State.OK

    @property
    def _is_network_unknown(self) -> bool:
        return any(part.name == "network" and part.state is State.OFF for part in self.parts)

    @property
    def verdict(self) -> str:
        """The answer to “is it us?” as a sentence."""
        if names := self.names(State.FAILED):
            return _("It is us: %(parts)s.") % {"parts": names}
        if names := self.names(State.UNKNOWN):
            text = _("Nothing is known to be wrong with us, but this is not known: %(parts)s.")
        elif names := self.names(State.WARNING):
            text = _("Nothing has failed here, but look at this: %(parts)s.")
        elif names := self.names(State.FAILED, telling=True):
            text = _("It is not us, but people may not be told: %(parts)s.")
        elif self._is_network_unknown:
            return _("It is not us, unless the network of the workers has failed. Set CANARY_URLS to know.")
        else:
            return _("It is not us: every part works. A proxy that fails has a fault of its own.")
        return text % {"parts": names}


# The parts without which the statuses are right all the same.
_TELLING = frozenset({"channels", "heartbeats"})

FUNCTIONS: Mapping[str, Callable[[], Mapping[str, Any]]] = {
    "database": readiness.examine_database,
    "cache": readiness.examine_cache,
    "snapshot": lambda: {"value": reader.read()},
    "presence": lambda: {"value": presence.read()},
    "rounds": lambda: {"value": rounds_log.read()},
    "queue": lambda: {"value": broker.measure_queues()},
}

_examination = Examination(FUNCTIONS, is_logged=False)

# Drops the results of this process, for tests.
forget = _examination.forget


def examine() -> Prober:
    """Examine all parts, in little more time than the limit of one. Never raise.

    Whatever hangs is a part whose state is not known, and does not keep the others from being shown.
    """
    found = _examination.results()
    snapshot = found["snapshot"].facts.get("value")
    signs: Presence | None = found["presence"].facts.get("value")
    rounds = found["rounds"].facts.get("value")
    alarms = _open_alarms(found["database"])
    if signs is None or (snapshot and (snapshot.fault or snapshot.refusal)):
        note_outage()
    signs = settled(signs) if signs else None
    parts = [
        each.redis(found["cache"], snapshot, alarms),
        each.database(found["database"]),
        each.workers(signs, snapshot),
        each.beat(signs),
        each.queue(found["queue"], signs),
        each.rounds(rounds),
        each.network(snapshot, alarms, rounds),
        each.snapshot(snapshot, alarms),
        each.channels(found["database"]),
        each.heartbeats(signs),
    ]
    return Prober(parts, signs, rounds, snapshot)


def parts() -> list[PartState]:
    """Return each part of the prober with its state. Never raise."""
    return list(examine().parts)


def _open_alarms(database: Part) -> Mapping[str, Alarm]:
    """Return the alarms that go on, by their kind. The database has just responded, or is not asked."""
    try:
        if database.ok:
            with using_database_of(Alarm) as alias:
                return {row.kind: row for row in Alarm.objects.using(alias).filter(ended_at=None)}
    except HistoryUnavailable:
        pass
    return {}


def why_stale(snapshot: Snapshot) -> str:
    """Return the reason why ``snapshot`` is stale for a page, and what is missing if that is known."""
    if not snapshot.stale or snapshot.fault or snapshot.offline:
        return snapshot.why_stale(display.clock)  # a text of the storage or of a worker
    hint = _("Rounds cannot be stored: %(reason)s") % {"reason": snapshot.refusal} if snapshot.refusal else ""
    if not (hint := hint or culprit(snapshot)):
        hint = _("Are the Celery worker and beat running?")
        if snapshot.last_round_failed:
            hint = _("Are the Celery worker and beat running, and does the last round's error say more?")
    if snapshot.checked_at is None:
        text = (
            _("No full round has ended yet.") if snapshot.last_round_failed else _("No round has ended yet.")
        )
    else:
        frame = _("No round has ended since the one of %(moment)s.")
        if snapshot.last_round_failed:
            frame = _("No full round has ended since the one of %(moment)s.")
        text = frame % {"moment": display.clock(snapshot.checked_at)}
    return f"{text} {hint}"

"""The outages: each begins and ends with a transition, in the transaction that writes it."""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from django.utils import timezone

from proxyhealth.models import Outage, Transition
from proxyhealth.models.outages import BAD_STATUSES
from proxyhealth.models.rows import using_database_of

_MAX_NAME = Outage._meta.get_field("acknowledged_name").max_length
_MAX_NOTE = Outage._meta.get_field("note").max_length
_CHANGING = ("status", "reason", "ended_at", "end_token")


def record(alias: str, rows: Sequence[Transition]) -> list[Outage | None]:
    """Begin, continue or end the outages of new transitions. Return the outage of each, or None.

    Call it in the transaction that wrote the rows. An outage that has more than one of them is returned for
    each, in its last state.
    """
    if not rows:
        return []
    recorder = _Recorder(alias, {row.proxy_uuid for row in rows})
    found = [recorder.apply(row) for row in rows]
    recorder.save()
    return found


class _Recorder:
    """The open outages of some proxies, and those that change.

    Workers of an earlier version write transitions without outages until the last of them is replaced. So the
    begin or the end of an outage may be missing.
    """

    def __init__(self, alias: str, ids: Iterable[UUID]) -> None:
        self._alias = alias
        rows = Outage.objects.using(alias).open().filter(proxy_uuid__in=ids)
        self._open = {outage.proxy_uuid: outage for outage in rows}
        self._changed: dict[int, Outage] = {}  # by the id of the object: new rows have no key yet

    def apply(self, row: Transition) -> Outage | None:
        """Return the outage that this transition begins, continues or ends, or None."""
        is_bad, was_bad = row.after in BAD_STATUSES, row.before in BAD_STATUSES
        outage = self._open.get(row.proxy_uuid)
        if outage and not was_bad:
            self._end(outage, _missed_end(self._alias, outage) or row)
            outage = None
        if outage is None:
            if not (is_bad or was_bad):
                return None
            outage = (was_bad and _missed_begin(self._alias, row.proxy_uuid, row.token - 1)) or _begun(row)
            self._open[row.proxy_uuid] = outage
        if is_bad:
            outage.status, outage.reason = row.after, row.reason
            self._changed[id(outage)] = outage
        else:
            self._end(outage, row)
        return outage

    def _end(self, outage: Outage, row: Transition) -> None:
        outage.ended_at, outage.end_token = row.at, row.token
        self._changed[id(outage)] = outage
        del self._open[outage.proxy_uuid]

    def save(self) -> None:
        new = [outage for outage in self._changed.values() if not outage.pk]
        old = [outage for outage in self._changed.values() if outage.pk]
        # Those that exist first: a proxy has one open outage at most. bulk_update() takes 8 times as long.
        for rows, fields in ((old, ["pk"]), (new, ["proxy_uuid", "token"])):
            Outage.objects.using(self._alias).bulk_create(
                rows, update_conflicts=True, unique_fields=fields, update_fields=_CHANGING
            )


def _begun(row: Transition) -> Outage:
    return Outage(
        proxy_id=row.proxy_id,
        proxy_uuid=row.proxy_uuid,
        proxy_name=row.proxy_name,
        status=row.after,
        reason=row.reason,
        began_at=row.at,
        token=row.token,
    )


def _missed_begin(alias: str, proxy: UUID, token: int) -> Outage | None:
    """Return the outage in which the proxy was at ``token``, from its transitions until then."""
    until = Transition.objects.using(alias).filter(proxy_uuid=proxy, token__lte=token)
    good = until.exclude(after__in=BAD_STATUSES).order_by("-token").values_list("token", flat=True).first()
    run = until.filter(token__gt=good or 0)
    first, last = run.order_by("token").first(), run.order_by("-token").first()
    if first is None or last is None:
        return None
    outage = _begun(first)
    outage.status, outage.reason = last.after, last.reason
    return outage


def _missed_end(alias: str, outage: Outage) -> Transition | None:
    """Return the transition that ended an outage, or None."""
    later = Transition.objects.using(alias).filter(proxy_uuid=outage.proxy_uuid, token__gt=outage.token)
    return later.exclude(after__in=BAD_STATUSES).order_by("token").first()


def repair() -> None:
    """Begin and end the outages that workers of an earlier version have not recorded.

    Raise ``HistoryUnavailable``.
    """
    with using_database_of(Outage) as alias:
        outages = Outage.objects.using(alias)
        known = {outage.proxy_uuid: outage for outage in outages.open()}
        down = Transition.objects.using(alias).last_of_each().filter(after__in=BAD_STATUSES)
        last = dict(down.values_list("proxy_uuid", "token"))
        missed = [_missed_begin(alias, id, last[id]) for id in last.keys() - known.keys()]
        # Other processes may have recorded some of them meanwhile.
        outages.bulk_create(filter(None, missed), ignore_conflicts=True)
        for id in known.keys() - last.keys():
            if row := _missed_end(alias, known[id]):
                rows = outages.open().filter(pk=known[id].pk)
                rows.update(ended_at=row.at, end_token=row.token)


def acknowledge(outage: Outage | int, by: Any = None, note: str = "") -> bool:
    """Say that a person takes care of an open outage, so that nobody is reminded of it.

    ``by`` is a user, or a name. A note replaces the one before. Return False if the outage has ended.
    """
    is_user = by is not None and not isinstance(by, str)
    values = {
        "acknowledged_at": timezone.now(),
        "acknowledged_by": by if is_user else None,
        "acknowledged_name": (by.get_username() if is_user else by or "")[:_MAX_NAME],
    }
    if note:
        values["note"] = note[:_MAX_NOTE]
    return _update_open(outage, values)


def unacknowledge(outage: Outage | int) -> bool:
    """Take back the acknowledgement of an open outage. Its note stays. Return False if it has ended."""
    return _update_open(outage, {"acknowledged_at": None, "acknowledged_by": None, "acknowledged_name": ""})


def _update_open(outage: Outage | int, values: dict[str, Any]) -> bool:
    # Conditional: the outage may end at this moment.
    id = outage if isinstance(outage, int) else outage.pk
    return bool(Outage.objects.primary().open().filter(pk=id).update(**values))

"""The outages: each begins and ends with a transition, in the transaction that writes it."""

from collections.abc import Sequence
from uuid import UUID

from proxyhealth.models import Outage, Transition
from proxyhealth.models.outages import BAD_STATUSES

_CHANGING = ("status", "reason", "ended_at", "end_token")


def record(alias: str, rows: Sequence[Transition]) -> list[Outage | None]:
    """Begin, continue or end the outages of new transitions. Return the outage of each, or None.

    Call it in the transaction that wrote the rows. An outage that has more than one of them is returned for
    each, in its last state.
    """
    ids = {row.proxy_uuid for row in rows}
    if not ids:
        return []
    outages = Outage.objects.using(alias)
    current = {outage.proxy_uuid: outage for outage in outages.open().filter(proxy_uuid__in=ids)}
    found = [_apply(alias, row, current) for row in rows]
    changed = list({id(outage): outage for outage in found if outage}.values())
    # First those that exist: a proxy has one open outage at most.
    outages.bulk_update([outage for outage in changed if outage.pk], _CHANGING)
    outages.bulk_create(
        [outage for outage in changed if not outage.pk],
        update_conflicts=True,
        unique_fields=["proxy_uuid", "token"],
        update_fields=_CHANGING,
    )
    return found


def _apply(alias: str, row: Transition, current: dict[UUID, Outage]) -> Outage | None:
    """Return the outage of this row. ``current`` has the open outages of the proxies."""
    is_bad, was_bad = row.after in BAD_STATUSES, row.before in BAD_STATUSES
    outage = current.get(row.proxy_uuid)
    if outage is None:
        if not (is_bad or was_bad):
            return None
        # A worker of an earlier version, without outages, may have recorded the begin.
        outage = current[row.proxy_uuid] = _missed(alias, row) if was_bad else _begun(row)
    if is_bad:
        outage.status, outage.reason = row.after, row.reason
    else:
        outage.ended_at, outage.end_token = row.at, row.token
        del current[row.proxy_uuid]
    return outage


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


def _missed(alias: str, row: Transition) -> Outage:
    """Return the outage that lasted until ``row``, as its first transition began it."""
    earlier = Transition.objects.using(alias).filter(proxy_uuid=row.proxy_uuid, token__lt=row.token)
    good = earlier.exclude(after__in=BAD_STATUSES).order_by("-token").values_list("token", flat=True).first()
    run = earlier.filter(token__gt=good or 0)
    outage = _begun(run.order_by("token").first() or row)
    last = run.order_by("-token").first() or row
    outage.proxy_id, outage.status, outage.reason = row.proxy_id, last.after, last.reason
    return outage

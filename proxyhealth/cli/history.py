"""``history``: the changes of one proxy, its uptime, and the gaps in which nobody knew."""

import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.utils.translation import gettext as _

from proxyhealth.api import history as histories
from proxyhealth.api import listing
from proxyhealth.api.listing import Listing
from proxyhealth.api.query import MAX_LIMIT, HistoryPage
from proxyhealth.cli import arguments, shown
from proxyhealth.cli.exits import FINE
from proxyhealth.cli.fleet import unknown
from proxyhealth.cli.output import Output
from proxyhealth.cli.table import Cell, Column
from proxyhealth.display import clock, number
from proxyhealth.models import Gap, Transition
from proxyhealth.notifications.wording import duration, reason_code, seconds_between
from proxyhealth.utils import aware, rfc3339

_MAX_GAPS = 10


def add_arguments(parser: ArgumentParser) -> list[ArgumentParser]:
    parser.add_argument("name", metavar="NAME", help=_("Name or id of a proxy, which may have been deleted."))
    parser.add_argument(
        "--limit",
        type=arguments.count(1, MAX_LIMIT),
        default=20,
        metavar=_("NUMBER"),
        help=_("Show so many changes at most. Default: 20."),
    )
    return [parser]


def run(options: Mapping[str, Any], output: Output) -> int:
    current = listing.current(now=True)
    id, name = _find(options["name"], current)
    representation, _stale = histories.represent(id, HistoryPage(options["limit"]), current)
    data = {"id": str(id), "name": name, **json.loads(representation.body)}
    data["gaps"] = _gaps(data["transitions"])
    if output.is_json:
        output.json(data | {"exit_status": FINE})
    else:
        _show(data, current, output)
    return FINE


def _find(text: str, current: Listing) -> tuple[UUID, str]:
    """Return the id and the name of a proxy, also of a deleted one. Raise ``CommandError``."""
    if status := current.find(text):
        return status.proxy.id, status.proxy.name
    rows = Transition.objects.primary()
    past = histories.id_of_past_proxy(text)
    rows = rows.filter(proxy_uuid=past) if past else rows.filter(proxy_name__iexact=text)
    row = rows.values_list("proxy_uuid", "proxy_name").first()
    if row is None:
        raise unknown([text], [status.proxy.name for status in current.statuses])
    return row


def _gaps(transitions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the last gaps since the first of these transitions, the newest first."""
    if not transitions:
        return []
    # Of the token of a gap, as the rows may have local times.
    begin = datetime.fromisoformat(transitions[-1]["at"]).timestamp() * 1e6
    gaps = Gap.objects.using(Transition.objects.primary().db).filter(token__gt=int(begin))
    return [
        {"start": rfc3339(aware(gap.start)), "end": rfc3339(aware(gap.end)), "why": gap.why}
        for gap in gaps[:_MAX_GAPS]
    ]


def _show(data: Mapping[str, Any], current: Listing, output: Output) -> None:
    status = current.find(data["id"])
    state = status.status if status else Transition.REMOVED
    words = status.status if status else _("deleted")
    output.line(Cell(f"{shown.text(data['name'])}: ", "bold"), Cell(words, shown.STYLES.get(state, "")))
    if why := shown.why_stale(current):
        output.line(Cell(why, "yellow"))
    output.line(_("Uptime: %(uptime)s") % {"uptime": ", ".join(map(_uptime, data["uptime"].items()))})
    output.line()
    _show_changes(data, output)
    if data["gaps"]:
        output.line()
        output.line(Cell(_("Gaps in which nobody knew, of all proxies:"), "bold"))
        output.table(
            [Column(_("BEGAN")), Column(_("LASTED"), right=True), Column(_("WHY"), flexible=True)],
            [_gap_row(gap) for gap in data["gaps"]],
        )


def _uptime(window: tuple[str, float | None]) -> str:
    name, ratio = window
    share = "—" if ratio is None else f"{number(100 * ratio, 0 if ratio == 1 else 3)} %"
    return f"{name} {share}"


def _show_changes(data: Mapping[str, Any], output: Output) -> None:
    rows = []
    end = datetime.now(UTC)
    for change in data["transitions"]:
        at = datetime.fromisoformat(change["at"])
        report = change["report"]
        messages = [*report["errors"], *report["warnings"]][:1]
        rows.append(
            [
                Cell(clock(at)),
                Cell(change["before"]),
                Cell(change["after"], shown.STYLES.get(change["after"], "")),
                Cell(duration(seconds_between(at, end))),
                Cell(": ".join(filter(None, [reason_code(change["reason"]), *messages]))),
            ]
        )
        end = at
    if not rows:
        output.line(_("No change of its status has been recorded yet."))
        return
    columns = [
        Column(_("CHANGED")),
        Column(_("FROM"), drop=2),
        Column(_("TO")),
        Column(_("LASTED"), drop=1, right=True),
        Column(_("REASON"), flexible=True),
    ]
    output.table(columns, rows)
    if data["next_cursor"]:
        output.line(Cell(_("There are earlier changes: use --limit."), "dim"))


def _gap_row(gap: Mapping[str, Any]) -> list[Cell]:
    begin, end = datetime.fromisoformat(gap["start"]), datetime.fromisoformat(gap["end"])
    return [
        Cell(clock(begin)),
        Cell(duration(seconds_between(begin, end))),
        Cell(str(dict(Gap.Why.choices).get(gap["why"], gap["why"]))),
    ]

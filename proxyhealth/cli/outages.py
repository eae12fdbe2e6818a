"""``outages``: the times in which proxies were down, and the people who take care of them."""

import json
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from proxyhealth import health
from proxyhealth.api import listing
from proxyhealth.api import outages as all_outages
from proxyhealth.api.listing import Listing
from proxyhealth.api.query import MAX_LIMIT, OutagePage
from proxyhealth.cli import arguments, people, shown
from proxyhealth.cli.exits import BAD, FINE, failure
from proxyhealth.cli.output import Output
from proxyhealth.cli.table import Cell, Column
from proxyhealth.display import clock
from proxyhealth.models import Outage
from proxyhealth.notifications.wording import duration, reason_code, seconds_between
from proxyhealth.utils import parse_rfc3339


def add_arguments(parser: ArgumentParser) -> list[ArgumentParser]:
    parser.add_argument("--open", action="store_true", help=_("Only outages that have not ended."))
    parser.add_argument(
        "--limit",
        type=arguments.count(1, MAX_LIMIT),
        default=20,
        metavar=_("NUMBER"),
        help=_("Show so many at most, the newest first. Default: 20."),
    )
    group = parser.add_argument_group(_("acknowledgement"))
    what = group.add_mutually_exclusive_group()
    helps = {
        "--acknowledge": _("Say that you take care of this outage. Repeat it for several."),
        "--unacknowledge": _("Take back the acknowledgement of this outage. Repeat it for several."),
    }
    for name, text in helps.items():
        id = arguments.count(1, arguments.MAX_ID)
        what.add_argument(name, type=id, action="append", metavar="ID", help=text)
    group.add_argument("--note", default="", metavar=_("TEXT"), help=_("A note for the others."))
    group.add_argument("--by", metavar="USERNAME", help=_("The user who acknowledges. Default: nobody."))
    return [parser]


def run(options: Mapping[str, Any], output: Output) -> int:
    ids = options["acknowledge"] or options["unacknowledge"]
    if not ids:
        if options["note"] or options["by"]:
            raise failure(_("--note and --by belong to --acknowledge ID."))
        return _list(options, output)
    if options["acknowledge"]:
        note, by = _note(options["note"]), people.find_user(options["by"])
        _update(ids, lambda outage: health.acknowledge(outage, by, note))
        text = ngettext("Outage %(ids)s is acknowledged.", "Outages %(ids)s are acknowledged.", len(ids))
    else:
        _update(ids, health.unacknowledge)
        text = ngettext(
            "The acknowledgement of outage %(ids)s is taken back.",
            "The acknowledgements of outages %(ids)s are taken back.",
            len(ids),
        )
    if output.is_json:
        output.json({"outages": ids, "exit_status": FINE})
    else:
        output.line(text % {"ids": ", ".join(map(str, ids))})
    return FINE


def _note(text: str) -> str:
    """Return the note as the form would save it. Raise ``CommandError``."""
    field: Any = Outage._meta.get_field("note").formfield()
    try:
        return str(field.clean(text))
    except ValidationError as error:
        raise failure(_("The note is not valid. %(error)s") % {"error": " ".join(error.messages)}) from None


def _update(ids: Sequence[int], change: Callable[[int], bool]) -> None:
    """Change all of these outages, or none. Raise ``CommandError``."""
    outages = Outage.objects.primary()
    with transaction.atomic(using=outages.db):
        for id in ids:
            if change(id):
                continue
            text = (
                _("Outage %(id)s has ended.")
                if outages.filter(pk=id).exists()
                else _("There is no outage %(id)s.")
            )
            hint = _("Nothing was changed. Open outages: manage.py proxyhealth outages --open")
            raise failure(f"{text % {'id': id}} {hint}")


def _list(options: Mapping[str, Any], output: Output) -> int:
    page = OutagePage(options["limit"], open=True if options["open"] else None)
    current = listing.current(now=True)
    representation, _stale = all_outages.represent(page, current)
    data = json.loads(representation.body)
    status = BAD if any(not outage["ended_at"] for outage in data["outages"]) else FINE
    if output.is_json:
        output.json(data | {"exit_status": status})
    else:
        _show(data, current, output)
    return status


def _show(data: Mapping[str, Any], current: Listing, output: Output) -> None:
    if why := shown.why_stale(current):
        output.line(Cell(why, "yellow"))
    if not data["outages"]:
        output.line(_("There are no such outages."))
        return
    now = datetime.now(UTC)
    columns = [
        Column(_("ID"), right=True),
        Column(_("PROXY")),
        Column(_("STATUS")),
        Column(_("BEGAN"), drop=1),
        Column(_("LASTED"), right=True),
        Column(_("REASON"), drop=2),
        Column(_("ACKNOWLEDGED"), flexible=True),
    ]
    output.table(columns, [_row(outage, now) for outage in data["outages"]])
    if data["next_cursor"]:
        output.line(Cell(_("There are earlier outages: use --limit."), "dim"))


def _row(outage: Mapping[str, Any], now: datetime) -> list[Cell]:
    begin, end = parse_rfc3339(outage["began_at"]) or now, parse_rfc3339(outage["ended_at"])
    lasted = duration(seconds_between(begin, end or now))
    return [
        Cell(str(outage["outage"])),
        Cell(outage["name"]),
        Cell(outage["status"], shown.STYLES.get(outage["status"], "")),
        Cell(clock(begin)),
        Cell(lasted if end else _("%(duration)s, open") % {"duration": lasted}, "" if end else "bold"),
        Cell(reason_code(outage["reason"])),
        Cell(_acknowledgement(outage["acknowledged"])),
    ]


def _acknowledgement(value: Mapping[str, str] | None) -> str:
    if value is None:
        return ""
    return ": ".join(filter(None, [value["by"] or _("yes"), value["note"]]))

"""``silence``: silences are added, shown, and ended."""

from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.db import router, transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from proxyhealth.cli import arguments, people, shown
from proxyhealth.cli.exits import FINE, failure
from proxyhealth.cli.output import Output
from proxyhealth.cli.table import Cell, Column
from proxyhealth.display import clock, number
from proxyhealth.models import Silence, WorkspaceProxy
from proxyhealth.notifications.silences import Times
from proxyhealth.selectors import Selector
from proxyhealth.snapshot import Proxy
from proxyhealth.utils import aware, rfc3339

_MAX_NAMES = 5


def add_arguments(parser: ArgumentParser) -> list[ArgumentParser]:
    helps = {
        "add": _("Silence proxies for a time: nobody is told of them. They are probed all the same."),
        "list": _("Show the silences that are in force or to come."),
        "end": _("End silences now, and cancel those that have not begun."),
    }
    actions = parser.add_subparsers(dest="action", required=True, metavar=_("ACTION"))
    add, show, end = (actions.add_parser(name, help=text, description=text) for name, text in helps.items())
    add.add_argument(
        "proxies",
        nargs="+",
        metavar="PATTERN",
        help=_("A pattern of names, such as paris or 'eu-*', or of a label, such as region:eu. '*' is all."),
    )
    add.add_argument(
        "--for",
        dest="length",
        type=arguments.duration,
        metavar=_("DURATION"),
        help=_("Such as 2h, 90min or 3d."),
        required=True,
    )
    add.add_argument(
        "--in",
        dest="delay",
        type=arguments.duration,
        default=0,
        metavar=_("DURATION"),
        help=_("Begin so much later. Default: now."),
    )
    add.add_argument("--reason", required=True, metavar=_("TEXT"), help=_("The reason, for the others."))
    add.add_argument("--by", metavar="USERNAME", help=_("The user who silences. Default: nobody."))
    show.add_argument("--all", action="store_true", help=_("Also those that have ended."))
    end.add_argument(
        "ids", nargs="+", type=arguments.count(1, arguments.MAX_ID), metavar="ID", help=_("The silence.")
    )
    return [add, show, end]


def run(options: Mapping[str, Any], output: Output) -> int:
    action: Callable[[Mapping[str, Any], Output], None]
    action = {"add": _add, "list": _list, "end": _end}[options["action"]]
    action(options, output)
    return FINE


def _add(options: Mapping[str, Any], output: Output) -> None:
    try:
        starts = timezone.now().replace(microsecond=0) + timedelta(seconds=options["delay"])
        ends = starts + timedelta(seconds=options["length"])
    except OverflowError:
        raise failure(_("A silence lasts a year at most. Choose an earlier end.")) from None
    row = Silence(
        proxies="\n".join(options["proxies"]),
        starts=starts,
        ends=ends,
        reason=options["reason"],
        created_by=people.find_user(options["by"]),
    )
    try:
        row.full_clean()
    except ValidationError as error:
        raise people.invalid(error) from None
    row.save(using=router.db_for_write(Silence))
    proxies = WorkspaceProxy.objects.primary().active().as_proxies()
    chosen = _chosen(row, proxies)
    if output.is_json:
        output.json({"silence": _json(row, proxies), "exit_status": FINE})
        return
    text = _("Silence %(id)s: it silences %(count)s of %(total)s proxies until %(end)s: %(names)s")
    values = {
        "id": row.pk,
        "count": number(len(chosen)),
        "total": number(len(proxies)),
        "end": clock(row.ends),
    }
    if chosen:
        output.line(shown.text(text % (values | {"names": _names(chosen)})))
    else:
        output.line(_("Silence %(id)s until %(end)s: it matches no proxy now.") % values)


def _list(options: Mapping[str, Any], output: Output) -> None:
    rows = Silence.objects.using(router.db_for_write(Silence)).select_related("created_by")
    if not options["all"]:
        rows = rows.filter(ends__gt=timezone.now())
    proxies = WorkspaceProxy.objects.primary().active().as_proxies()
    if output.is_json:
        output.json({"silences": [_json(row, proxies) for row in rows], "exit_status": FINE})
    elif rows:
        columns = [
            Column(_("ID"), right=True),
            Column(_("STATE")),
            Column(_("PROXIES")),
            Column(_("NOW"), drop=1, right=True),
            Column(_("BY"), drop=2),
            Column(_("REASON"), flexible=True),
        ]
        output.table(columns, [_row(row, proxies) for row in rows])
    else:
        output.line(_("There are no silences."))


def _end(options: Mapping[str, Any], output: Output) -> None:
    """End these silences, or none of them. Those that have not begun never begin."""
    ids = list(dict.fromkeys(options["ids"]))
    rows = Silence.objects.using(router.db_for_write(Silence))
    now = timezone.now()
    with transaction.atomic(using=rows.db):
        for id in ids:
            one = rows.filter(pk=id, ends__gt=now)
            if one.filter(starts__lt=now).update(ends=now) or one.delete()[0]:
                continue
            text = (
                _("Silence %(id)s has ended.")
                if rows.filter(pk=id).exists()
                else _("There is no silence %(id)s.")
            )
            hint = _("Nothing was changed. Silences: manage.py proxyhealth silence list")
            raise failure(f"{text % {'id': id}} {hint}")
    if output.is_json:
        output.json({"ended": ids, "exit_status": FINE})
    else:
        text = ngettext("Silence %(ids)s is over.", "Silences %(ids)s are over.", len(ids))
        output.line(text % {"ids": ", ".join(map(str, ids))})


def _row(row: Silence, proxies: Sequence[Proxy]) -> list[Cell]:
    return [
        Cell(str(row.pk)),
        Cell(_state(row)),
        Cell(", ".join(row.proxies.split())),
        Cell(number(len(_chosen(row, proxies)))),
        Cell(str(row.created_by or "")),
        Cell(row.reason),
    ]


def _state(row: Silence) -> str:
    now = datetime.now(UTC)
    try:
        window = Times.of(row).window(now)
    except ValidationError as error:  # it has skipped validation
        return _("ignored: %(error)s") % {"error": " ".join(error.messages)}
    if window is None:
        return _("ended")
    if window.start <= now:
        return _("in force until %(time)s") % {"time": clock(window.stop)}
    return _("from %(start)s to %(end)s") % {"start": clock(window.start), "end": clock(window.stop)}


def _json(row: Silence, proxies: Sequence[Proxy]) -> dict[str, Any]:
    return {
        "id": row.pk,
        "proxies": row.proxies.splitlines(),
        "starts": rfc3339(aware(row.starts)),
        "ends": rfc3339(aware(row.ends)),
        "weekdays": row.weekdays,
        "begin": row.begin and row.begin.isoformat(),
        "end": row.end and row.end.isoformat(),
        "time_zone": row.time_zone,
        "reason": row.reason,
        "by": row.created_by.get_username() if row.created_by else None,
        "matches": _chosen(row, proxies),
    }


def _chosen(row: Silence, proxies: Sequence[Proxy]) -> list[str]:
    """Return the names of the proxies that a silence matches."""
    selector = Selector.parse(row.proxies)
    if selector.is_empty:  # the row is ignored
        return []
    return [proxy.name for proxy in proxies if selector.matches(proxy.name, proxy.labels)]


def _names(names: Sequence[str]) -> str:
    shown_names = ", ".join(names[:_MAX_NAMES])
    if more := len(names) - len(names[:_MAX_NAMES]):
        return _("%(names)s and %(count)s more") % {"names": shown_names, "count": number(more)}
    return shown_names

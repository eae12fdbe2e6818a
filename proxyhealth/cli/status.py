"""``status``: the headline, and a table of the proxies, the worst first."""

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from django.utils.translation import gettext as _

from proxyhealth.cli import shown
from proxyhealth.cli.exits import FINE
from proxyhealth.cli.fleet import Chosen, add_filters
from proxyhealth.cli.output import Output
from proxyhealth.cli.table import Cell


def add_arguments(parser: ArgumentParser) -> list[ArgumentParser]:
    add_filters(parser)
    parser.add_argument("--quiet", "-q", action="store_true", help=_("Print nothing if all is fine."))
    return [parser]


def run(options: Mapping[str, Any], output: Output) -> int:
    chosen = Chosen.read(options)
    status = chosen.exit_status
    if not (output.is_quiet and status == FINE):
        if output.is_json:
            output.json(chosen.json() | {"exit_status": status})
        else:
            show(chosen, output, with_details=bool(options["names"]))
    return status


def show(chosen: Chosen, output: Output, *, with_details: bool = False) -> None:
    """Write the headline, the table and, of proxies that were named, all that is known."""
    for line in heading(chosen):
        output.line(*line)
    if not chosen.statuses:
        return
    output.line()
    output.table(shown.columns(), shown.rows(chosen))
    for status in chosen.statuses if with_details else ():
        output.line()
        output.line(Cell(shown.text(status.proxy.name), "bold"))
        for name, value in shown.details(status, chosen):
            output.line(Cell(f"  {name}: ", "bold"), shown.text(value))


def heading(chosen: Chosen) -> list[list[Cell]]:
    """Return the headline and, of stale statuses, the reason, as lines."""
    headline = chosen.headline()
    lines = [[Cell(headline.text, shown.LEVEL_STYLES[headline.level])]]
    if why := shown.why_stale(chosen.listing):
        lines.append([Cell(why, "yellow")])
    return lines

"""``watch``: the proxies as they are at each moment; in a pipe, a line for each change."""

import time
from argparse import ArgumentParser
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import CommandError
from django.db import Error as DatabaseError
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from rich.live import Live
from rich.text import Text

from proxyhealth.cli import arguments, shown
from proxyhealth.cli.exits import FINE
from proxyhealth.cli.fleet import Chosen, add_filters
from proxyhealth.cli.output import Output
from proxyhealth.cli.status import heading
from proxyhealth.cli.table import Cell, Line, lay_out
from proxyhealth.display import clock, number
from proxyhealth.models import WorkspaceProxy
from proxyhealth.models.rows import close_if_broken
from proxyhealth.notifications.wording import duration
from proxyhealth.texts import without_passwords
from proxyhealth.utils import rfc3339

_TICK = 1.0  # seconds after which the ages are shown anew
_MIN_ROWS = 3


def add_arguments(parser: ArgumentParser) -> list[ArgumentParser]:
    add_filters(parser)
    parser.add_argument(
        "--interval",
        type=arguments.seconds(0.2, 3_600),
        default=2.0,
        metavar=_("SECONDS"),
        help=_("Seconds between two reads. Default: 2."),
    )
    return [parser]


def run(options: Mapping[str, Any], output: Output) -> int:
    """Watch until Ctrl-C or SIGTERM, which end it as they should: with 0."""
    watch = _Watch(options, output)
    try:
        if output.is_terminal and not output.is_json:
            watch.draw()
        else:
            watch.report()
    except KeyboardInterrupt:
        pass
    if output.is_terminal and not output.is_json:
        for line in heading(watch.chosen):
            output.line(*line)
    return FINE


class _Watch:
    """The last reading, and ``error``, the fault of a later one."""

    def __init__(self, options: Mapping[str, Any], output: Output) -> None:
        self._options = options
        self._output = output
        self.chosen = Chosen.read(options)  # a fault at the beginning ends the command
        self.error = ""
        self._lost_at: float | None = None
        self._note_contact()

    def read(self) -> None:
        try:
            self.chosen, self.error = Chosen.read(self._options), ""
        except CommandError as error:  # the proxies are gone
            self.error = str(error)
        except DatabaseError as error:
            self.error = _("The database cannot be used: %(error)s") % {"error": without_passwords(error)}
        self._note_contact()

    def _note_contact(self) -> None:
        has_fault = self.error or self.chosen.snapshot.fault or self.chosen.listing.parts.rows.fault
        self._lost_at = (self._lost_at or time.monotonic()) if has_fault else None
        if has_fault:  # a restart of the database has closed the connection, which no request ends here
            close_if_broken(WorkspaceProxy.objects.primary().db)

    def draw(self) -> None:
        """Draw the proxies on the whole terminal, which has its old contents again at the end."""
        console = self._output.console()
        with Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False) as live:
            while True:
                end = time.monotonic() + self._options["interval"]
                while (left := end - time.monotonic()) > 0:
                    live.update(self._frame(console.height), refresh=True)
                    time.sleep(min(left, _TICK))
                self.read()

    def _frame(self, height: int) -> Text:
        lines = self._heading()
        room = max(_MIN_ROWS, height - len(lines) - 3)
        total = len(self.chosen.statuses)
        limit = room if total <= room else room - 1
        rows = shown.rows(self.chosen, limit)
        if rows:
            lines += [[], *lay_out(shown.columns(), rows, self._output.width)]
        if more := total - len(rows):
            words = ngettext("and %(count)s more proxy", "and %(count)s more proxies", more)
            lines.append([Cell(words % {"count": number(more)}, "dim")])
        text = Text(no_wrap=True, overflow="crop")
        for line in lines:
            for cell in line:
                text.append(cell.text, cell.style)
            text.append("\n")
        return text

    def _heading(self) -> list[Line]:
        lines = heading(self.chosen)
        if self.error:
            lines.append([Cell(shown.text(self.error), "yellow")])
        snapshot = self.chosen.snapshot
        facts = [clock(datetime.now(UTC))]
        if snapshot.age is not None:
            age = duration(snapshot.age)
            facts.append(_("last round %(duration)s ago") % {"duration": age})
        if self._lost_at is not None:
            lost = duration(time.monotonic() - self._lost_at)
            facts.insert(0, _("No contact for %(duration)s") % {"duration": lost})
        facts.append(_("Ctrl-C ends"))
        return [*lines, [Cell(" · ".join(facts), "dim" if self._lost_at is None else "bold yellow")]]

    def report(self) -> None:
        """Write a line for each change, and one whenever the statuses become stale or current again."""
        state = None
        before = self.chosen.by_id
        while not self._output.is_closed:
            for each in shown.differences(before, self.chosen.by_id):
                self._write({"event": "change", **each.json()}, each.line())
            before = self.chosen.by_id
            reason = self.error or self.chosen.listing.parts.stale_reason
            if state != bool(reason):
                state = bool(reason)
                headline = self.chosen.headline()
                data = {"headline": headline.text, "stale": state, "stale_reason": reason}
                line = [Cell(headline.text, shown.LEVEL_STYLES[headline.level])]
                if why := shown.text(self.error) or shown.why_stale(self.chosen.listing):
                    line.append(Cell(f". {why}"))
                self._write({"event": "state", **data}, line)
            time.sleep(self._options["interval"])
            self.read()

    def _write(self, data: Mapping[str, Any], line: Line) -> None:
        now = datetime.now(UTC)
        if self._output.is_json:
            self._output.json({"at": rfc3339(now), **data}, indent=None)
        else:
            self._output.line(f"{clock(now)} ", *line)

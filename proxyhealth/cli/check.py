"""``check``: the proxies are probed now, by the workers or in this process."""

import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from django.utils.translation import gettext as _
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from proxyhealth import health
from proxyhealth.cli import arguments, shown, status
from proxyhealth.cli.exits import FINE, failure
from proxyhealth.cli.fleet import Chosen, add_filters
from proxyhealth.cli.output import Output
from proxyhealth.overview.check_words import progress_in_words
from proxyhealth.rounds import progress, recheck
from proxyhealth.rounds.progress import State
from proxyhealth.storage import reader
from proxyhealth.texts import without_passwords

_POLL = 0.2  # seconds
_SEND_TIMEOUT = 10.0  # seconds that the broker may take

_UNFINISHED = (State.QUEUED, State.RUNNING, State.NO_WORKER)

# Called with the number of proxies that are done, the number of all, and a text.
Show = Callable[[int, int, str], None]


def add_arguments(parser: ArgumentParser) -> list[ArgumentParser]:
    add_filters(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--wait",
        type=arguments.seconds(0, 86_400),
        default=60.0,
        metavar=_("SECONDS"),
        help=_("Wait so long for the workers. 0: do not wait. Default: 60."),
    )
    how.add_argument(
        "--local", action="store_true", help=_("Probe the proxies in this process, without a worker.")
    )
    parser.add_argument("--quiet", "-q", action="store_true", help=_("Print nothing if all is fine."))
    return [parser]


def run(options: Mapping[str, Any], output: Output) -> int:
    before = Chosen.read(options)
    ids = None if before.is_all else [status.proxy.id for status in before.statuses]
    if ids == []:
        raise failure(_("No proxy has this status now."))
    if options["local"]:
        _check_here(ids, output)
    elif not _check_by_workers(ids, options["wait"], output):
        return _report_request(output)
    # The same proxies, although filters may choose others now.
    return _report(before, Chosen.again(ids), output)


def _report_request(output: Output) -> int:
    if output.is_json:
        output.json({"state": "requested", "exit_status": FINE})
    elif not output.is_quiet:
        output.line(_("The workers are asked to check. The statuses change after that."))
    return FINE


def _report(before: Chosen, after: Chosen, output: Output) -> int:
    """Write what has changed, and how the proxies are now."""
    changes = shown.differences(before.by_id, after.by_id)
    exit_status = after.exit_status
    if output.is_json:
        body = {"state": "done", "changes": [each.json() for each in changes], **after.json()}
        output.json(body | {"exit_status": exit_status})
    elif not (output.is_quiet and exit_status == FINE):
        output.line(_("Checked. Changed:") if changes else _("Checked. Nothing has changed."))
        for each in changes:
            output.line("  ", *each.line())
        output.line()
        status.show(after, output)
    return exit_status


def _check_here(ids: Sequence[UUID] | None, output: Output) -> None:
    """Probe the proxies in this process. Raise ``RoundFailed``."""
    with _progress_bar(output) as show:

        def on_progress(done: int, total: int) -> None:
            show(done, total, _("Probing"))

        show(0, 0, _("Probing"))
        if ids is None:
            health.force_update(on_progress)
        else:
            recheck.run_check(ids, on_progress)
            reader.read_anew()


def _check_by_workers(ids: Sequence[UUID] | None, wait: float, output: Output) -> bool:
    """Ask the workers, and wait for them. Return False without waiting. Raise ``CommandError``."""
    request = progress.begin(ids)
    try:
        health.request_check(ids).result(_SEND_TIMEOUT)
    except Exception as error:  # of the broker, or TimeoutError
        raise failure(
            _("The request could not be sent to the workers. Is the broker running? %(error)s")
            % {"error": without_passwords(error) or type(error).__name__}
        ) from error
    if not wait:
        return False
    end = time.monotonic() + wait
    with _progress_bar(output) as show:
        while (now := progress.read_progress(request)) is None or now.state in _UNFINISHED:
            words = progress_in_words(now) if now else ""
            if time.monotonic() >= end:
                text = _("The check has not ended within %(seconds)s s. %(progress)s")
                raise failure(text % {"seconds": f"{wait:g}", "progress": words})
            show(now.checked if now else 0, now.total if now else 0, words)
            time.sleep(_POLL)
    if now.state not in (State.DONE, State.SUPERSEDED):
        raise failure(progress_in_words(now))
    reader.read_anew()
    return True


@contextmanager
def _progress_bar(output: Output) -> Iterator[Show]:
    """Yield a function that shows the progress on the standard error, if that is a terminal."""
    if not output.shows_progress:
        yield lambda done, total, text: None
        return
    # A narrow terminal wraps the text, as it is the important part.
    words = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=False))
    columns = (BarColumn(bar_width=16), TimeElapsedColumn(), words)
    with Progress(*columns, console=output.console(of_errors=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, text: bar.update(
            task, completed=done, total=total or None, description=text
        )

"""The subcommands of ``manage.py proxyhealth``, their common options, and the faults that end them."""

import logging
import signal
import sys
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError, CommandParser
from django.db import Error as DatabaseError
from django.utils import translation
from django.utils.translation import gettext as _

from proxyhealth.cli import check, history, outages, silence, status, watch
from proxyhealth.cli.exits import INTERRUPTED, TERMINATED, UNCERTAIN, Terminated, failure
from proxyhealth.cli.output import Output
from proxyhealth.exceptions import HistoryUnavailable, RoundFailed, StoreError
from proxyhealth.texts import without_passwords

MODULES: Mapping[str, Any] = {
    "status": status,
    "check": check,
    "watch": watch,
    "history": history,
    "outages": outages,
    "silence": silence,
}


class _Parser(CommandParser):
    """A parser of a subcommand, whose errors are JSON for a script that asks for it."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:  # argparse would show the usage of the whole command
            self.error(_("unrecognized arguments: %(arguments)s") % {"arguments": " ".join(unknown)})
        return found, unknown

    def error(self, message: str) -> NoReturn:
        if self.called_from_command_line and "--json" in sys.argv:
            sys.stdout.write(Output.encode({"message": message, "exit_status": UNCERTAIN}))
            sys.exit(UNCERTAIN)
        super().error(message)
        raise AssertionError("it does not return")


def add_commands(parser: CommandParser) -> None:
    """Add the subcommands and their arguments."""
    helps = {
        "status": _("Show the proxies, the worst first."),
        "check": _("Have the proxies checked now, and show what changed."),
        "watch": _("Show the proxies as they are at each moment, until Ctrl-C."),
        "history": _("Show the changes of a proxy, its uptime, and the gaps in which nobody knew."),
        "outages": _("Show the outages, or acknowledge some of them."),
        "silence": _("Silence proxies, show the silences, or end some of them."),
    }
    commands = parser.add_subparsers(
        dest="command", required=True, metavar=_("COMMAND"), parser_class=_Parser
    )
    for name, module in MODULES.items():
        command = commands.add_parser(name, help=helps[name], description=helps[name])
        for each in module.add_arguments(command):
            _add_common(each)


def _add_common(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", default=SUPPRESS, help=_("Print one object of JSON, for scripts.")
    )
    # Those of Django, which it knows only before the name of the subcommand.
    for flag in ("--no-color", "--force-color", "--traceback", "--skip-checks"):
        parser.add_argument(flag, action="store_true", default=SUPPRESS, help=SUPPRESS)
    parser.add_argument("-v", "--verbosity", type=int, choices=range(4), default=SUPPRESS, help=SUPPRESS)
    for option in ("--settings", "--pythonpath"):
        parser.add_argument(option, default=SUPPRESS, help=SUPPRESS)


def run(options: Mapping[str, Any], output: Output, *, owns_process: bool) -> int:
    """Run a subcommand, and return its exit status. Raise ``CommandError`` for a fault."""
    with _quiet_process(options["verbosity"]) if owns_process else nullcontext():
        try:
            # Scripts read English.
            with translation.override(None) if output.is_json else nullcontext():
                return _run(MODULES[options["command"]].run, options, output)
        except Terminated:
            return TERMINATED
        except KeyboardInterrupt:
            return INTERRUPTED
        except CommandError as error:
            if not output.is_json:
                raise
            output.json({"message": str(error), "exit_status": error.returncode})
            return error.returncode


def _run(
    command: Callable[[Mapping[str, Any], Output], int], options: Mapping[str, Any], output: Output
) -> int:
    """Run a subcommand. Raise ``CommandError`` for each fault: 1 as exit status says that a proxy is down."""
    try:
        return command(options, output)
    except CommandError:
        raise
    except (DatabaseError, HistoryUnavailable) as error:
        text = _("The database cannot be used. Is it running, and migrated? %(error)s")
        raise failure(text % {"error": error}) from error
    except StoreError as error:
        text = _("Redis cannot be used. Is it running, and its address correct? %(error)s")
        raise failure(text % {"error": error}) from error
    except RoundFailed as error:
        raise failure(_("The check failed: %(error)s") % {"error": error}) from error
    except UnicodeEncodeError as error:  # bytes of another encoding, which Python keeps as surrogates
        raise failure(_("An argument is not valid text. Write it in UTF-8.")) from error
    except ImproperlyConfigured as error:
        text = _("A setting is not valid. Run manage.py check. %(error)s")
        raise failure(text % {"error": error}) from error
    except Exception as error:
        if options["traceback"]:
            raise
        text = _("An error of proxyhealth, or of how it is set up: %(error)s. Run it again with --traceback.")
        raise failure(text % {"error": without_passwords(repr(error))}) from error


@contextmanager
def _quiet_process(verbosity: int) -> Iterator[None]:
    """Leave the terminal to the command: no logs beside its messages, and a clean end if it is terminated."""

    def terminate(*_args: object) -> NoReturn:
        raise Terminated

    logger = logging.getLogger("proxyhealth")
    level = logger.level
    if verbosity < 2:
        logger.setLevel(logging.CRITICAL + 1)
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        logger.setLevel(level)

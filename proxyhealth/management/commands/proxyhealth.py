import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils.translation import gettext as _

from proxyhealth.cli import commands
from proxyhealth.cli.output import Output


class Command(BaseCommand):
    # Their errors would end it with 1, which says that a proxy is down.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.description = _(
            "Show and check the workspace proxies. Exit status: 0 if all is fine, 1 if a proxy is down or "
            "the statuses are stale, 2 if that could not be told."
        )
        commands.add_commands(parser)

    def handle(self, **options: Any) -> None:
        output = Output(self.stdout, self.stderr, options)
        owns_process = getattr(self, "_called_from_command_line", False)
        if status := commands.run(options, output, owns_process=owns_process):
            sys.exit(status)

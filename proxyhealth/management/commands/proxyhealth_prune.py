from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from proxyhealth.exceptions import HistoryUnavailable
from proxyhealth.history.pruning import prune


class Command(BaseCommand):
    help = (
        "Delete status changes, their deliveries, outages and gaps older than HISTORY_DAYS of the settings. "
        "Keep the last change of each proxy, open outages, and the gaps of 90 days, which the uptime needs."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="Only count them.")

    def handle(self, *, dry_run: bool, **options: Any) -> None:
        try:
            pruned = prune(dry_run=dry_run)
        except HistoryUnavailable as error:
            raise CommandError(str(error)) from error
        if pruned.before is None:
            self.stdout.write("There is no history yet: no round has been recorded.")
            return
        self.stdout.write(
            f"{'Would delete' if dry_run else 'Deleted'} what is from before "
            f"{pruned.before:%Y-%m-%d %H:%M:%S} UTC. "
            f"Status changes: {pruned.transitions}. Outages: {pruned.outages}. Gaps: {pruned.gaps}."
        )

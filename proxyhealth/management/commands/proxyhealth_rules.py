from typing import Any

from django.core.management.base import BaseCommand

from proxyhealth.conf import conf
from proxyhealth.metrics import files


class Command(BaseCommand):
    help = "Print the rules for Prometheus, with METRICS_NAMESPACE and RUNBOOK_URL of the settings."

    def handle(self, **options: Any) -> None:
        if not conf.RUNBOOK_URL:
            self.stderr.write(
                "The alerts have no link to the runbook. Set PROXYHEALTH['RUNBOOK_URL'] to its address."
            )
        self.stdout.write(files.rules(), ending="")

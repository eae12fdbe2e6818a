from typing import Any

from django.core.management.base import BaseCommand

from proxyhealth.metrics import files


class Command(BaseCommand):
    help = "Print the dashboard for Grafana, with METRICS_NAMESPACE of the settings."

    def handle(self, **options: Any) -> None:
        self.stdout.write(files.dashboard(), ending="")

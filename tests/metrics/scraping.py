"""Scrapes of ``/metrics`` for tests."""

from django.test import Client
from prometheus_client.parser import text_string_to_metric_families


def scrape() -> str:
    response = Client().get("/metrics")
    assert response.status_code == 200
    return response.content.decode()


def samples(text: str, prefix: str = "proxyhealth_") -> dict[tuple[object, ...], float]:
    """Return the values of all series with this prefix, by their name and sorted labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(prefix)
    }

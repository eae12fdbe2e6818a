"""The rules for Prometheus and the dashboard for Grafana, with the settings of the project filled in."""

from pathlib import Path

from proxyhealth.conf import conf
from proxyhealth.metrics.collector import metric_prefix

_CONTRIB = Path(__file__).parents[1] / "contrib"


def rules() -> str:
    """Return the rules as YAML, with ``METRICS_NAMESPACE`` and with the links of ``RUNBOOK_URL``."""
    text = _with_prefix(_CONTRIB / "prometheus" / "rules.yml")
    return text.replace("docs/runbook.md#", f"{conf.RUNBOOK_URL}#") if conf.RUNBOOK_URL else text


def dashboard() -> str:
    """Return the dashboard as JSON, with ``METRICS_NAMESPACE``."""
    return _with_prefix(_CONTRIB / "grafana" / "dashboard.json")


def _with_prefix(path: Path) -> str:
    return path.read_text(encoding="utf-8").replace("proxyhealth_", metric_prefix())

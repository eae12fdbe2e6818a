"""``make prometheus``: run Prometheus with the alert rules beside ``make run``, until Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from project import control
from project.fleet import HOST
from project.startup import BASE_DIR, DEFAULT_PORT, VAR, CannotStart, is_set, read_port, require_free_port

TEMPLATE = Path(__file__).with_suffix(".yml")
TARGET = f"{HOST}:8000"


def main() -> int:
    """Replace this process with Prometheus. Return an exit code only if that fails."""
    os.chdir(BASE_DIR)
    try:
        binary = shutil.which("prometheus")
        if binary is None:
            raise CannotStart("Prometheus is not installed. Install it (Debian: apt-get install prometheus)")
        port, own_port = _demo_port(), read_port("PROMETHEUS_PORT", 9090)
        try:
            require_free_port(own_port, "Prometheus")
        except CannotStart as error:
            command = f"PROMETHEUS_PORT={own_port + 1} make prometheus"
            raise CannotStart(f"{error}. Use another port: {command}") from None
        config = _write_config(port)
        # No link to the page of the alerts: its path in Debian's package differs.
        print(
            f"make prometheus: http://{HOST}:{own_port}/ scrapes http://{HOST}:{port}/metrics. "
            "The alerts are under “Alerts”.",
            flush=True,
        )
        options = [f"--config.file={config}", f"--storage.tsdb.path={VAR / 'prometheus'}"]
        # By default, pages of all sites may read the metrics.
        options += [f"--web.listen-address={HOST}:{own_port}", "--web.cors.origin=", "--log.level=warn"]
        os.execv(binary, [binary, *options])
    except CannotStart as error:
        print(f"make prometheus: {error}", file=sys.stderr)
    return 1


def _demo_port() -> int:
    """Return PORT, the port of the demo that runs in this directory, or the default port."""
    if not is_set("PORT"):
        with suppress(CannotStart):
            return int(control.send("port"))
    return read_port("PORT", DEFAULT_PORT)


def _write_config(port: int) -> Path:
    config = VAR / "prometheus.yml"
    try:
        VAR.mkdir(exist_ok=True)
        config.touch(mode=0o600)
        config.chmod(0o600)  # touch() keeps the mode of an existing file
        config.write_text(_config(port))
    except OSError as error:
        raise CannotStart(f"cannot write to {VAR}: {error.strerror}") from error
    return config


def _config(port: int) -> str:
    text = TEMPLATE.read_text().replace(TARGET, f"{HOST}:{port}")
    token = os.environ.get("PROXYHEALTH_METRICS_TOKEN")
    # A JSON string is a valid YAML string.
    return f"{text}    authorization:\n      credentials: {json.dumps(token)}\n" if token else text


if __name__ == "__main__":
    sys.exit(main())

"""``make prometheus``: a real Prometheus with the rules, beside ``make run``, until Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from pathlib import Path

from project.fleet import HOST

BASE_DIR = Path(__file__).resolve().parent.parent
VAR = BASE_DIR / "var"
TEMPLATE = Path(__file__).with_suffix(".yml")
TARGET = f"{HOST}:8000"


class CannotRun(Exception):
    """Says in one line why not."""


def main() -> int:
    """Become a Prometheus; returns only if that is not possible."""
    try:
        binary = shutil.which("prometheus")
        if binary is None:
            raise CannotRun("Prometheus is not installed (Debian: apt-get install prometheus)")
        port, own_port = _port("PORT", 8000), _port("PROMETHEUS_PORT", 9090)
        _require_free_port(own_port)
        config = _write_config(port)
        # Not the page of the alerts: Debian's package has it at another path.
        print(
            f"make prometheus: http://{HOST}:{own_port}/, from http://{HOST}:{port}/metrics; see “Alerts”",
            flush=True,
        )
        options = [f"--config.file={config}", f"--storage.tsdb.path={VAR / 'prometheus'}"]
        os.execv(binary, [binary, *options, f"--web.listen-address={HOST}:{own_port}", "--log.level=warn"])
    except CannotRun as error:
        print(f"make prometheus: {error}", file=sys.stderr)
    return 1


def _port(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise CannotRun(f"{name} must be a number from 1 to 65535, not {text!r}")
    return int(text)


def _require_free_port(port: int) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError as error:
            raise CannotRun(
                f"port {port} cannot be used ({error.strerror}); "
                f"choose another one with PROMETHEUS_PORT={port + 1} make prometheus"
            ) from None


def _write_config(port: int) -> Path:
    config = VAR / "prometheus.yml"
    try:
        VAR.mkdir(exist_ok=True)
        config.touch(mode=0o600)
        config.chmod(0o600)  # it may have been there
        config.write_text(_config(port))
    except OSError as error:
        raise CannotRun(f"cannot write to {VAR}: {error.strerror}") from error
    return config


def _config(port: int) -> str:
    text = TEMPLATE.read_text().replace(TARGET, f"{HOST}:{port}")
    token = os.environ.get("PROXYHEALTH_METRICS_TOKEN")
    # A text in JSON is one in YAML.
    return f"{text}    authorization:\n      credentials: {json.dumps(token)}\n" if token else text


if __name__ == "__main__":
    sys.exit(main())

"""The receiver of the alerts: the webhook that the example of alertmanager.yml names."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer


class AlertReceiver:
    """A webhook that remembers the alerts that fire."""

    def __init__(self, port: int) -> None:
        self._alerts: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for alert in body["alerts"]:
                    if alert["status"] == "firing":
                        outer._alerts[alert["labels"]["alertname"]] = alert["annotations"]["runbook_url"]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def alerts(self) -> dict[str, str]:
        """Return the address of the runbook by the name of the alert."""
        return dict(self._alerts)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

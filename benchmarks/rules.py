"""Measure how long Prometheus takes to evaluate the shipped rules.

    python -m benchmarks.rules [--proxies 1000 10000] [--quick]

Every 15 s, Prometheus scrapes two targets and evaluates the rules. First all proxies are ok, then 99 % of
them fail, until their alerts fire. The program prints the longest evaluation in each state. ``--quick`` only
shows that the program works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.error import URLError
from urllib.request import urlopen

import proxyhealth

RULES = Path(proxyhealth.__file__).parent / "contrib" / "prometheus" / "rules.yml"
DURATION = re.compile(r'^prometheus_rule_group_last_duration_seconds\{.*;proxyhealth"\} (\S+)$', re.MULTILINE)


class Target(BaseHTTPRequestHandler):
    """A web process whose proxies are ok or failing. ``INTERVAL`` is 1 s, to confirm failures soon."""

    count = 0
    failing = False

    def do_GET(self) -> None:
        down = self.count * 99 // 100 if self.failing else 0
        lines = [
            "proxyhealth_snapshot_up 1",
            "proxyhealth_snapshot_stale 0",
            "proxyhealth_interval_seconds 1",
            f'proxyhealth_rounds_total{{outcome="success"}} {time.time():.0f}',
            f'proxyhealth_proxies{{status="ok"}} {self.count - down}',
            f'proxyhealth_proxies{{status="unreachable"}} {down}',
        ]
        for number in range(self.count):
            label = f'proxy_id="{number:032x}"'
            lines += [
                f"proxyhealth_health_check_results{{{label}}} {-2 if number < down else 1}",
                f'proxyhealth_proxy_info{{{label},name="proxy-{number}",host="{number}.example.com"}} 1',
                f"proxyhealth_tls_not_after_timestamp_seconds{{{label}}} 9999999999",
            ]
            if number < down:
                lines.append(f'proxyhealth_probe_failure{{{label},reason="connect"}} 1')
        self.send_response(200)
        self.end_headers()
        self.wfile.write("\n".join([*lines, ""]).encode())

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def prometheus(step: int) -> Iterator[str]:
    """Run two targets and a Prometheus. Yield its URL."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Target) for _ in range(2)]
    for server in servers:
        Thread(target=server.serve_forever, daemon=True).start()
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "global": {"scrape_interval": f"{step}s", "evaluation_interval": f"{step}s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {
                "job_name": "web",
                "static_configs": [{"targets": [f"127.0.0.1:{s.server_port}" for s in servers]}],
            }
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "prometheus.yml")
        path.write_text(json.dumps(config))  # JSON is YAML, too
        options = [f"--config.file={path}", f"--storage.tsdb.path={folder}/data", "--log.level=error"]
        process = subprocess.Popen(["prometheus", *options, f"--web.listen-address={address}"])
        try:
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(30)
            for server in servers:
                server.shutdown()


def longest_evaluation(base: str, seconds: float) -> float:
    """Return the seconds of the longest evaluation while the time goes by."""
    longest, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.5)
        try:
            text = urlopen(f"{base}/metrics", timeout=30).read().decode()
        except URLError:  # it is starting
            continue
        longest = max([longest, *map(float, DURATION.findall(text))])
    return longest


def firing(base: str) -> int:
    with urlopen(f"{base}/api/v1/alerts", timeout=60) as answer:
        return len(json.load(answer)["data"]["alerts"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--proxies", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    step, seconds = (1, 4) if options.quick else (15, 100)
    print("| proxies | all ok: s | 99 % fail: s | alerts |\n|---|---|---|---|")
    for count in [20] if options.quick else options.proxies:
        Target.count, Target.failing = count, False
        with prometheus(step) as base:
            calm = longest_evaluation(base, seconds)
            Target.failing = True
            busy = longest_evaluation(base, seconds)
            print(f"| {count:,} | {calm:.2f} | {busy:.2f} | {firing(base):,} |", flush=True)


if __name__ == "__main__":
    main()

"""Measure the CPU and wall time of one probe, compared with other clients in the same run.

    python -m benchmarks.probe [--probes 400] [--repeat 7]

Each client is a separate process. The clients take turns: each sends a block of ``--probes`` probes,
``--repeat`` times. The result is the median block. The Blackbox exporter and a small Go client are
included if they are installed (Debian: prometheus-blackbox-exporter, golang-go). The exit code is 1 if a
target is missed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import shutil
import socket
import ssl
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import certifi
import trustme

from benchmarks.processes import cpu_of, is_listening, wait_for
from benchmarks.servers import target

WARM_UP = 50
BASE = "http.client"
OURS = "proxyhealth"
BLACKBOX = "blackbox exporter"
LIMITS = {"http": 2.0, "https": 1.5}

GO_CLIENT = """package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"time"
)

func cpu() float64 {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

func main() {
	pool, _ := x509.SystemCertPool()
	if pool == nil {
		pool = x509.NewCertPool()
	}
	pem, _ := os.ReadFile(os.Args[2])
	pool.AppendCertsFromPEM(pem)
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}}}
	probe := func() {
		response, err := client.Get(os.Args[1])
		if err != nil {
			panic(err)
		}
		var report struct{ Errors, Warnings []string }
		if err := json.NewDecoder(response.Body).Decode(&report); err != nil {
			panic(err)
		}
		response.Body.Close()
	}
	var line string
	for {
		if _, err := fmt.Scanln(&line); err != nil {
			return
		}
		count, _ := strconv.Atoi(line)
		cpu0, wall0 := cpu(), time.Now()
		for i := 0; i < count; i++ {
			probe()
		}
		fmt.Println(cpu()-cpu0, time.Since(wall0).Seconds())
	}
}
"""


class Cost(NamedTuple):
    """Seconds for one block of probes."""

    cpu: float
    wall: float


class Files(NamedTuple):
    """Paths: a test authority, a bundle of it and the public ones, and the server's chain with its key."""

    authority: str
    bundle: str
    server: str


# Sends a number of probes and returns their total cost.
Client = Callable[[int], Cost]


def probe_with_http_client(url: str, files: Files) -> Callable[[], None]:
    context = ssl.create_default_context(cafile=files.bundle)
    host = url.removeprefix("https://").removeprefix("http://")

    def probe() -> None:
        if url.startswith("https"):
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, timeout=5, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, timeout=5)
        connection.request("GET", "/healthz-report")
        response = connection.getresponse()
        assert response.status == 200
        json.loads(response.read())
        connection.close()

    return probe


def probe_with_requests(url: str, files: Files) -> Callable[[], None]:
    import requests

    def probe() -> None:
        response = requests.get(f"{url}/healthz-report", timeout=5, verify=files.bundle)
        assert response.status_code == 200
        response.json()

    return probe


def probe_with_proxyhealth(url: str, files: Files) -> Callable[[], None]:
    from django.conf import settings

    settings.configure(PROXYHEALTH={"CA_BUNDLE": files.authority})
    from proxyhealth.probing.probe import probe as probe_proxy
    from proxyhealth.snapshot import Proxy
    from proxyhealth.statuses import Status

    now = datetime.now(UTC)
    proxy = Proxy(UUID(int=1), "paris", "", "", url, "", "", False, now, now)

    def probe() -> None:
        assert probe_proxy(proxy).status is Status.OK

    return probe


PYTHON_CLIENTS = {
    BASE: probe_with_http_client,
    "requests.get": probe_with_requests,
    OURS: probe_with_proxyhealth,
}


def _run_blocks(name: str, url: str, files: Files, pipe: Connection) -> None:
    probe = PYTHON_CLIENTS[name](url, files)
    while count := pipe.recv():
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(count):
            probe()
        pipe.send((time.process_time() - cpu, time.perf_counter() - wall))


@contextmanager
def python_client(name: str, url: str, files: Files) -> Iterator[Client]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_run_blocks, args=(name, url, files, theirs)
    )
    process.start()
    theirs.close()

    def run(count: int) -> Cost:
        ours.send(count)
        return Cost(*ours.recv())

    try:
        yield run
    finally:
        ours.send(0)
        process.join()


@contextmanager
def go_client(url: str, files: Files, folder: Path) -> Iterator[Client]:
    (folder / "main.go").write_text(GO_CLIENT)
    binary = folder / "go-client"
    environment = {**os.environ, "GOCACHE": str(folder / "gocache"), "GO111MODULE": "off"}
    subprocess.run(["go", "build", "-o", binary, "main.go"], cwd=folder, env=environment, check=True)
    process = subprocess.Popen(
        [binary, f"{url}/healthz-report", files.authority],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout

    def run(count: int) -> Cost:
        process.stdin.write(f"{count}\n")
        process.stdin.flush()
        return Cost(*map(float, process.stdout.readline().split()))

    try:
        yield run
    finally:
        process.stdin.close()
        process.wait()


@contextmanager
def blackbox_exporter(url: str, files: Files, folder: Path) -> Iterator[Client]:
    http_options: dict[str, object] = {"preferred_ip_protocol": "ip4"}
    if url.startswith("https"):
        http_options["tls_config"] = {"ca_file": files.bundle}
    config = {"modules": {"report": {"prober": "http", "timeout": "5s", "http": http_options}}}
    (folder / "blackbox.json").write_text(json.dumps(config))  # JSON is valid YAML
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    process = subprocess.Popen(
        [
            "prometheus-blackbox-exporter",
            f"--web.listen-address=127.0.0.1:{port}",
            f"--config.file={folder / 'blackbox.json'}",
        ],
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: is_listening(port), seconds=20, pause=0.05)
    control = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def run(count: int) -> Cost:
        cpu, wall = cpu_of(process.pid), time.perf_counter()
        for _ in range(count):
            control.request("GET", f"/probe?module=report&target={url}/healthz-report")
            text = control.getresponse().read()
            assert b"probe_success 1" in text, text.decode()
        return Cost(cpu_of(process.pid) - cpu, time.perf_counter() - wall)

    try:
        yield run
    finally:
        control.close()
        process.terminate()
        process.wait()


def make_files(folder: Path) -> Files:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    files = Files(*(str(folder / name) for name in ("authority.pem", "bundle.pem", "server.pem")))
    authority.cert_pem.write_to_path(files.authority)
    Path(files.bundle).write_bytes(Path(certifi.where()).read_bytes() + authority.cert_pem.bytes())
    Path(files.server).write_bytes(
        b"".join(blob.bytes() for blob in certificate.cert_chain_pems) + certificate.private_key_pem.bytes()
    )
    return files


def measure(scheme: str, files: Files, folder: Path, probes: int, repeat: int) -> dict[str, Cost]:
    """Return the median cost of one probe, by client."""
    with ExitStack() as stack:
        port = stack.enter_context(target(files.server if scheme == "https" else ""))
        url = f"{scheme}://127.0.0.1:{port}"
        clients: dict[str, Client] = {
            name: stack.enter_context(python_client(name, url, files)) for name in PYTHON_CLIENTS
        }
        if shutil.which("go"):
            clients["Go net/http"] = stack.enter_context(go_client(url, files, folder))
        if shutil.which("prometheus-blackbox-exporter"):
            clients[BLACKBOX] = stack.enter_context(blackbox_exporter(url, files, folder))
        costs: dict[str, list[Cost]] = {name: [] for name in clients}
        for run in clients.values():
            run(WARM_UP)
        for _ in range(repeat):
            for name, run in clients.items():
                costs[name].append(run(probes))
    return {
        name: Cost(*(statistics.median(column) / probes for column in zip(*blocks, strict=True)))
        for name, blocks in costs.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--probes", type=int, default=400, help="probes in a block")
    parser.add_argument("--repeat", type=int, default=7, help="blocks of each client")
    options = parser.parse_args()
    print("| scheme | client | CPU ms | wall ms | CPU, http.client = 1 |")
    print("|---|---|---|---|---|")
    missed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make_files(folder)
        for scheme, limit in LIMITS.items():
            costs = measure(scheme, files, folder, options.probes, options.repeat)
            base = costs[BASE].cpu
            for client, cost in costs.items():
                row = f"{cost.cpu * 1e3:.3f} | {cost.wall * 1e3:.3f} | {cost.cpu / base:.2f}"
                print(f"| {scheme} | {client} | {row} |", flush=True)
            if costs[OURS].cpu > limit * base:
                missed.append(
                    f"{scheme}: {costs[OURS].cpu / base:.2f} times http.client, target: at most {limit}"
                )
            if scheme == "http" and BLACKBOX in costs and costs[OURS].cpu >= costs[BLACKBOX].cpu:
                missed.append("http: not less CPU than the Blackbox exporter")
    for line in missed:
        print(f"target missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())

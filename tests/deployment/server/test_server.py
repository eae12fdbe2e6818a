"""docs/deployment.md, followed on this machine with the files of contrib/deploy as they stand.

All tests share one server. They are in one file, so that with ``--dist loadfile`` one process runs them, in
this order.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import requests

from tests.deployment.server.alerts import AlertReceiver
from tests.deployment.server.guide import all_commands
from tests.deployment.server.site import NOT_RUN, PASSWORD, Site
from tests.support.proxies import WorkspaceProxyServer, wait_for

SECRETS = ("SECRET_KEY", "DATABASE_URL", "REDIS_URL", "PROXYHEALTH_METRICS_TOKEN")


@contextmanager
def polling(site: Site) -> Iterator[list[Any]]:
    """Poll the site until the block ends. Yield the responses that are not 200, and the errors."""
    ended = threading.Event()
    failures: list[Any] = []

    def poll() -> None:
        while not ended.wait(0.05):
            try:
                response = site.get("/livez")
            except requests.RequestException as error:
                failures.append(error)
            else:
                if response.status_code != 200:
                    failures.append(response.status_code)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield failures
    finally:
        ended.set()
        thread.join(30)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def raw(site: Site, request: str, *, limit: int = 1_000_000) -> bytes:
    """Send bytes over TLS. Return what comes until nginx closes the connection, or until ``limit`` bytes."""
    with (
        socket.create_connection(("127.0.0.1", site.ports["https"]), timeout=15) as sock,
        site.tls().wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        tls.sendall(request.encode())
        received = b""
        while len(received) < limit and (data := tls.recv(65536)):
            received += data
        return received


@pytest.fixture(scope="module")
def operator(site: Site) -> requests.Session:
    """A session of the superuser that the guide creates."""
    session = requests.Session()
    session.verify = str(site.ca)
    session.trust_env = False  # it may name another bundle of authorities
    session.headers["Referer"] = "https://localhost/"
    page = session.get(f"{site.base}/admin/login/", timeout=10)
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
    assert token
    fields = {
        "username": "operator",
        "password": PASSWORD,
        "csrfmiddlewaretoken": token[1],
        "next": "/admin/",
    }
    response = session.post(f"{site.base}/admin/login/", fields, timeout=10, allow_redirects=False)
    assert response.status_code == 302
    assert "Secure" in response.headers["Set-Cookie"]
    return session


def test_http__redirects_to_https(site: Site):
    url = f"http://localhost:{site.ports['http']}/regions/?x=1"
    response = requests.get(url, headers={"X-Forwarded-Proto": "https"}, timeout=5, allow_redirects=False)
    assert (response.status_code, response.headers["Location"]) == (301, "https://localhost/regions/?x=1")


def test_forwarded_headers__of_clients_are_replaced(site: Site):
    """Django would redirect a request that is not secure, and build links to a forged host."""
    lies = {"X-Forwarded-Proto": "http", "X-Forwarded-Host": "evil.example", "Forwarded": "proto=http"}
    assert site.get("/livez", headers=lies).status_code == 200
    location = site.get("/regions/", headers=lies).headers["Location"]
    assert location == "/login/?next=/regions/"


def test_other_hosts__get_no_answer_and_no_certificate(site: Site):
    with (
        pytest.raises((ssl.SSLError, ConnectionResetError)),
        socket.create_connection(("127.0.0.1", site.ports["https"]), timeout=5) as sock,
    ):
        site.tls().wrap_socket(sock, server_hostname="evil.example")
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{site.ports['http']}/", timeout=5)


def test_static_files__are_compressed_and_cached_for_ever(site: Site):
    page = site.get("/login/").text
    path = re.search(r"/static/[\w./-]+\.[0-9a-f]{12}\.css", page)
    assert path, page
    response = site.get(path[0])
    assert response.status_code == 200
    assert "immutable" in response.headers["Cache-Control"]
    assert response.headers["Content-Encoding"] == "gzip"


def test_json__keeps_its_strong_etag(site: Site, operator: requests.Session, paris: WorkspaceProxyServer):
    url = f"{site.base}/api/v2/regions"
    response = wait_for(lambda: len((r := operator.get(url, timeout=5)).content) > 200 and r, 40, "paris")
    etag = response.headers["ETag"]
    assert etag.startswith('"')
    assert response.headers["Content-Encoding"] == "gzip"
    again = operator.get(url, timeout=5, headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\n",
        "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["two lengths", "two content lengths", "two codings", "unknown coding"],
)
def test_smuggled_request__is_refused(site: Site, framing: str):
    answer = raw(site, f"POST /login/ HTTP/1.1\r\nHost: localhost\r\n{framing}")
    assert re.match(rb"HTTP/1.1 (400|501) ", answer)
    assert answer.count(b"HTTP/1.1 ") == 1


def test_large_request__is_refused(site: Site):
    head = "POST /login/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n"
    assert raw(site, head, limit=12).startswith(b"HTTP/1.1 413 ")


def test_slow_clients__occupy_no_thread_and_are_closed(site: Site):
    """More clients than threads send half a request. Others are still served."""
    clients = []
    for _ in range(40):
        sock = socket.create_connection(("127.0.0.1", site.ports["https"]), timeout=20)
        clients.append(site.tls().wrap_socket(sock, server_hostname="localhost"))
        clients[-1].sendall(b"POST /login/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx")
    begin = time.monotonic()
    assert site.get("/livez").elapsed.total_seconds() < 5
    for client in clients:
        while client.recv(1000):
            pass
        client.close()
    assert time.monotonic() - begin < 10


def test_sign_in__is_limited(site: Site, operator: requests.Session):
    statuses = [site.get("/login/").status_code for _ in range(12)]
    assert statuses[-1] == 429
    assert site.get("/livez").status_code == 200


def test_site__shows_the_status_of_a_proxy(site: Site, paris: WorkspaceProxyServer):
    wait_for(lambda: 'proxyhealth_proxies{status="ok"} 1.0' in site.metrics(), 40, "paris is ok")


def test_metrics__require_the_token(site: Site):
    assert site.get("/metrics").status_code == 401
    assert site.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_secrets__are_in_no_list_of_processes_and_no_log(site: Site):
    secrets = [site.secret(name) for name in SECRETS]
    secrets += [url.rpartition("@")[0].rpartition(":")[2] for url in secrets if "@" in url]
    seen = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.exists()]
    seen += [file.read_bytes() for file in (site.folder / "var/log").iterdir()]
    assert len(secrets) == 6
    assert not [text for text in seen for secret in secrets if secret.encode() in text]


def test_environment__is_unreadable_for_other_users(site: Site):
    private = ["environment", "valkey", "valkey/server.key", "valkey/password.conf"]
    modes = [(site.folder / "etc/proxyhealth" / name).stat().st_mode & 0o777 for name in private]
    assert modes == [0o640, 0o700, 0o600, 0o600]
    token = site.folder / "etc/prometheus/proxyhealth-token"
    assert token.stat().st_mode & 0o777 == 0o640


def test_valkey__refuses_clients_without_password_or_tls(site: Site):
    options: dict[str, Any] = {"host": "localhost", "port": site.ports["valkey"]}
    tls = {"ssl": True, "ssl_ca_certs": str(site.folder / "etc/proxyhealth/valkey.crt")}
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(**options, **tls).ping()
    with pytest.raises(redis.ConnectionError):
        redis.Redis(**options).ping()


@pytest.mark.parametrize("name", ["proxyhealth-worker", "proxyhealth-beat", "proxyhealth-web"])
def test_killed_service__comes_back(site: Site, name: str):
    before = site.main_pid(name)
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: site.main_pid(name) not in (0, before), 40, f"{name} runs again")
    site.wait_until_ready()


def test_killed_pool_process__is_replaced(site: Site):
    main = site.main_pid("proxyhealth-worker")
    # Before it is ready, a killed process ends the whole worker.
    ready = re.compile(rf"ready\.\W.*\W{main}\b")
    wait_for(lambda: ready.search(site.log("proxyhealth-worker")), 40, "the worker is ready")
    before = children(main)
    assert len(before) == 4
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: len(set(children(main)) - {before[0]}) == 4, 40, "a new pool process")
    assert site.main_pid("proxyhealth-worker") == main


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("postgresql", "database"),
        ("redis-server", "cache"),
        ("proxyhealth-worker", "snapshot"),
        ("proxyhealth-beat", "snapshot"),
    ],
)
def test_readyz__names_the_dead_part(site: Site, name: str, part: str):
    site.systemctl("stop", name)
    wait_for(lambda: not site.get("/readyz").json()["parts"][part]["ok"], 40, f"{part} is red")
    assert not site.ready()
    assert site.get("/livez").status_code == 200
    site.systemctl("start", name)
    site.wait_until_ready()


def test_restart_of_web_server__refuses_no_request(site: Site):
    with polling(site) as failures:
        site.systemctl("restart", "proxyhealth-web")
        site.wait_until_ready()
    assert not failures


def test_commands_of_the_runbook__reach_worker_and_redis(site: Site):
    output = site.follow("Commands of the runbook")
    assert "1 node online." in output
    assert "maxmemory_policy:noeviction" in output


def test_restore__brings_the_backup_back(site: Site, paris: WorkspaceProxyServer):
    site.follow("Backup")
    site.manage(
        "shell", "--command", "from proxyhealth.models import *; WorkspaceProxy.objects.all().delete()"
    )
    site.follow("Restore")
    site.wait_until_ready()
    wait_for(lambda: 'proxyhealth_proxies{status="ok"} 1.0' in site.metrics(), 40, "paris is back")


def test_upgrade_and_rollback__keep_the_site_ready(site: Site):
    current = site.folder / "opt/proxyhealth/current"
    with polling(site) as failures:
        site.follow("Operation")
        site.follow("Upgrade")
        assert current.resolve().name == "next"
        site.follow("Rollback")
    assert current.resolve().name == "main"
    assert os.readlink(f"/proc/{site.main_pid('proxyhealth-worker')}/cwd") == str(current.resolve())
    assert not failures


def test_uvicorn__serves_the_same_site(site: Site, paris: WorkspaceProxyServer):
    site.follow("uvicorn")
    site.wait_until_ready()
    command = Path(f"/proc/{site.main_pid('proxyhealth-web')}/cmdline").read_text()
    assert "uvicorn" in command
    assert 'status="ok"' in site.metrics()
    assert site.get("/metrics").status_code == 401
    assert site.get("/static/proxyhealth/health.css").status_code == 200
    with polling(site) as failures:
        site.systemctl("restart", "proxyhealth-web")
        site.wait_until_ready()
    assert not failures


def test_alert__arrives_at_the_receiver(site: Site, receiver: AlertReceiver):
    wait_for(lambda: "ProxyhealthProxyUnreachable" in receiver.alerts(), 60, "the alert arrives")
    link = receiver.alerts()["ProxyhealthProxyUnreachable"]
    assert link == "https://git.example.com/proxyhealth/docs/runbook.md#proxyhealthproxyunreachable"


def test_guide__has_no_command_that_was_not_run(site: Site):
    """The last test: the others, in the same process, have followed all sections."""
    missing = [
        command
        for lines in all_commands().values()
        for command in lines
        if command not in site.shell.executed and not command.startswith(NOT_RUN)
    ]
    assert not missing, "or not the whole file was run"

"""nginx in front of the web server, with the configuration of contrib/deploy."""

from __future__ import annotations

import re
import socket
import ssl
import time

import pytest
import requests

from tests.deployment.server.site import PASSWORD, Site
from tests.support.proxies import WorkspaceProxyServer, wait_for


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

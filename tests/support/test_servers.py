from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time

import pytest
import trustme

from tests.support import servers
from tests.support.machine import at_most
from tests.support.servers import Server

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def exchange(server: Server, request: bytes = REQUEST, tls: ssl.SSLContext | None = None) -> bytes:
    """Return all bytes that the server sends until it closes."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection((server.host, server.port), timeout=5))
        if tls is not None:
            sock = stack.enter_context(tls.wrap_socket(sock, server_hostname=server.host))
        sock.sendall(request)
        received = b""
        while data := sock.recv(65536):
            received += data
        return received


def connect(server: Server) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=5)


def test_server__sends_exactly_these_bytes_and_closes() -> None:
    with Server(servers.send(b"\x00\xffanything")) as server:
        assert exchange(server) == b"\x00\xffanything"


def test_server__counts_connections_and_keeps_requests() -> None:
    with Server(servers.send(b"x")) as server:
        exchange(server)
        exchange(server, b"GET /second?a=b HTTP/1.1\r\n\r\n")
        assert server.connections == 2
        assert server.requests == [REQUEST, b"GET /second?a=b HTTP/1.1\r\n\r\n"]
        assert server.paths == ["/", "/second?a=b"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.44.55.66"])
def test_server__listens_on_a_free_port_of_the_address(host: str) -> None:
    with Server(servers.send(b"one"), host=host) as one, Server(servers.send(b"two"), host=host) as two:
        assert one.url == f"http://{host}:{one.port}"
        assert (exchange(one), exchange(two)) == (b"one", b"two")


def test_server__holds_the_connection_until_the_peer_closes() -> None:
    with Server(servers.send_and_hold(b"first")) as server, connect(server) as sock:
        sock.sendall(REQUEST)
        assert sock.recv(100) == b"first"
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(100)


def test_server__resets_after_the_bytes() -> None:
    with Server(servers.send_and_reset(b"first")) as server, connect(server) as sock:
        sock.sendall(REQUEST)
        assert sock.recv(100) == b"first"
        with pytest.raises(ConnectionResetError):
            sock.recv(100)


def test_server__resets_before_reading() -> None:
    with Server(servers.send_and_reset(b""), read=False) as server:
        # The reset may come before connect() returns.
        with pytest.raises(ConnectionResetError), connect(server) as sock:
            sock.recv(100)
        assert server.requests == []


def test_server__drips_one_byte_at_a_time() -> None:
    with Server(servers.drip(b"abc", 0.05, start=b"head")) as server, connect(server) as sock:
        begin = time.monotonic()
        sock.sendall(REQUEST)
        received = []
        while data := sock.recv(100):
            received.append(data)
        assert b"".join(received) == b"headabc"
        assert time.monotonic() - begin >= 0.1


def test_server__runs_its_scripts_in_sequence() -> None:
    script = servers.sequence(servers.send(b"1"), servers.send(b"2"))
    with Server(script) as server:
        assert [exchange(server) for _ in range(3)] == [b"1", b"2", b"2"]


def test_server__speaks_tls() -> None:
    ca = trustme.CA()
    client = ssl.create_default_context()
    ca.configure_trust(client)
    with Server(servers.send(b"secret"), tls=servers.server_context(ca, "127.0.0.1")) as server:
        assert server.url.startswith("https://")
        assert exchange(server, tls=client) == b"secret"
        assert server.requests == [REQUEST]


def test_server__survives_a_failed_handshake() -> None:
    ca = trustme.CA()
    with Server(servers.send(b"secret"), tls=servers.server_context(ca, "127.0.0.1")) as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            exchange(server, tls=ssl.create_default_context())
        client = ssl.create_default_context()
        ca.configure_trust(client)
        assert exchange(server, tls=client) == b"secret"
        assert server.connections == 2


@pytest.mark.parametrize(
    "script",
    [
        servers.hold,
        servers.drip(b"x" * 1000, 10),
        servers.flood(b"x" * 65536),
        servers.after(60, servers.send(b"late")),
    ],
)
@pytest.mark.parametrize("secure", [False, True])
def test_server__stops_at_once_during_any_script(script: servers.Script, secure: bool) -> None:
    threads = set(threading.enumerate())
    ca = trustme.CA()
    tls = servers.server_context(ca, "127.0.0.1") if secure else None
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(script, tls=tls))
        sock = stack.enter_context(connect(server))
        if secure:
            client = ssl.create_default_context()
            ca.configure_trust(client)
            sock = stack.enter_context(client.wrap_socket(sock, server_hostname=server.host))
        sock.sendall(REQUEST)
        deadline = time.monotonic() + 5
        while not server.requests:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with at_most(2):
            server.__exit__()
        assert set(threading.enumerate()) <= threads
        with socket.socket() as other:  # its port is free again
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind((server.host, server.port))


def test_server__raises_the_exception_of_a_script() -> None:
    def script(sock: socket.socket) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Server(script) as server:
        exchange(server)


def test_refusing__refuses() -> None:
    with servers.refusing() as port, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_silent__does_not_accept_connections() -> None:
    with servers.silent() as port, pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", port), timeout=0.2)


def test_response__is_well_formed() -> None:
    assert servers.response("{}", "X: y") == (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nX: y\r\n\r\n{}"
    )
    assert b"Content-Length" not in servers.response(length="")
    assert servers.chunked(b"ab", b"c").endswith(b"\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")

"""A new connection for each request, with limits on its total time and its bytes."""

import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress

from proxyhealth.exceptions import AddressBlocked
from proxyhealth.probing.addresses import Address, address_ip, look_up, routable
from proxyhealth.probing.certificates import Certificate
from proxyhealth.probing.deadline import Deadline
from proxyhealth.probing.policy import AddressPolicy, IPAddress
from proxyhealth.probing.response import Response
from proxyhealth.probing.sockets import PlainSocket, TLSSocket
from proxyhealth.probing.tls import HANDSHAKE, shake_hands
from proxyhealth.trace import CONNECT, FIRST_BYTE, LOOK_UP, TLS

_WRITE_SIZE = 8 * 1024  # fits into one record of TLS


class Connection:
    """An HTTP connection for one request. It resolves its host, checks the addresses, and connects once."""

    peer: IPAddress

    def __init__(
        self,
        host: str,
        port: int,
        *,
        deadline: Deadline,
        policy: AddressPolicy,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.deadline = deadline
        self.first_to_expire: Certificate | None = None  # in the peer's chain
        self.sent = b""  # by get()
        self.response: Response | None = None
        self._policy = policy
        self._context = context
        self._sock: PlainSocket | None = None

    def get(self, path: str, headers: Mapping[str, str]) -> Response:
        """Send a request, and read the headers of the response.

        Raise ``AddressBlocked``, ``OSError`` (also for DNS and TLS), or as :meth:`Response.begin`.
        """
        sock = self._connect()
        data = self._request("GET", path, headers)
        sock.sendall(data)
        self.sent = data
        response = self._begin(sock)
        self.deadline.phase = f"reading the report of {self.host}"
        return response

    def post(self, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Send a request with ``body``, and read the headers of the response. Raise as :meth:`get`."""
        sock = self._connect()
        data = self._request("POST", path, {**headers, "Content-Length": str(len(body))}) + body
        with suppress(ConnectionError):  # a server may respond, and close, before it has read everything
            for start in range(0, len(data), _WRITE_SIZE):
                sock.settimeout(self.deadline.remaining())
                sock.sendall(data[start : start + _WRITE_SIZE])
        return self._begin(sock)

    def _begin(self, sock: PlainSocket) -> Response:
        self.response = response = Response(sock)
        try:
            response.begin()
        except BaseException:
            response.close()
            raise
        return response

    @property
    def tls_version(self) -> str:
        """The version of TLS, or an empty string before the end of the handshake, and without TLS."""
        return (isinstance(self._sock, TLSSocket) and self._sock.tls.version()) or ""

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()

    def _request(self, method: str, path: str, headers: Mapping[str, str]) -> bytes:
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port != (80 if self._context is None else 443):
            host = f"{host}:{self.port}"
        lines = (
            f"{method} {path} HTTP/1.1",
            f"Host: {host}",
            *(f"{name}: {headers[name]}" for name in headers),
        )
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")

    def _connect(self) -> PlainSocket:
        """Connect to a permitted address. Raise ``AddressBlocked``, or ``OSError`` (also for DNS and TLS)."""
        self.deadline.phase = f"looking up {self.host}"
        self.deadline.mark(LOOK_UP)
        addresses = look_up(self.host, self.port, self.deadline)
        permitted = [address for address in addresses if self._policy.permits(address_ip(address))]
        if not permitted:
            ips = dict.fromkeys(map(address_ip, addresses))
            blocked = ", ".join(map(str, ips))
            name = self.host if blocked == self.host else f"{self.host} ({blocked})"
            raise AddressBlocked(self._policy.refusal(name, ips))
        self._sock, self.peer = sock, _ = self._connect_to_any(routable(permitted))
        if isinstance(sock, TLSSocket) and self._context:
            self.deadline.phase += f", {HANDSHAKE}"
            self.deadline.mark(TLS)
            sock.start(self._context, self.host.removesuffix("."))
            self.first_to_expire = shake_hands(sock)
        at = "" if str(self.peer) == self.host else f" at {self.peer}"
        self.deadline.phase = f"waiting for {self.host}{at} to answer"
        self.deadline.mark(FIRST_BYTE)
        return sock

    def _connect_to_any(self, addresses: Sequence[Address]) -> tuple[PlainSocket, IPAddress]:
        failures: list[str] = []
        *others, last = addresses
        for place, address in enumerate(others):
            try:
                return self._connect_to(address, len(addresses) - place, failures)
            except OSError as error:
                failures.append(f"{address_ip(address)}: {error.strerror or 'no answer'}")
        return self._connect_to(last, 1, failures)

    def _connect_to(self, address: Address, left: int, failures: list[str]) -> tuple[PlainSocket, IPAddress]:
        ip = address_ip(address)
        before = f" (before that, {', '.join(failures)})" if failures else ""
        text = str(ip)
        self.deadline.phase = f"connecting to {text} port {self.port}{before}"
        self.deadline.mark(CONNECT, text.partition("%")[0])  # a scope may be any text
        sock = (TLSSocket if self._context else PlainSocket)(address.family, socket.SOCK_STREAM)
        sock.deadline = self.deadline
        try:
            # An address that does not respond uses only its share of the time.
            sock.settimeout(self.deadline.remaining() / left)
            with self.deadline.pause():
                sock.connect(address.sockaddr)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.deadline.count_connection()
            sock.settimeout(self.deadline.remaining())
        except OSError:
            sock.close()
            raise
        return sock, ip

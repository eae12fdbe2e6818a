"""A new connection for each request, with limits on its total time and its bytes."""

import http.client
import socket
import ssl
from collections.abc import Sequence
from typing import Self, cast

from proxyhealth.exceptions import AddressBlocked
from proxyhealth.probing.addresses import Address, address_ip, look_up, routable
from proxyhealth.probing.certificates import Certificate
from proxyhealth.probing.deadline import Deadline, WatchedSocket, watchdog
from proxyhealth.probing.policy import AddressPolicy, IPAddress
from proxyhealth.probing.response import Response
from proxyhealth.probing.sockets import MAX_BODY_BYTES, PlainSocket, TLSSocket
from proxyhealth.probing.tls import HANDSHAKE, shake_hands


class Connection(http.client.HTTPConnection):
    """An HTTP connection that resolves its host, checks the addresses, and connects once."""

    sock: PlainSocket | TLSSocket
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
        super().__init__(host, port)
        if context is not None:
            self.default_port = http.client.HTTPS_PORT  # omitted from the Host header
        self.deadline = deadline
        self.first_to_expire: Certificate | None = None  # in the peer's chain
        self._policy = policy
        self._context = context
        self._watched: WatchedSocket | None = None

    def connect(self) -> None:
        """Connect to a permitted address. Raise ``AddressBlocked``, or ``OSError`` (also for DNS and TLS)."""
        self.deadline.phase = f"looking up {self.host}"
        addresses = look_up(self.host, self.port, self.deadline)
        permitted = [address for address in addresses if self._policy.permits(address_ip(address))]
        if not permitted:
            ips = dict.fromkeys(map(address_ip, addresses))
            blocked = ", ".join(map(str, ips))
            name = self.host if blocked == self.host else f"{self.host} ({blocked})"
            raise AddressBlocked(self._policy.refusal(name, ips))
        sock, self.peer = self._connect_to_any(routable(permitted))
        if self._context is None:
            self.sock = sock
        else:
            self.deadline.phase += f", {HANDSHAKE}"
            self.sock = self._wrap(sock, self._context)
        self.sock.deadline = self.deadline
        at = "" if str(self.peer) == self.host else f" at {self.peer}"
        self.deadline.phase = f"waiting for {self.host}{at} to answer"

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
        self.deadline.phase = f"connecting to {ip} port {self.port}{before}"
        sock = PlainSocket(address.family, socket.SOCK_STREAM)
        try:
            # An address that does not respond uses only its share of the time.
            sock.settimeout(self.deadline.remaining() / left)
            sock.connect(address.sockaddr)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(self.deadline.remaining())
        except OSError:
            sock.close()
            raise
        return sock, ip

    def _wrap(self, sock: PlainSocket, context: ssl.SSLContext) -> TLSSocket:
        try:
            name = self.host.removesuffix(".")
            wrapped = cast(  # the context's sslsocket_class
                TLSSocket, context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
            )
        except BaseException:
            sock.close()
            raise
        wrapped.constructed = True
        # One call into OpenSSL lasts as long as the peer sends records without data, such as session tickets.
        # It does not observe the timeout, so the watchdog does.
        self._watched = watchdog.value.watch(wrapped, self.deadline)
        try:
            self.first_to_expire = shake_hands(wrapped)
        except BaseException as error:
            wrapped.close()
            if isinstance(error, OSError):
                self.deadline.remaining()  # if the time is over, report that, not the error it caused
            raise
        return wrapped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        # Not in close(): the parent calls it before the response is read.
        self.close()
        if self._watched is not None:
            self._watched.cancel()

    def read_response(self) -> Response:
        """Read the headers of the response. Raise as :meth:`Response.begin`."""
        self.sock.settimeout(self.deadline.remaining())
        response = Response(self.sock)
        try:
            response.begin()
        except BaseException:
            response.close()
            raise
        self.sock.bytes_left = MAX_BODY_BYTES
        self.deadline.phase = f"reading the report of {self.host}"
        return response

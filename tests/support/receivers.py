"""Real receivers of messages for tests: of webhooks, and of mails over SMTP."""

from __future__ import annotations

import email
import socket
from collections.abc import Callable
from email.message import EmailMessage
from email.policy import default
from typing import Any, NamedTuple, Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.support.ports import free_port
from tests.support.servers import Script, Server, response, send

OK = send(response("ok", content_type="text/plain"))


class Received(NamedTuple):
    """One request: its first line, its headers by name in lower case, and its body."""

    line: str
    headers: dict[str, str]
    body: bytes


class WebhookReceiver(Server):
    """A server that reads requests with their bodies into ``received``, and then runs ``script``."""

    def __init__(self, script: Script = OK, **options: Any) -> None:
        self.received: list[Received] = []
        self._answer = script
        super().__init__(self._receive, read=False, **options)

    def _receive(self, sock: socket.socket) -> None:
        with sock.makefile("rb") as file:
            line = file.readline().decode().strip()
            headers = {}
            while text := file.readline().decode().strip():
                name, _, value = text.partition(": ")
                headers[name.lower()] = value
            self.received.append(Received(line, headers, file.read(int(headers["content-length"]))))
        self._answer(sock)


class MailServer:
    """An SMTP server. ``replies`` has functions or texts in place of "250 OK", by the name of a command.

    ``mails`` has the messages, and ``envelopes`` their senders and recipients.
    """

    def __init__(self, **replies: str | Callable[[str], str]) -> None:
        self.replies: dict[str, Any] = replies
        self.mails: list[EmailMessage] = []
        self.envelopes: list[Envelope] = []
        self.port = free_port()
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port, ident="test")

    def __enter__(self) -> Self:
        self._controller.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._controller.stop()

    def _reply(self, command: str, argument: str = "") -> str:
        reply = self.replies.get(command, "250 OK")
        return str(reply(argument) if callable(reply) else reply)

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        reply = self._reply("MAIL", address)
        if reply.startswith("250"):
            envelope.mail_from = address
        return reply

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        reply = self._reply("RCPT", address)
        if reply.startswith("250"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        reply = self._reply("DATA")
        if reply.startswith("250"):
            self.envelopes.append(envelope)
            content: Any = envelope.content
            self.mails.append(email.message_from_bytes(content, policy=default))
        return reply

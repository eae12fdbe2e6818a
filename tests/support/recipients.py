"""Servers that channels tell: webhooks that answer well or badly, and a mail server. All note what comes."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from aiosmtpd.controller import Controller

from tests.support.ports import free_port

ACCEPTED = "200"


@dataclass(frozen=True)
class Received:
    """A message that arrived: when (monotonic), its id, its text, and how the server answered."""

    at: float
    id: str
    text: str
    answer: str

    @property
    def changes(self) -> list[dict[str, Any]]:
        """Return the changes of a webhook's message."""
        changes: list[dict[str, Any]] = json.loads(self.text)["changes"]
        return changes


@dataclass
class Recipient:
    """A server with a port of its own. ``messages`` are all that arrived, also those that it refused."""

    name: str
    port: int = field(default_factory=free_port)
    messages: list[Received] = field(default_factory=list)

    @property
    def accepted(self) -> list[Received]:
        return [message for message in self.messages if message.answer == ACCEPTED]

    def note(self, id: str, text: str, answer: str) -> None:
        self.messages.append(Received(time.monotonic(), id, text, answer))


class Webhook(Recipient):
    """A webhook that answers each request with one of ``answers`` at random.

    An answer is a status code, ``hang`` (until the server ends, or is settled), or ``close`` (without an
    answer, after the request was read). One that ``is_away`` refuses connections until its ``start()``.
    """

    def __init__(self, name: str, *answers: str, is_away: bool = False) -> None:
        super().__init__(name)
        self.is_away = is_away
        self._answers: Sequence[str] = answers or [ACCEPTED]
        self._random = random.Random(1)
        self._settled = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def __enter__(self) -> Self:
        if not self.is_away:
            self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        recipient = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                recipient.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        self._server = server

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server:
            self._settled.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def settle(self) -> None:
        """Accept all messages from now on, unless this webhook is gone, and end those that hang."""
        if list(self._answers) != ["410"]:
            self._answers = [ACCEPTED]
        self._settled.set()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        answer = self._random.choice(self._answers)
        self.note(json.loads(body)["id"], body.decode(), answer)
        if answer == "hang":
            self._settled.wait()
        if not answer.isdigit():
            request.close_connection = True
            return
        request.send_response(int(answer))
        if answer == "429":
            request.send_header("Retry-After", "1")
        request.send_header("Content-Length", "0")
        request.end_headers()


class Mailbox(Recipient):
    """A mail server that accepts everything."""

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:
        mail = message_from_bytes(envelope.original_content or envelope.content, policy=policy.default)
        body = mail.get_body(("plain",))
        assert body
        found = re.search(r"[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", mail["Message-ID"])
        assert found, mail["Message-ID"]
        self.note(found[0], f"{mail['Subject']}\n{body.get_content()}", ACCEPTED)
        return "250 OK"

    def __enter__(self) -> Self:
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port)  # type: ignore[no-untyped-call]
        self._controller.start()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._controller.stop()  # type: ignore[no-untyped-call]

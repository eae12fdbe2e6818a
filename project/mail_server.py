"""The mail server of ``make run``. It delivers nothing: the mailbox page shows what it has received."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session

from project.fleet import HOST
from project.mailbox import Mailbox

MAX_SIZE = 1_000_000  # bytes of a mail


class Receiver:
    """A handler of aiosmtpd that accepts every mail."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.content or b""
        self._mailbox.add(content if isinstance(content, bytes) else content.encode())
        print(f"received a mail for {', '.join(envelope.rcpt_tos)}", flush=True)
        return "250 The mail is in the mailbox of the demo"


async def serve(folder: str, port: int) -> None:
    receiver = Receiver(Mailbox(Path(folder)))
    options: Any = {"hostname": "localhost", "data_size_limit": MAX_SIZE, "enable_SMTPUTF8": True}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(receiver, **options), HOST, port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))

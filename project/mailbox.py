"""The mails that the demo has received: files in a directory, and the page that shows them.

The page exists only while ``make run`` runs a mail server.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

# The directory of the mails. `make run` sets it for its processes.
FOLDER = "PROXYHEALTH_DEMO_MAILBOX"

MAX_MAILS = 30  # older ones are deleted


@dataclass(frozen=True)
class Mail:
    """A mail, as the page shows it. ``html`` is "" if it has only a text."""

    id: str
    at: datetime
    subject: str
    sender: str
    recipients: str
    text: str
    html: str


class Mailbox:
    """The directory of the mails, one file each. The names are the times of their arrival."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of_demo(cls) -> Mailbox:
        return cls(Path(os.environ[FOLDER]))

    def add(self, content: bytes) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / f"{time.time_ns()}.eml"
        new = path.with_suffix(".new")
        new.write_bytes(content)
        new.rename(path)
        for old in self._paths()[MAX_MAILS:]:
            old.unlink(missing_ok=True)

    def read(self) -> list[Mail]:
        """Return all mails, the newest first."""
        return [mail for path in self._paths() if (mail := self.get(path.stem))]

    def get(self, id: str) -> Mail | None:
        try:
            content = (self._folder / f"{int(id)}.eml").read_bytes()
        except (ValueError, FileNotFoundError):
            return None
        return _parse(id, content)

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("*.eml"), reverse=True)


def _parse(id: str, content: bytes) -> Mail:
    message: Any = message_from_bytes(content, policy=policy.default)
    return Mail(
        id=id,
        at=datetime.fromtimestamp(int(id) / 1e9, UTC),
        subject=_header(message, "subject"),
        sender=_header(message, "from"),
        recipients=_header(message, "to"),
        text=_body(message, "plain"),
        html=_body(message, "html"),
    )


# Any program of this machine may send a mail, also one that cannot be parsed.


def _header(message: EmailMessage, name: str) -> str:
    try:
        return str(message[name] or "")
    except Exception as error:
        return f"(this header cannot be read: {error})"


def _body(message: EmailMessage, kind: str) -> str:
    try:
        part = message.get_body([kind])
        return str(part.get_content()) if part else ""
    except Exception as error:
        return f"This mail cannot be read: {error}"

"""Hundreds of clients poll at once while rounds change the snapshot."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.deployment import GUNICORN, Deployment
from tests.support.proxies import wait_for

CLIENTS = 500
SECONDS = 8  # with rounds that change the snapshot
QUIET = 3  # seconds after that, without rounds
PAUSE = 1.0  # seconds between two polls of a client
PROXIES = 20
READ_INTERVAL = 0.5
LIMIT = READ_INTERVAL + 0.5


@dataclass
class Answer:
    """An answer: when it arrived (monotonic), its status code, and the number of its snapshot."""

    when: float
    code: int
    number: int


@dataclass
class Client:
    """A browser: a connection that stays open, and the last answer."""

    cookie: str
    port: int
    etag: str = ""
    number: int = -1
    answers: list[Answer] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    async def poll(self, end: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            while time.monotonic() < end:
                code, headers, body = await self._get(reader, writer)
                when = time.monotonic()
                if code == 200:
                    self._check(json.loads(body), headers)
                elif code != 304 or headers["etag"] != self.etag:
                    self.faults.append(f"{code} {headers} {body[:200]!r}")
                self.answers.append(Answer(when, code, self.number))
                await asyncio.sleep(PAUSE * random.uniform(0.5, 1.5))
        finally:
            writer.close()

    async def _get(self, reader: Any, writer: Any) -> tuple[int, dict[str, str], bytes]:
        condition = f"If-None-Match: {self.etag}\r\n" if self.etag else ""
        writer.write(
            f"GET /api/v2/workspaceproxies HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Cookie: {self.cookie}\r\n{condition}\r\n".encode()
        )
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return int(first.split()[1]), headers, body

    def _check(self, body: dict[str, Any], headers: dict[str, str]) -> None:
        """Check that the answer is one whole snapshot: all statuses of a round have the same time."""
        snapshot = body["snapshot"]
        times = {region["status"]["checked_at"] for region in body["regions"]}
        if len(body["regions"]) != PROXIES or times != {snapshot["checked_at"]}:
            self.faults.append(f"snapshot {snapshot} has {len(body['regions'])} regions, times {times}")
        if snapshot["stale"] or headers["proxyhealth-stale"] != "false":
            self.faults.append(f"snapshot {snapshot} is stale")
        self.etag, self.number = headers["etag"], snapshot["number"]


class Commits(threading.Thread):
    """A thread that records when each snapshot first appears in Redis (monotonic)."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(daemon=True)
        self._deployment = deployment
        self._over = threading.Event()
        self.first_seen: dict[int, float] = {}

    def run(self) -> None:
        last = b""
        while not self._over.wait(0.01):
            value = self._deployment.raw_snapshot() or b""
            if value != last:
                self.first_seen.setdefault(json.loads(value)["number"], time.monotonic())
                last = value

    def end(self) -> None:
        self._over.set()
        self.join(5)


_ROUNDS = """
import time
from pathlib import Path
from proxyhealth import health
end = time.monotonic() + 50
while time.monotonic() < end and not Path({quiet!r}).exists():
    health.force_update()
    time.sleep(0.15)
"""


async def _poll_all(clients: list[Client], quiet: Path) -> None:
    end = time.monotonic() + SECONDS + QUIET
    polls = asyncio.gather(*(client.poll(end) for client in clients))
    await asyncio.sleep(SECONDS)
    quiet.touch()
    await polls


@pytest.mark.alone
@pytest.mark.fault("500 clients poll at once")
def test_crowd__answers_are_whole_and_current(deploy, verdict):
    deployment = deploy(interval=60, env={"DEBUG": "0"})
    deployment.web.command = f"{GUNICORN} --workers 2"
    for number in range(PROXIES):
        deployment.add(f"proxy-{number:02}")
    deployment.start()
    commits = Commits(deployment)
    commits.start()
    quiet = deployment.folder / "quiet"
    rounds = threading.Thread(target=deployment.python, args=(_ROUNDS.format(quiet=str(quiet)),))
    rounds.start()
    before = commits.first_seen.copy()
    wait_for(lambda: len(commits.first_seen) > len(before) + 1, 20, "rounds run")
    cookie = f"sessionid={deployment.client.cookies['sessionid']}"
    clients = [Client(cookie, deployment.web_port) for _ in range(CLIENTS)]
    asyncio.run(_poll_all(clients, quiet))
    rounds.join(60)
    commits.end()
    assert not deployment.exited()

    faults = [fault for client in clients for fault in client.faults]
    assert not faults, f"{len(faults)} faults, the first: {faults[0]}"
    ages = [
        answer.when - commits.first_seen[answer.number + 1]
        for client in clients
        for answer in client.answers
        if answer.number + 1 in commits.first_seen
    ]
    answers = [answer for client in clients for answer in client.answers]
    assert all(client.answers for client in clients), "a client got no answer"
    numbers = {answer.number for answer in answers}
    assert len(numbers) >= 10, "too few snapshots to show anything"
    assert {200, 304} == {answer.code for answer in answers}
    oldest = max(ages)
    assert oldest <= LIMIT, f"an answer came {oldest:.2f} s after the next snapshot"
    verdict(
        f"{len(answers):,} answers of {len(numbers)} snapshots, all whole; "
        f"at most {oldest:.2f} s behind (limit {LIMIT:.1f} s)"
    )

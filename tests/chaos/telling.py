"""A deployment that tells channels of proxies that fail at a test's will, and what it should have told."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from tests.chaos.deployment import Deployment
from tests.chaos.random_fleet import RandomFleet
from tests.support.proxies import wait_for
from tests.support.recipients import Mailbox, Webhook

_ADD_CHANNELS = """
from django.utils.timezone import now
from proxyhealth.models import Channel
for name, kind, target in {channels!r}:
    Channel.objects.create(
        name=name, kind=kind, target=target, secret="s" * 32, delay={delay}, listens_since=now()
    )
"""

_ADD_ROWS = """
from django.core.management import call_command
call_command("migrate", verbosity=0)
from proxyhealth.models import WorkspaceProxy
urls = {urls!r}
WorkspaceProxy.objects.bulk_create([WorkspaceProxy(name=name, url=url) for name, url in urls.items()])
"""

# Tables with times that go back if a test lets time pass, and those of their columns that are times.
_TIMES = {
    "channel": ("listens_since", "rests_until", "claimed_until", "last_success_at", "last_failure_at"),
    "delivery": ("created_at", "next_attempt_at", "sent_at", "message_at"),
    "transition": ("at",),
    "outage": ("began_at", "ended_at"),
}
_DELIVERIES = """
SELECT channel.name AS channel, transition_id AS "transition", state, attempts, next_attempt_at, error,
       message
FROM proxyhealth_delivery JOIN proxyhealth_channel AS channel ON channel.id = channel_id
ORDER BY transition_id
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """The rows of the database at one moment."""

    transitions: list[Row]
    deliveries: list[Row]
    channels: dict[str, Row]

    def pending(self, channel: str | None = None) -> list[Row]:
        """Return what a channel, or any, is still to be told."""
        names = self.channels if channel is None else [channel]
        return [row for row in self.deliveries if row["state"] == "pending" and row["channel"] in names]

    @property
    def expected(self) -> list[int]:
        """The transitions that each channel must be told: all but the first statuses."""
        return [row["id"] for row in self.transitions if row["before"] != "unknown"]


class Telling:
    """A deployment, its fleet, and the recipients of its channels. ``fleet`` changes only by ``turn()``."""

    def __init__(
        self, deployment: Deployment, count: int, mailbox: Mailbox, *webhooks: Webhook, delay: int = 0
    ) -> None:
        self.deployment = deployment
        self.fleet = RandomFleet(count, random.Random(1), changes=0)
        self.mailbox = mailbox
        self.webhooks = webhooks
        self.delay = delay

    @property
    def names(self) -> list[str]:
        return list(self.fleet.urls)

    @contextmanager
    def running(self) -> Iterator[Self]:
        if self._is_sqlite:
            self.deployment.add_rows(self.fleet.urls)
        else:
            self.deployment.python(_ADD_ROWS.format(urls=self.fleet.urls))
        self.add_channels()
        with ExitStack() as stack:
            for server in (self.fleet, self.mailbox, *self.webhooks):
                stack.enter_context(server)
            self.deployment.start_redis()
            self.deployment.worker.start()
            self.deployment.beat.start()
            wait_for(self.are_all("ok"), 30, "all are ok")
            yield self

    def add_channels(self) -> None:
        channels = [(webhook.name, "webhook", webhook.url) for webhook in self.webhooks]
        channels.append((self.mailbox.name, "email", "operators@example.com"))
        self.deployment.python(_ADD_CHANNELS.format(channels=channels, delay=self.delay))

    def turn(self, names: Sequence[str], status: str) -> None:
        """Let these proxies have another status from now on."""
        for name in names:
            self.fleet.answers[name].append(status)

    def statuses(self) -> dict[str, str]:
        """Return the statuses of the snapshot, by name."""
        value = self.deployment.raw_snapshot()
        if not value:
            return {}
        columns = json.loads(value)["judgements"]
        return dict(zip(columns["name"], columns["status"], strict=True))

    def are_all(self, status: str) -> Callable[[], bool]:
        """Return a function that returns True while all proxies have this status."""
        return lambda: self.statuses() == dict.fromkeys(self.names, status)

    def let_time_pass(self, seconds: float) -> None:
        """Set the times of the rows back by so many seconds."""
        with self._database() as database:
            for table, columns in _TIMES.items():
                values = ", ".join(f"{name} = {self._earlier(name, seconds)}" for name in columns)
                database.execute(f"UPDATE proxyhealth_{table} SET {values}")

    def _earlier(self, column: str, seconds: float) -> str:
        if self._is_sqlite:
            return f"strftime('%Y-%m-%d %H:%M:%f', {column}, '-{seconds} seconds')"
        return f"{column} - interval '{seconds} seconds'"

    def read(self) -> Rows:
        with self._database() as database:
            # All rows of the same moment.
            database.execute(
                "BEGIN" if self._is_sqlite else "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
            )
            transitions, deliveries, channels = (
                [dict(row) for row in database.execute(sql)]
                for sql in (
                    'SELECT id, proxy_name, "before", "after" FROM proxyhealth_transition ORDER BY id',
                    _DELIVERIES,
                    "SELECT * FROM proxyhealth_channel",
                )
            )
        return Rows(transitions, deliveries, {row["name"]: row for row in channels})

    @property
    def _is_sqlite(self) -> bool:
        return self.deployment.env["DATABASE_URL"].startswith("sqlite")

    @contextmanager
    def _database(self) -> Iterator[Any]:
        if not self._is_sqlite:
            with psycopg.connect(self.deployment.env["DATABASE_URL"], row_factory=dict_row) as connection:
                yield connection
            return
        with closing(sqlite3.connect(self.deployment.database, timeout=20)) as connection, connection:
            connection.row_factory = sqlite3.Row
            yield connection


# The comparison


def check_webhook(webhook: Webhook, rows: Rows) -> int:
    """Check that it accepted each transition, under one id, in order. Return the number of repeats."""
    ids: dict[int, set[str]] = defaultdict(set)
    contents: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for message in webhook.messages:
        told = tuple(change["transition"] for change in message.changes)
        contents[message.id].add(told)
        for transition in told:
            ids[transition].add(message.id)
    twice = {transition: found for transition, found in ids.items() if len(found) > 1}
    assert not twice, f"{webhook.name}: told under several ids: {twice}"
    assert all(len(found) == 1 for found in contents.values()), f"{webhook.name}: repeats differ"
    accepted = [change["transition"] for message in webhook.accepted for change in message.changes]
    check_all_told(webhook.name, list(dict.fromkeys(accepted)), rows)
    return len(webhook.messages) - len(contents)


def check_mailbox(mailbox: Mailbox, rows: Rows) -> int:
    """Check that each transition was in a mail that names its proxy. Return the number of repeats."""
    names = {row["id"]: row["proxy_name"] for row in rows.transitions}
    told: dict[UUID, list[int]] = defaultdict(list)
    for delivery in rows.deliveries:
        if delivery["channel"] == mailbox.name and delivery["message"]:
            told[UUID(str(delivery["message"]))].append(delivery["transition"])
    transitions = []
    for id, text in {UUID(message.id): message.text for message in mailbox.messages}.items():
        missing = [names[transition] for transition in told[id] if names[transition] not in text]
        assert not missing, f"the mail {id} does not name {missing}:\n{text}"
        transitions += told[id]
    check_all_told(mailbox.name, transitions, rows)
    return len(mailbox.messages) - len({message.id for message in mailbox.messages})


def check_all_told(name: str, transitions: list[int], rows: Rows) -> None:
    missing = sorted(set(rows.expected) - set(transitions))
    found = [row for row in rows.deliveries if row["transition"] in missing and row["channel"] == name]
    assert not missing, f"{name} was not told of {missing}, whose deliveries are {found}"
    assert transitions == sorted(transitions), f"{name}: in another order: {transitions}"

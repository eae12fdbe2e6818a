"""The plan of a round that many workers share: who probes what, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Self
from uuid import UUID, uuid4

from proxyhealth.conf import conf
from proxyhealth.probing.pool import expected_seconds, slow_first
from proxyhealth.snapshot import Proxy, ProxyStatus


class Outcome(NamedTuple):
    """What the shards found; ``missing`` are the proxies of those that were lost, ``error`` says why.

    ``offline`` is a round of which no shard had a network.
    """

    statuses: list[ProxyStatus]
    missing: frozenset[UUID]
    error: str
    offline: bool


def split(proxies: Sequence[Proxy], known: Mapping[UUID, ProxyStatus]) -> list[list[Proxy]]:
    """``proxies`` as the shards of a round, the slow ones in the first of them.

    A shard has at most ``SHARD_SIZE`` proxies, and waiting for no more than a process can bear in one
    ``TIMEOUT``. So whoever takes a later one is soon ready for the next.
    """
    patience = conf.CONCURRENCY * conf.TIMEOUT
    shards: list[list[Proxy]] = []
    room, left = 0, 0.0
    for proxy in slow_first(proxies, known):
        seconds = expected_seconds(known.get(proxy.id), proxy)
        if not room or seconds > left:
            shards.append([])
            room, left = conf.SHARD_SIZE, patience
        shards[-1].append(proxy)
        room, left = room - 1, left - seconds
    return shards


@dataclass(frozen=True)
class Plan:
    """A round as shards, each a task with the id in ``tasks``."""

    token: int
    checked_at: datetime
    shards: Sequence[Sequence[Proxy]]
    tasks: Sequence[str]

    @classmethod
    def of(cls, token: int, checked_at: datetime, shards: Sequence[Sequence[Proxy]]) -> Self:
        return cls(token, checked_at, shards, [str(uuid4()) for _ in shards])

    def dump(self) -> str:
        return json.dumps(
            {
                "ticket": self.token,
                "checked_at": self.checked_at.isoformat(),
                "tasks": self.tasks,
                "shards": [[proxy.to_json() for proxy in shard] for shard in self.shards],
            }
        )

    @classmethod
    def load(cls, text: str) -> Self:
        """Raises ``ValueError`` for what is no plan."""
        try:
            data = json.loads(text)
            shards = [[Proxy.from_json(proxy) for proxy in shard] for shard in data["shards"]]
            return cls(data["ticket"], datetime.fromisoformat(data["checked_at"]), shards, data["tasks"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no plan of a round: {error!r}") from error

    def outcome(self, parts: Iterable[Any]) -> Outcome:
        """What came of it; ``parts`` are the results of the tasks, in any order.

        A part is ``{"shard": index, "found": [judgement...]}``, with a judgement for each proxy of the shard,
        or ``{"shard": index, "lost": why}``. It says itself whose it is, because a task that was delivered
        twice has two results, in the place of two.
        """
        results = {part.get("shard"): part for part in parts if isinstance(part, dict)}
        statuses: list[ProxyStatus] = []
        missing: list[UUID] = []
        why: list[str] = []
        offline = 0
        for index, shard in enumerate(self.shards):
            part = results.get(index, {})
            found = part.get("found")
            if isinstance(found, list) and len(found) == len(shard):
                statuses += [
                    ProxyStatus.from_judgement(proxy, self.checked_at, judgement)
                    for proxy, judgement in zip(shard, found, strict=True)
                ]
            else:
                missing += [proxy.id for proxy in shard]
                why.append(str(part.get("lost", "there is no result of it")))
                offline += bool(part.get("offline"))
        if offline == len(self.shards):
            return Outcome([], frozenset(missing), why[0], offline=True)
        error = ""
        if why:
            error = (
                f"{len(why)} of {len(self.shards)} shards of the round were lost, {len(missing):,} of "
                f"{len(missing) + len(statuses):,} proxies keep their last status: {'; '.join(set(why))}"
            )
        return Outcome(statuses, frozenset(missing), error, offline=False)

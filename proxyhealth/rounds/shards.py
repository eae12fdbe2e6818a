"""The plan of a shared round: the proxies of each shard, and the merge of their results."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Self
from uuid import NAMESPACE_OID, UUID, uuid5

from proxyhealth.conf import conf
from proxyhealth.probing.pool import expected_seconds, slow_first
from proxyhealth.snapshot import Proxy, ProxyStatus
from proxyhealth.statuses import Reason, Status

Part = dict[str, Any]  # the result of a shard


class SharedResult(NamedTuple):
    """The merged result of all shards. ``missing`` has the proxies of lost shards, ``error`` the reason.

    ``offline`` is True if the prober of every shard that needed the network was offline.
    """

    statuses: list[ProxyStatus]
    missing: frozenset[UUID]
    error: str
    offline: bool


def _needed_network(status: ProxyStatus) -> bool:
    return status.status is not Status.UNREGISTERED and status.reason is not Reason.INVALID_URL


def split(
    proxies: Sequence[Proxy], previous: Mapping[UUID, ProxyStatus], processes: int = 1
) -> list[list[Proxy]]:
    """Divide ``proxies`` into shards for this many processes; ``previous`` has their last statuses.

    The slowest proxies go into one shard per process, in equal shares. The next ones go into one more shard
    per process, and so on. A shard has at most ``SHARD_SIZE`` proxies, and no more slow ones than a
    process can wait for in one ``TIMEOUT``.

    There are more shards than known processes, so that one more process can take a shard and become known.
    """
    rows: list[list[Proxy]] = []
    places, seconds_left = 0, 0.0
    for proxy in slow_first(proxies, previous):
        seconds = expected_seconds(previous.get(proxy.id), proxy)
        if not places or seconds > seconds_left:
            rows.append([])
            places = processes * conf.SHARD_SIZE
            seconds_left = processes * conf.CONCURRENCY * conf.TIMEOUT
        rows[-1].append(proxy)
        places, seconds_left = places - 1, seconds_left - seconds
    shards = [row[start::processes] for row in rows for start in range(min(processes, len(row)))]
    if 1 < len(shards) <= processes:
        longest = [shard for shard in shards if len(shard) > 1]
        shards.append([shard.pop() for shard in longest[: conf.SHARD_SIZE]])
    return [shard for shard in shards if shard]


def task_ids(token: int, count: int) -> list[str]:
    """Return the ids of the Celery tasks of a round, which delete their results without its plan."""
    return [str(uuid5(NAMESPACE_OID, f"proxyhealth round {token} shard {index}")) for index in range(count)]


@dataclass(frozen=True)
class Plan:
    """The shards of a round. ``tasks`` has the id of the Celery task of each shard."""

    token: int
    checked_at: datetime
    shards: Sequence[Sequence[Proxy]]
    tasks: Sequence[str]

    @classmethod
    def create(cls, token: int, checked_at: datetime, shards: Sequence[Sequence[Proxy]]) -> Self:
        return cls(token, checked_at, shards, task_ids(token, len(shards)))

    def messages(self) -> list[list[dict[str, str]]]:
        """Return the proxies of each shard, with only the fields that a probe needs."""
        return [
            [{"id": str(proxy.id), "name": proxy.name, "url": proxy.url} for proxy in shard]
            for shard in self.shards
        ]

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
        """Return the plan that :meth:`dump` wrote. Raise ``ValueError`` for any other text."""
        try:
            data = json.loads(text)
            shards = [[Proxy.from_json(proxy) for proxy in shard] for shard in data["shards"]]
            "".join(data["tasks"])  # raises TypeError if one is no text
            return cls(data["ticket"], datetime.fromisoformat(data["checked_at"]), shards, data["tasks"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the stored plan of a round is invalid: {error!r}") from error

    def merge(self, parts: Iterable[Any]) -> SharedResult:
        """Merge ``parts``, the results of the tasks, in any order.

        A part is ``{"shard": index, "found": [judgement, …]}``, with one judgement per proxy of the shard,
        or ``{"shard": index, "lost": reason}``. It names its shard, because a task may be delivered twice,
        and two processes may have probed a shard. One result is enough.
        """
        parts_by_index: dict[Any, dict[str, Any]] = {}
        for part in parts:
            if isinstance(part, dict) and "found" not in parts_by_index.get(index := part.get("shard"), {}):
                parts_by_index[index] = part
        statuses: list[ProxyStatus] = []
        missing: list[UUID] = []
        errors: list[str] = []
        offline = idle = 0  # shards
        for index, shard in enumerate(self.shards):
            part = parts_by_index.get(index, {})
            judgements = part.get("found")
            if isinstance(judgements, list) and len(judgements) == len(shard):
                found = list(ProxyStatus.from_judgements(shard, self.checked_at, judgements))
                statuses += found
                idle += not any(map(_needed_network, found))
            else:
                missing += [proxy.id for proxy in shard]
                errors.append(str(part.get("lost", "there is no result of it")))
                offline += bool(part.get("offline"))
        if offline and offline + idle == len(self.shards):
            return SharedResult([], frozenset(missing), errors[0], offline=True)
        error = ""
        if errors:
            error = (
                f"{len(errors)} of {len(self.shards)} shards of the round were lost, {len(missing):,} of "
                f"{len(missing) + len(statuses):,} proxies keep their last status: {'; '.join(set(errors))}"
            )
        return SharedResult(statuses, frozenset(missing), error, offline=False)

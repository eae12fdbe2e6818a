"""A long history of many proxies, and the plans of the queries that read it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.db import connection, transaction

from proxyhealth.models import Gap, Transition, Watch, WorkspaceProxy
from proxyhealth.statuses import Status

_SECOND = 1_000_000  # in the unit of tokens
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BAD = (Status.UNHEALTHY, Status.UNREACHABLE)


def to_time(token: int) -> datetime:
    return _EPOCH + timedelta(microseconds=token)


def to_token(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def make_history(
    proxies: Sequence[WorkspaceProxy],
    count: int,
    *,
    end: datetime,
    days: int = 400,
    gaps: int = 5,
    gap_hours: float = 1,
) -> None:
    """Store ``count`` transitions of the proxies, evenly over the days before ``end``, and the gaps.

    Each proxy starts as ``ok``, and then crosses between good and bad.
    """
    last = to_token(end)
    first = last - days * 86_400 * _SECOND
    length = int(gap_hours * 3600) * _SECOND
    starts = [first + (number + 1) * (last - first) // (gaps + 1) for number in range(gaps)]
    Gap.objects.bulk_create(
        Gap(
            start=to_time(start),
            end=to_time(start + length),
            why=Gap.Why.NO_ROUNDS,
            token=start + length,
            microseconds=length,
        )
        for start in starts
    )
    with transaction.atomic():
        _insert(_rows(proxies, count, first, last, [(start, start + length) for start in starts]))
    Watch.objects.create(pk=1, token=last, watched=last - first - gaps * length)


_COLUMNS = (
    *("proxy_id", "proxy_uuid", "proxy_name", "before", "after", "at", "reason", "report", "token"),
    *("watched", "ok_change", "known_change", "signal_due_at", "signal_attempts"),
)


def _insert(rows: Iterable[tuple[Any, ...]]) -> None:
    # bulk_create() would take minutes for a million rows.
    table = f'"{Transition._meta.db_table}" ({", ".join(map(connection.ops.quote_name, _COLUMNS))})'
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            with cursor.copy(f"COPY {table} FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        else:
            places = ", ".join("?" * len(_COLUMNS))
            connection.connection.executemany(f"INSERT INTO {table} VALUES ({places})", rows)


def _rows(
    proxies: Sequence[WorkspaceProxy], count: int, first: int, last: int, gaps: list[tuple[int, int]]
) -> Iterator[tuple[Any, ...]]:
    # Benchmarks make a million rows, so each call in this loop counts.
    chance = random.Random(1).random
    keys = [(proxy.pk.hex, proxy.pk.hex, proxy.name) for proxy in proxies]
    unknown, ok, *bad = map(str, (Status.UNKNOWN, Status.OK, *_BAD))
    statuses = [unknown] * len(keys)
    down = "timeout", json.dumps({"errors": ["The proxy is out of order"], "warnings": []})
    missed = 0
    for number in range(count):
        index = number if number < len(keys) else int(chance() * len(keys))
        token = first + number * (last - first) // count
        while gaps and gaps[0][0] <= token:
            missed += gaps[0][1] - gaps[0][0]
            gaps.pop(0)
        before = statuses[index]
        is_bad = before == ok
        after = statuses[index] = bad[chance() < 0.5] if is_bad else ok
        at = to_time(token).isoformat(" ", "microseconds")[:26]
        changes = (-1 if is_bad else 1, 1 if before == unknown else None)
        cause = down if is_bad else ("", "{}")
        yield (*keys[index], before, after, at, *cause, token, token - first - missed, *changes, None, 0)


class Plan(NamedTuple):
    """The plan of the database for one query."""

    sql: str
    text: str

    @property
    def scans_all_transitions(self) -> bool:
        """True if the query reads the whole table without an index."""
        table = Transition._meta.db_table
        if connection.vendor == "postgresql":
            return f"Seq Scan on {table}" in self.text
        names = {table, *re.findall(rf'"{table}" ([TUVW]\d+)\b', self.sql)}
        return any(name in names and "INDEX" not in rest for name, rest in self._scans())

    @property
    def indexes(self) -> list[str]:
        """Return the names of the indexes that the query uses, of all tables."""
        if connection.vendor == "sqlite":
            return re.findall(r"(?:INDEX |USING )(\w+|INTEGER PRIMARY KEY)(?= \(|$)", self.text, re.MULTILINE)
        return re.findall(r"(?:using|Bitmap Index Scan on) (\w+)", self.text)

    def _scans(self) -> list[tuple[str, str]]:
        return re.findall(r"^SCAN (\S+)(.*)$", self.text, re.MULTILINE)


@contextmanager
def explained_queries() -> Iterator[list[Plan]]:
    """Collect the plans of all queries of the transitions that this thread sends."""
    plans: list[Plan] = []
    prefix = "EXPLAIN QUERY PLAN" if connection.vendor == "sqlite" else "EXPLAIN"

    def explain(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if Transition._meta.db_table in sql and sql.startswith(("SELECT", "DELETE", "UPDATE", "WITH")):
            with connection.cursor() as cursor:  # it calls this function, too
                cursor.execute(f"{prefix} {sql}", params)
                plans.append(Plan(sql, "\n".join(str(row[-1]) for row in cursor.fetchall())))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(explain):
        yield plans

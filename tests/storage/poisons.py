"""Random changes of our keys in Redis, for the fuzzer."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from proxyhealth.storage.repair import KEYS
from tests.storage.documents import changed_json
from tests.support.fuzzing import Edit, edited, edits

STRINGS = [name for name, (kind, _) in KEYS.items() if kind == "string"]
HASHES = {
    "round-stats": [
        "committed", "closed", "full", "deployment", "count:success", "count:failure", "count:skipped",
        "count:new", "error", "error_at", "offline", "colour",
    ],
    "tasks": ["check_all:success", "check_all:microseconds", "check_all:failure", "new:success", ":", "new"],
    "presence": ["worker:a", "beat:b", "tick", "heartbeat:c", "begun", "since:beat:b"],
    "plan": ["ticket", "plan", "shards", "shard:0", "part:0", "slot:0", "slot:1"],
}  # fmt: skip
LIVES = st.sampled_from([None, 1, 20, 10**6, 10**12])  # milliseconds
MEMBERS = ["errors", "latency", "ticket", "status"]

COLUMNS = [
    "checked_at",
    "tls_expires_at",
    "ticket",
    "latency",
    "errors",
    "warnings",
    "status",
    "proxy_host",
    "name",
]
ROW = ["id", "name", "url", "icon", "display_name", "version", "deleted", "created_at", "updated_at"]
paths = (
    st.sampled_from(
        ["checked_at", "stale_at", "committed_at", "duration", "number", "ticket", "removed"]
    ).map(lambda name: [name])
    | st.tuples(st.just("rounds"), st.sampled_from(["sum", "counts"])).map(list)
    | st.tuples(st.just("rounds"), st.just("counts"), st.integers(0, 11)).map(list)
    | st.tuples(st.just("judgements"), st.sampled_from(COLUMNS), st.integers(0, 4)).map(list)
    | st.tuples(st.just("judgements"), st.sampled_from(["errors", "warnings"]), st.just(0), st.just(0)).map(
        list
    )
    | st.tuples(st.just("proxies"), st.integers(0, 4), st.sampled_from(ROW)).map(list)
)

numbers = st.sampled_from(
    [0, -1, 1, 1.5, 10**15, 2**53 - 1, 2**53, 2**63 - 1, 10**19, 10**400, 1e308, -1e308, 1e306]
) | st.integers()  # fmt: skip
moments = st.sampled_from(
    [
        "2026-01-01", "2026-11-22T08:00:00", "2026-11-22T08:00:00+23:59",
        "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00",
        "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "20261122T080000Z",
    ]
)  # fmt: skip
words = (
    st.sampled_from(["", "ok", "unknown", "new", "rubbish", "\0", "\u202e", "{}", "paris", "a" * 5000, "7"])
    | moments
)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | words | moments | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(words | st.sampled_from(MEMBERS), inner, max_size=3)
    ),
    max_leaves=4,
)
contents = (
    st.sampled_from(
        [
            b"", b"rubbish", b"\xff\0\x80", b"1e17", b"-1", b"Infinity", b"nan", b"007", b"0x10", b" 1",
            b"1.5", b"+1", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"{}", b"null",
            b'{"format": 4, "commit": "%s"}' % (b"a" * 32), b'{"format": 3, "commit": "%s"}' % (b"a" * 32),
        ]
    )
    | numbers.map(lambda number: str(number).encode())
    | words.map(str.encode)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=20)
)  # fmt: skip


@dataclass(frozen=True)
class Replaced:
    """A key with another value, of any type, and another time to live."""

    key: str
    kind: str
    value: bytes
    life: int | None

    def apply(self, client: Any, name: str) -> None:
        client.delete(name)
        match self.kind:
            case "string":
                client.set(name, self.value)
            case "list":
                client.rpush(name, self.value)
            case "set":
                client.sadd(name, self.value)
            case "zset":
                client.zadd(name, {self.value: 1})
            case "hash":
                client.hset(name, self.value, self.value)
            case "stream":
                client.xadd(name, {self.value: self.value})
        set_life(client, name, self.life)


@dataclass(frozen=True)
class Edited:
    """A string with some other bytes."""

    key: str
    changes: list[Edit]

    def apply(self, client: Any, name: str) -> None:
        if client.type(name) == b"string":
            client.set(name, edited(client.get(name), self.changes), keepttl=True)


@dataclass(frozen=True)
class Field:
    """A field of a hash with another value, or without one."""

    key: str
    field: str
    value: bytes | None

    def apply(self, client: Any, name: str) -> None:
        if client.type(name) in (b"hash", b"none"):
            if self.value is None:
                client.hdel(name, self.field)
            else:
                client.hset(name, self.field, self.value)


@dataclass(frozen=True)
class Member:
    """A value of the document, or of the plan, that is another one, or missing."""

    key: str
    path: list[str | int]
    value: Any
    is_removed: bool = False

    def apply(self, client: Any, name: str) -> None:
        with suppress(ValueError, AttributeError, KeyError, TypeError, RecursionError):
            if self.key == "snapshot" and client.type(name) == b"string":
                client.set(name, changed_json(self._change)(client.get(name)))
            elif client.type(name) == b"hash":
                place = ("plan", "shard:0", "part:0")[len(self.path) % 3]
                whole = json.loads(client.hget(name, place))
                self._change(whole)
                client.hset(name, place, json.dumps(whole))

    def _change(self, whole: Any) -> None:
        parent, key = None, None
        for step in self.path:
            children = (
                list(whole)
                if isinstance(whole, dict)
                else list(range(len(whole)))
                if isinstance(whole, list)
                else []
            )
            if not children:
                break
            parent, key = whole, children[step % len(children)] if isinstance(step, int) else step
            whole = parent[key]
        if parent is not None:
            if self.is_removed:
                del parent[key]
            else:
                parent[key] = self.value


@dataclass(frozen=True)
class Life:
    """A key with another time to live."""

    key: str
    life: int | None

    def apply(self, client: Any, name: str) -> None:
        set_life(client, name, self.life)


def set_life(client: Any, name: str, milliseconds: int | None) -> None:
    if milliseconds is None:
        client.persist(name)
    else:
        client.pexpire(name, milliseconds)


poisons = st.one_of(
    st.builds(
        Replaced,
        st.sampled_from(list(KEYS)),
        st.sampled_from(["string", "list", "set", "zset", "hash", "stream"]),
        contents,
        LIVES,
    ),
    st.builds(Replaced, st.sampled_from(STRINGS), st.just("string"), contents, LIVES),
    st.builds(
        Edited,
        st.sampled_from(["snapshot", "token"]),
        edits(b"null", b"[", b"{", b'"', b"\n", b",", b"1e999"),
    ),
    *(
        st.builds(Field, st.just(key), st.sampled_from(fields), st.none() | contents)
        for key, fields in HASHES.items()
    ),
    st.builds(
        Member,
        st.sampled_from(["snapshot", "snapshot", "plan"]),
        st.lists(st.integers(0, 40), min_size=1, max_size=4) | paths,
        json_values,
        st.booleans(),
    ),
    st.builds(Member, st.just("snapshot"), paths, json_values, st.just(False)),
    st.builds(Life, st.sampled_from(list(KEYS)), LIVES),
    st.builds(Replaced, st.sampled_from(["pending", "slots"]), st.just("set"), contents, LIVES),
)

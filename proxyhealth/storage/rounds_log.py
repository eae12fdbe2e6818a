"""The log of the last rounds, in the Redis cache: begin, duration, outcome, and the host that ran each.

An entry is its end by the clock of Redis in microseconds, a space, and JSON. A round has an entry when it
begins, and one when it ends, so that a round whose process was killed is not missing.
"""

import json
import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from proxyhealth.exceptions import StoreError
from proxyhealth.storage.client import open_cache, run_script
from proxyhealth.texts import clean

MAX_ROUNDS = 100
_MAX_ENTRIES = 2 * MAX_ROUNDS
_MAX_ERROR = 300  # characters
_LIFETIME = 7 * 24 * 3_600  # seconds

RUNNING, KILLED = "running", "killed"

# A client that lost the reply runs the script again.
_ADD = """
local key = KEYS[1]
local text, limit, lifetime = unpack(ARGV)
local kind = redis.call('TYPE', key).ok
if kind ~= 'list' and kind ~= 'none' then redis.call('DEL', key) end
local last = redis.call('LINDEX', key, -1)
if last and string.match(last, '^%d+ (.*)') == text then return end
local time = redis.call('TIME')
redis.call('RPUSH', key, string.format('%.0f', time[1] * 1000000 + time[2]) .. ' ' .. text)
redis.call('LTRIM', key, -limit, -1)
redis.call('EXPIRE', key, lifetime)
"""


class RoundEntry(NamedTuple):
    """A round, or a tick that was skipped. ``outcome`` may be one of a newer version.

    ``seconds`` is None while the round runs, if it was killed, and for a skipped tick. ``proxies`` is the
    number of all proxies of the round, and ``missing`` of those without a result.
    """

    outcome: str
    at: datetime  # the begin
    seconds: float | None
    error: str
    proxies: int | None
    missing: int
    host: str
    pid: int
    token: int


def add(outcome: str, token: int = 0, **values: Any) -> None:
    """Append an entry. ``values`` are ``error``, ``seconds``, ``proxies``, and ``missing``. Never raise."""
    if "error" in values:
        values["error"] = values["error"][:_MAX_ERROR]
    # The nonce tells two skipped ticks apart.
    entry = {"outcome": outcome, "token": token, "host": socket.gethostname(), "pid": os.getpid(), **values}
    entry["nonce"] = os.urandom(4).hex()
    with suppress(StoreError):  # the log is no part of the snapshot
        run_script(_ADD, ["rounds-log"], json.dumps(entry), _MAX_ENTRIES, _LIFETIME)


def read() -> list[RoundEntry]:
    """Return the last rounds, the latest first. Omit damaged entries. Raise ``StoreError``."""
    with open_cache() as cache:
        pipe = cache.client.pipeline(transaction=False)
        pipe.lrange(cache.key("rounds-log"), 0, -1)
        pipe.get(cache.key("lease"))
        lines, lease = pipe.execute(raise_on_error=False)
        if isinstance(lines, Exception):
            if not isinstance(lines, ResponseError):
                raise lines
            lines = []  # another type, which the next round replaces
    holder = int(lease) if isinstance(lease, bytes) and lease.isdigit() else 0
    return sorted(_merged(lines[-_MAX_ENTRIES:], holder), key=lambda entry: entry.at, reverse=True)[
        :MAX_ROUNDS
    ]


def _merged(lines: Iterable[bytes], holder: int) -> Iterable[RoundEntry]:
    """Return one entry per round. A round without an end runs only while it has the lease."""
    rounds: dict[Any, RoundEntry] = {}
    for number, line in enumerate(lines):
        with suppress(ValueError, TypeError, OverflowError, OSError, RecursionError):
            stamp, _, text = line.partition(b" ")
            entry = _parse(int(stamp), json.loads(text))
            if entry.outcome == RUNNING and entry.token != holder:
                entry = entry._replace(outcome=KILLED)
            key = entry.token or -number
            if entry.outcome not in (RUNNING, KILLED) or key not in rounds:
                rounds[key] = entry
    return rounds.values()


def _parse(stamp: int, values: Mapping[str, Any]) -> RoundEntry:
    """Return the entry of these values, of this or another version. Raise ``ValueError`` or ``TypeError``."""
    if not isinstance(values, dict):
        raise ValueError("the entry is no object")
    token, outcome = _integer(values.get("token")) or 0, clean(str(values.get("outcome", "")), 40)
    seconds = values.get("seconds")
    if seconds is None and token and outcome != RUNNING:
        seconds = (stamp - token) / 1e6  # tokens are microseconds of the same clock
    return RoundEntry(
        outcome,
        datetime.fromtimestamp((token or stamp) / 1e6, UTC),
        None if seconds is None else min(1e9, max(0.0, float(seconds))),
        clean(str(values.get("error", "")), _MAX_ERROR),
        _integer(values.get("proxies")),
        _integer(values.get("missing")) or 0,
        clean(str(values.get("host", "")), 100),
        _integer(values.get("pid")) or 0,
        token,
    )


def _integer(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 53 else None

"""The outbox: what the history must record, in the Redis cache until it is safe in the database.

The script that writes the snapshot appends the entries of its commit in the same step. Failures raise
``StoreError``.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from proxyhealth.storage.client import open_cache, run_script

UNKNOWN = "unknown"  # the status before the first one
REMOVED = "removed"  # the status of a proxy that left the snapshot

# The fields that each kind of entry has, besides a change's reason, errors and warnings.
_FIELDS: dict[str, dict[str, type]] = {
    "change": {
        **dict.fromkeys(("proxy", "name", "before", "after"), str),
        **dict.fromkeys(("token", "at", "watched"), int),
    },
    "gap": {"start": int, "end": int, "token": int, "why": str},
    "round": {"token": int, "watched": int},
}

# Removes the first entries, unless another process has done so. No two entries are equal.
_REMOVE = """
local outbox, stats = unpack(KEYS)
local count, last = unpack(ARGV)
if redis.call('LINDEX', outbox, count - 1) ~= last then return end
redis.call('LTRIM', outbox, count, -1)
if redis.call('HEXISTS', stats, 'outbox') == 1 then redis.call('HINCRBY', stats, 'outbox', -count) end
"""


def change_entry(
    proxy: str,
    name: str,
    before: str,
    after: str,
    token: int,
    at: int,
    watched: int,
    judgement: Mapping[str, Any],
) -> str:
    """Return the entry of a status that changed, with its ``reason``, ``errors`` and ``warnings``.

    It began ``at``, and until then, rounds had ``watched`` the proxies, both in microseconds.
    """
    entry = {"kind": "change", "proxy": proxy, "name": name, "before": before, "after": after}
    return json.dumps({**entry, "token": token, "at": at, "watched": watched, **judgement})


def gap_entry(start: int, end: int, why: str) -> str:
    """Return the entry of a gap. Its times are in microseconds, and the end is the token of a full round."""
    return json.dumps({"kind": "gap", "start": start, "end": end, "why": why, "token": end})


def round_entry(token: int, watched: int) -> str:
    """Return the entry of a full round."""
    return json.dumps({"kind": "round", "token": token, "watched": watched})


def count_entries() -> int:
    """Return the number of entries."""
    with open_cache() as cache:
        return int(cache.client.llen(cache.key("outbox")))


def parse_entry(text: bytes) -> dict[str, Any]:
    """Return an entry. Raise ``ValueError`` if no version of the app has written it."""
    try:
        entry: dict[str, Any] = json.loads(text)
        if any(type(entry[field]) is not of for field, of in _FIELDS[entry["kind"]].items()):
            raise ValueError("a field has another type")
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not an entry: {error!r}") from error
    return entry


def read_entries(count: int) -> Sequence[bytes]:
    """Return up to ``count`` entries, or all for 0, the oldest first."""
    with open_cache() as cache:
        entries: list[bytes] = cache.client.lrange(cache.key("outbox"), 0, count - 1)
    return entries


def remove_entries(entries: Sequence[bytes]) -> None:
    """Remove the oldest entries, as :func:`read_entries` returned them."""
    run_script(_REMOVE, ["outbox", "round-stats"], len(entries), entries[-1])

"""The time for which rounds have watched the proxies.

It grows while the snapshot is fresh, and stands still while it is stale: nobody knows the statuses then. So
the difference between two values is the part of a time that is known. Its clock is that of the tokens, which
never goes back.
"""

from typing import Any, NamedTuple, Self


class Watched(NamedTuple):
    """The token of a full round, and the microseconds that rounds had watched the proxies until then."""

    token: int
    watched: int

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """Return the value in a document, or None if an older version wrote the document."""
        if isinstance(value, list) and len(value) == 2 and all(type(item) is int for item in value):
            token, watched = value
            return cls(token, watched) if 0 <= watched <= token else None
        return None

    def at(self, token: int, stale_after: float, offline_since: int | None = None) -> int:
        """Return the watched time at a later token.

        The snapshot of the round is fresh for ``stale_after`` seconds, but not after the time (µs)
        ``offline_since`` which the prober is offline.
        """
        fresh = int(stale_after * 1_000_000)
        if offline_since is not None:
            fresh = min(fresh, max(0, offline_since - self.token))
        return self.watched + min(token - self.token, fresh)

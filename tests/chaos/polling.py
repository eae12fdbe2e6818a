"""A thread that polls the JSON view throughout a test, and checks of all that it got."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import requests

from tests.chaos.deployment import Deployment
from tests.support.machine import stood_still

PERIOD = 0.075  # seconds between two polls

# An answer takes 10 ms, and a few hundred while both cores start Python processes. A reader that waits
# for Redis or for a proxy waits for longer than this.
LIMIT = 1.0


@dataclass(frozen=True)
class Poll:
    """One answer. ``code`` is 0 if the request failed."""

    at: float  # monotonic
    wall: float  # seconds since the epoch
    elapsed: float  # seconds from the request to the end of the answer
    code: int
    paused: float  # seconds of ``elapsed`` for which the machine stood still
    body: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def snapshot(self) -> Mapping[str, Any]:
        snapshot: Mapping[str, Any] = self.body["snapshot"]
        return snapshot

    @property
    def stale(self) -> bool:
        return bool(self.snapshot["stale"])

    @property
    def statuses(self) -> dict[str, str]:
        return {region["name"]: region["status"]["status"] for region in self.body["regions"]}

    def __str__(self) -> str:
        if self.code != 200:
            return f"{self.at:.3f} {self.code} {self.error}"
        statuses = " ".join(f"{name}={status}" for name, status in self.statuses.items())
        return f"{self.at:.3f} took {self.elapsed:.3f} {dict(self.snapshot)} {statuses}"


class Poller:
    """Polls inside its ``with`` block, by default the first web server. ``check()`` checks every poll."""

    def __init__(self, deployment: Deployment, base: str = "") -> None:
        self._deployment = deployment
        self._url = f"{base or deployment.base}/api/v2/workspaceproxies"
        self._client = deployment.new_client()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="poller", daemon=True)
        self._new_poll = threading.Condition()
        self._redis_emptied: list[float] = []
        self.polls: list[Poll] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(30)
        self._client.close()

    def _run(self) -> None:
        while not self._over.is_set():
            poll = self._poll()
            with self._new_poll:
                self.polls.append(poll)
                self._new_poll.notify_all()
            self._over.wait(max(0.0, PERIOD - poll.elapsed))

    def _poll(self) -> Poll:
        still = stood_still()
        at, wall = time.monotonic(), time.time()
        try:
            answer = self._client.get(self._url, timeout=10)
            body = answer.json() if answer.status_code == 200 else {}
        except (requests.RequestException, ValueError) as error:
            elapsed = time.monotonic() - at
            return Poll(at, wall, elapsed, 0, stood_still() - still, error=repr(error))
        elapsed = time.monotonic() - at
        return Poll(at, wall, elapsed, answer.status_code, stood_still() - still, body, answer.text[:200])

    # While the thread polls

    def wait_until(
        self, predicate: Callable[[Poll], bool], seconds: float, what: str, since: float | None = None
    ) -> float:
        """Wait for a poll that fulfils ``predicate``; return the seconds from ``since`` (now) to it."""
        since = time.monotonic() if since is None else since
        seen = 0
        with self._new_poll:
            while True:
                for poll in self.polls[seen:]:
                    if poll.at >= since and poll.code == 200 and predicate(poll):
                        return poll.at - since
                seen = len(self.polls)
                left = since + seconds - time.monotonic()
                assert left > 0, f"not within {seconds:.1f} s: {what}{self._evidence()}"
                self._new_poll.wait(left)

    def _evidence(self) -> str:
        exited = self._deployment.exited()
        last = self.polls[-1] if self.polls else "none"
        return f"{f' ({exited} exited unexpectedly)' if exited else ''}; the last poll: {last}"

    def redis_emptied(self) -> None:
        """Allow the number of the snapshot to restart once from now on."""
        self._redis_emptied.append(time.monotonic())

    # After the thread has polled

    def between(self, begin: float, end: float = float("inf")) -> list[Poll]:
        return [poll for poll in self.polls if begin <= poll.at <= end]

    def statuses_seen(self, name: str) -> list[str]:
        """Return the statuses of a proxy in the order of the polls, without repetitions."""
        seen: list[str] = []
        for poll in self.polls:
            status = poll.statuses.get(name, "missing") if poll.code == 200 else None
            if status and (not seen or seen[-1] != status):
                seen.append(status)
        return seen

    def check(
        self,
        truth: Mapping[str, str | Sequence[str]],
        *,
        limit: float = LIMIT,
        late: Callable[[Poll], float] | None = None,
        lost_shards: bool = False,
    ) -> None:
        """Check that every poll was answered in time, is complete, and is true.

        ``truth`` maps the name of each proxy to its true statuses, in order. The polls may leave statuses
        out, but may show no other status and no other order. "missing" stands for a row that does not
        exist. ``late(poll)`` overrides the ``limit`` in seconds. With ``lost_shards`` a round may leave out
        some proxies.
        """
        assert self.polls, "no poll was made"
        required = {name for name, statuses in truth.items() if "missing" not in statuses}
        for poll in self.polls:
            assert poll.code == 200, f"the answer was {poll}"
            allowed = late(poll) if late else limit
            assert poll.elapsed - poll.paused < allowed, (
                f"the answer took {poll.elapsed:.2f} s (limit {allowed} s; the machine stood still for "
                f"{poll.paused:.2f} s): {poll}"
            )
            assert set(poll.statuses) <= set(truth), f"unexpected proxies: {poll}"
            assert required <= set(poll.statuses), f"missing proxies: {poll}"
            assert poll.stale == bool(poll.snapshot["stale_reason"]), f"stale without a reason: {poll}"
        for name, statuses in truth.items():
            seen = self.statuses_seen(name)
            assert _is_in_order(seen, [statuses] if isinstance(statuses, str) else statuses), (
                f"{name} was {statuses}, but the polls show {seen}"
            )
        self._check_numbers()
        if not lost_shards:
            self._check_times()

    def _check_numbers(self) -> None:
        """Check that numbers only grow, and that each number has one content."""
        restarts = list(self._redis_emptied)
        contents: dict[tuple[str, str], Any] = {}
        last = 0
        for poll in self.polls:
            number = poll.snapshot["number"]
            content = {
                # The status of a row belongs to its URL: with a new URL it may differ.
                (region["id"], region["path_app_url"]): (region["status"], poll.snapshot["checked_at"])
                for region in poll.body["regions"]
            }
            changed = {key for key in content.keys() & contents.keys() if content[key] != contents[key]}
            if number < last or (number == last and changed):
                assert restarts, f"the number fell from {last}, or has two contents: {changed} {poll}"
                assert restarts.pop(0) <= poll.at, f"the number restarted before Redis was empty: {poll}"
                contents.clear()
            elif number > last:
                contents.clear()
            contents.update(content)
            last = number

    def _check_times(self) -> None:
        """Check that no status is older than the round of its snapshot."""
        for poll in self.polls:
            for region in poll.body["regions"]:
                checked_at = region["status"]["checked_at"]
                assert checked_at is None or checked_at >= (poll.snapshot["checked_at"] or ""), (
                    f"{region['name']} was checked at {checked_at}, before the round of its snapshot: {poll}"
                )


def _is_in_order(seen: Sequence[str], statuses: Sequence[str]) -> bool:
    """Return whether ``seen`` is ``statuses``, apart from some that are left out."""
    place = 0
    for status in seen:
        if status not in statuses[place:]:
            return False
        place = statuses.index(status, place)
    return True

"""What readers saw throughout: a thread that asks for the JSON view again and again."""

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

# An answer takes 10 ms; on a machine whose two cores are starting Python processes at the same time,
# a few hundred. A reader that waits for Redis or for a proxy waits for longer than this.
LIMIT = 1.0


@dataclass(frozen=True)
class Poll:
    """One answer. ``code`` is 0 if there was none."""

    at: float  # monotonic
    wall: float  # seconds since the epoch
    elapsed: float  # of it all
    code: int
    lost: float  # seconds of it for which the machine stood still
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
        found = " ".join(f"{name}={status}" for name, status in self.statuses.items())
        return f"{self.at:.3f} took {self.elapsed:.3f} {dict(self.snapshot)} {found}"


class Poller:
    """Polls from the moment it is entered; ``check()`` at the end looks at every poll."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._url = f"{deployment.base}/api/v2/workspaceproxies"
        self._client = deployment.new_client()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="poller", daemon=True)
        self._news = threading.Condition()
        self._emptied: list[float] = []
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
            poll = self._ask()
            with self._news:
                self.polls.append(poll)
                self._news.notify_all()
            self._over.wait(max(0.0, PERIOD - poll.elapsed))

    def _ask(self) -> Poll:
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

    # While it polls

    def wait_until(
        self, predicate: Callable[[Poll], bool], seconds: float, what: str, since: float | None = None
    ) -> float:
        """Seconds from ``since`` (now) until a poll began for which ``predicate`` holds."""
        since = time.monotonic() if since is None else since
        seen = 0
        with self._news:
            while True:
                for poll in self.polls[seen:]:
                    if poll.at >= since and poll.code == 200 and predicate(poll):
                        return poll.at - since
                seen = len(self.polls)
                left = since + seconds - time.monotonic()
                assert left > 0, f"not within {seconds:.1f} s: {what}{self._evidence()}"
                self._news.wait(left)

    def _evidence(self) -> str:
        ended = self._deployment.ended()
        last = self.polls[-1] if self.polls else "none"
        return f"{f' ({ended} ended by itself)' if ended else ''}; the last poll: {last}"

    def emptied(self) -> None:
        """From now on the number of the snapshot may begin anew, once."""
        self._emptied.append(time.monotonic())

    # What was seen

    def between(self, begin: float, end: float = float("inf")) -> list[Poll]:
        return [poll for poll in self.polls if begin <= poll.at <= end]

    def statuses_seen(self, name: str) -> list[str]:
        """The statuses of a proxy in their order, repetitions left out."""
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
        """Every poll of them all: answered in time, whole, and true.

        ``truth`` has for every proxy the statuses that it had, in their order: no other may have been
        seen, and none after one that followed it; "missing" is one of a row that comes or goes.
        ``late`` gives another limit for some polls. With ``lost_shards`` a round may end without
        some of its proxies.
        """
        assert self.polls, "nothing was polled"
        required = {name for name, known in truth.items() if "missing" not in known}
        for poll in self.polls:
            assert poll.code == 200, f"answered with {poll}"
            allowed = late(poll) if late else limit
            assert poll.elapsed - poll.lost < allowed, (
                f"answered after {poll.elapsed:.2f} s (limit {allowed} s; the machine stood still for "
                f"{poll.lost:.2f} s): {poll}"
            )
            assert set(poll.statuses) <= set(truth), f"shows what is not there: {poll}"
            assert required <= set(poll.statuses), f"not whole: {poll}"
            assert poll.stale == bool(poll.snapshot["stale_reason"]), f"stale without a reason: {poll}"
        for name, known in truth.items():
            seen = self.statuses_seen(name)
            assert _follows(seen, [known] if isinstance(known, str) else known), (
                f"{name} was {known}, and was seen as {seen}"
            )
        self._check_numbers()
        if not lost_shards:
            self._check_snapshots()

    def _check_numbers(self) -> None:
        """One number is one content, and numbers go up."""
        renewals = list(self._emptied)
        contents: dict[tuple[str, str], Any] = {}
        last = 0
        for poll in self.polls:
            number = poll.snapshot["number"]
            content = {
                # Of a row that has another URL by now, its status says nothing any more.
                (region["id"], region["path_app_url"]): (region["status"], poll.snapshot["checked_at"])
                for region in poll.body["regions"]
            }
            other = {key for key in content.keys() & contents.keys() if content[key] != contents[key]}
            if number < last or (number == last and other):
                assert renewals, f"the number went back from {last}, or has two contents: {other} {poll}"
                assert renewals.pop(0) <= poll.at, f"the number began anew before Redis was empty: {poll}"
                contents.clear()
            elif number > last:
                contents.clear()
            contents.update(content)
            last = number

    def _check_snapshots(self) -> None:
        """No status is older than the round that the snapshot says it is of."""
        for poll in self.polls:
            for region in poll.body["regions"]:
                checked_at = region["status"]["checked_at"]
                assert checked_at is None or checked_at >= (poll.snapshot["checked_at"] or ""), (
                    f"{region['name']} was checked at {checked_at}, before the round of its snapshot: {poll}"
                )


def _follows(seen: Sequence[str], known: Sequence[str]) -> bool:
    place = 0
    for status in seen:
        if status not in known[place:]:
            return False
        place = known.index(status, place)
    return True

"""Probes of many proxies at once: their order, threads, batches and time limit."""

import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Self
from uuid import UUID

from proxyhealth.conf import conf
from proxyhealth.exceptions import ProberOffline, RoundFailed
from proxyhealth.probing.probe import is_reachable, probe
from proxyhealth.probing.turns import Turn, turns
from proxyhealth.report import HealthReport
from proxyhealth.snapshot import Proxy, ProxyStatus
from proxyhealth.statuses import Reason, Status
from proxyhealth.utils import green_threads
from proxyhealth.validators import parse_proxy_url

_STOP_POLL = 0.5  # seconds between two checks of the stop event
_CLAIM_PAUSE = 0.25  # seconds after a shard before a process takes the next one, so that others get theirs
_MANY = 64  # probes: with more, the thread that collects their statuses takes time from them
_COLLECT_PAUSE = 0.02  # seconds in which the statuses of many probes gather


# Called with the number of probes that have ended, and that of all.
OnProgress = Callable[[int, int], None]


def time_limit(count: int) -> float:
    """Return the most seconds that the probes of ``count`` proxies can take."""
    # CONCURRENCY probes take at most TIMEOUT. One more turn allows for a busy machine.
    turns = math.ceil(count / conf.CONCURRENCY) + 1
    return turns * conf.TIMEOUT + 1


def slow_first(proxies: Iterable[Proxy], previous: Mapping[UUID, ProxyStatus]) -> list[Proxy]:
    """Return ``proxies``, those with the slowest previous probes first.

    The fast probes then run while the slow ones wait.
    """
    return sorted(proxies, key=lambda proxy: expected_seconds(previous.get(proxy.id), proxy), reverse=True)


def expected_seconds(status: ProxyStatus | None, proxy: Proxy) -> float:
    """Return the expected duration of a probe of ``proxy`` in seconds, given its previous status."""
    if not proxy.url:
        return 0.0
    if status is None or status.proxy.url != proxy.url:
        return 0.001  # unknown; most proxies respond fast
    if status.reason is Reason.TIMEOUT:
        return conf.TIMEOUT
    if status.latency is None:
        return conf.TIMEOUT / 10  # a refused connection is fast, an unknown name may be slow
    return min(status.latency, conf.TIMEOUT)


def probe_all(
    proxies: Sequence[Proxy],
    checked_at: datetime,
    previous: Mapping[UUID, ProxyStatus] | None = None,
    stop: threading.Event | None = None,
    on_progress: OnProgress | None = None,
) -> list[ProxyStatus]:
    """Probe ``proxies`` and return their statuses in the same order. ``previous`` has their last statuses.

    Raise ``ProberOffline`` if some are unreachable and no canary responds. Raise ``RoundFailed`` if no thread
    can be started or ``stop`` is set; no probe begins after that.
    """
    ordered = slow_first(proxies, previous or {})
    (batch,) = probe_batches(ordered, checked_at, math.inf, stop, on_progress)
    require_online(batch)
    statuses = {status.proxy.id: status for status in batch}
    return [statuses[proxy.id] for proxy in proxies]


def probe_batches(
    proxies: Sequence[Proxy],
    checked_at: datetime,
    batch_idle: float,
    stop: threading.Event | None = None,
    on_progress: OnProgress | None = None,
) -> Iterator[list[ProxyStatus]]:
    """Probe ``proxies`` in their order and yield the statuses in batches, at least one.

    A batch ends when no probe ends for ``batch_idle`` seconds; each batch doubles this time. A proxy without
    a result after :func:`time_limit` is ``unreachable`` (``timeout``). Raise ``RoundFailed``.
    """
    end = time.monotonic() + time_limit(len(proxies))
    missing = {proxy.id: proxy for proxy in proxies}
    batch: list[ProxyStatus] = []
    batch_end = end
    with _Prober(checked_at, stop) as prober:
        prober.add(proxies)
        while missing:
            if statuses := prober.next_statuses(batch_end):
                for status in statuses:
                    del missing[status.proxy.id]
                batch += statuses
                if on_progress:
                    on_progress(len(proxies) - len(missing), len(proxies))
                batch_end = min(end, time.monotonic() + batch_idle)
            elif time.monotonic() >= end:
                break
            else:
                yield batch
                batch, batch_end, batch_idle = [], end, 2 * batch_idle
    yield batch + [_timed_out(proxy, checked_at) for proxy in missing.values()]


Shard = tuple[int, Sequence[Proxy]]  # with its number


def probe_shards(
    first: Shard, claim: Callable[[], Shard | None], checked_at: datetime, stop: threading.Event | None = None
) -> Iterator[tuple[int, list[ProxyStatus]]]:
    """Probe a shard, and more while probes only wait. Yield the number and statuses of each complete shard.

    ``claim`` returns the next shard, or None if there is none. So a shard with silent proxies delays no other
    one. At most ``CONCURRENCY`` probes run, as for a single shard. Proxies without a result after
    :func:`time_limit` are ``unreachable`` (``timeout``). Raise ``RoundFailed``.
    """
    shards: dict[int, Sequence[Proxy]] = {}
    left: dict[int, int] = {}  # probes of each shard without a result
    missing: dict[UUID, int] = {}  # the shard of each proxy without a result
    statuses: dict[UUID, ProxyStatus] = {}
    shard: Shard | None = first
    end = next_claim = 0.0
    with _Prober(checked_at, stop) as prober:
        while shard or missing:
            now = time.monotonic()
            if shard:
                number, proxies = shard
                shards[number], left[number] = proxies, len(proxies)
                missing |= dict.fromkeys((proxy.id for proxy in proxies), number)
                prober.add(proxies)
                end, next_claim = now + time_limit(len(missing)), now + _CLAIM_PAUSE
                shard = None
            found = prober.next_statuses(min(end, max(next_claim, now + _CLAIM_PAUSE)))
            for status in found:
                number = missing.pop(status.proxy.id)
                statuses[status.proxy.id] = status
                left[number] -= 1
                if not left[number]:
                    yield number, [statuses.pop(proxy.id) for proxy in shards.pop(number)]
            now = time.monotonic()
            if not found and now >= end:
                break
            if missing and now >= next_claim and prober.only_waits:
                shard = claim()
                next_claim = now + _CLAIM_PAUSE if shard else math.inf
    for number, proxies in shards.items():
        yield number, [statuses.get(proxy.id) or _timed_out(proxy, checked_at) for proxy in proxies]


class _Prober:
    """Up to ``CONCURRENCY`` threads that probe the proxies that are added, until the block ends."""

    def __init__(self, checked_at: datetime, stop: threading.Event | None) -> None:
        if library := green_threads():
            raise RoundFailed(
                f"probes need real threads, but {library} replaced those of this process. Run rounds in a "
                "Celery worker with --pool prefork, threads or solo, and call request_check() in place of "
                "force_update()"
            )
        self._checked_at = checked_at
        self._stop = stop
        self._limit = conf.CONCURRENCY
        self._waiting: queue.SimpleQueue[Proxy | None] = queue.SimpleQueue()
        self._statuses: queue.SimpleQueue[ProxyStatus] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._refused = False  # the system has not started the last thread
        self._ready = 0  # threads that have a proxy and wait for their turn
        self._unfinished = 0
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._ended = True
        for _ in range(self._threads):
            self._waiting.put(None)

    def add(self, proxies: Sequence[Proxy]) -> None:
        """Probe these proxies, too. Raise ``RoundFailed`` if no thread can be started."""
        for proxy in proxies:
            self._waiting.put(proxy)
        self._unfinished += len(proxies)
        self._start_thread()

    def _start_thread(self) -> None:
        """Start a thread if there is work for one more. Raise ``RoundFailed`` if there is none at all."""
        with self._lock:
            if self._ended or self._threads >= self._limit or self._waiting.empty():
                return
            try:
                # Daemons, so that the process can end while a probe hangs.
                threading.Thread(target=self._work, name="probe", daemon=True).start()
            except RuntimeError as error:
                if self._threads == 0:
                    raise RoundFailed(f"no thread can be started: {error}") from error
                self._refused = True  # the next probe that begins tries again
            else:
                self._threads += 1
                self._refused = False

    def _work(self) -> None:
        turn = Turn(turns.value)
        while (proxy := self._waiting.get()) and not self._ended:
            with self._lock:
                self._ready += 1
            with turn:
                with self._lock:
                    self._ready -= 1
                if not self._ready:
                    # The other threads wait for proxies. A thread takes memory, so start no more than needed.
                    self._start_thread()
                status = probe(proxy, self._checked_at, turn)
            self._statuses.put(status)

    @property
    def only_waits(self) -> bool:
        """True if every proxy has a thread, and a quarter of the threads is free."""
        return self._waiting.empty() and not self._refused and self._unfinished <= self._limit * 3 // 4

    def next_statuses(self, end: float) -> list[ProxyStatus]:
        """Return the next statuses, or none if there is none before ``end``.

        Raise ``RoundFailed`` if stopped, or if this process stood still.
        """
        while not (self._stop and self._stop.is_set()):
            begin, cpu = time.monotonic(), time.process_time()
            if self._unfinished > _MANY and self._statuses.empty():
                # Otherwise each probe that ends would wake this thread, and take time from the other probes.
                time.sleep(_COLLECT_PAUSE)
            statuses = []
            with suppress(queue.Empty):
                statuses.append(self._statuses.get(timeout=max(0.0, min(end - begin, _STOP_POLL))))
                while len(statuses) < self._unfinished:
                    statuses.append(self._statuses.get_nowait())
            _require_no_pause(begin, cpu)
            if statuses:
                self._unfinished -= len(statuses)
                return statuses
            if time.monotonic() >= end:
                break
        else:
            raise RoundFailed("another round has begun while this one ran")
        return []


def _require_no_pause(begin: float, cpu: float) -> None:
    """Raise ``RoundFailed`` if this process, busy or not, has hardly run for a ``TIMEOUT`` since ``begin``.

    In a paused container or a suspended process, all probes time out, although their proxies responded.
    """
    pause = time.monotonic() - begin - (time.process_time() - cpu)
    if pause >= max(conf.TIMEOUT, 2 * _STOP_POLL):
        raise RoundFailed(
            f"this process stood still for {pause:.1f} s, so its probes say nothing about the proxies"
        )


def _timed_out(proxy: Proxy, checked_at: datetime) -> ProxyStatus:
    try:
        host = parse_proxy_url(proxy.url).netloc
    except ValueError:
        host = ""
    report = HealthReport.sanitized(["request to proxy failed: no result before the end of the round"])
    return ProxyStatus(proxy, host, Status.UNREACHABLE, Reason.TIMEOUT, report, checked_at)


def require_online(statuses: Iterable[ProxyStatus]) -> None:
    """Raise ``ProberOffline`` if one of ``statuses`` is unreachable and no canary responds.

    Call this after the probes, to detect a network that fails during them.
    """
    urls = conf.CANARY_URLS
    if not urls or all(status.status is not Status.UNREACHABLE for status in statuses):
        return
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
    for url in urls:
        threading.Thread(
            target=lambda url=url: answers.put(is_reachable(url)), name="canary", daemon=True
        ).start()
    end = time.monotonic() + conf.TIMEOUT + 1
    try:
        if any(answers.get(timeout=max(0.0, end - time.monotonic())) for _ in urls):
            return
    except queue.Empty:  # a name resolution that hangs counts as no response
        pass
    raise ProberOffline(
        f"Prober offline: proxies seem dead, but none of CANARY_URLS answers the worker on "
        f"{socket.gethostname()} either."
    )

"""Many proxies at once: which, in which order, how many together, and until when."""

from __future__ import annotations

import math
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from proxyhealth.conf import conf
from proxyhealth.exceptions import ProberOffline, RoundFailed
from proxyhealth.probing.probe import is_reachable, probe
from proxyhealth.report import HealthReport
from proxyhealth.snapshot import Proxy, ProxyStatus
from proxyhealth.statuses import Reason, Status
from proxyhealth.validators import parse_proxy_url

# Who waits for probes looks up so often (seconds) whether the round is still wanted.
_STOP_POLL = 0.5

# With so many threads it pays to let them switch less often.
_SWITCH_THRESHOLD = 64


def time_limit(count: int) -> float:
    """Seconds within which ``count`` proxies are probed, whatever they do."""
    # Each turn of CONCURRENCY probes takes TIMEOUT at the most; one turn more is for a machine
    # that is busy with something else.
    turns = math.ceil(count / conf.CONCURRENCY) + 1
    return turns * conf.TIMEOUT + 1


def slow_first(proxies: Iterable[Proxy], known: Mapping[UUID, ProxyStatus]) -> list[Proxy]:
    """``proxies``, those first that took long last time: what waits for them overlaps all the others."""
    return sorted(proxies, key=lambda proxy: expected_seconds(known.get(proxy.id), proxy), reverse=True)


def expected_seconds(status: ProxyStatus | None, proxy: Proxy) -> float:
    """How many seconds a probe of ``proxy`` will probably take."""
    if not proxy.url:
        return 0.0
    if status is None or status.proxy.url != proxy.url:
        return 0.001  # nobody knows; most proxies answer
    if status.reason is Reason.TIMEOUT:
        return conf.TIMEOUT
    if status.latency is None:
        return conf.TIMEOUT / 10  # refused, or no such name: sometimes at once, sometimes not
    return min(status.latency, conf.TIMEOUT)


def probe_all(
    proxies: Sequence[Proxy],
    checked_at: datetime,
    known: Mapping[UUID, ProxyStatus] | None = None,
    stop: threading.Event | None = None,
) -> list[ProxyStatus]:
    """A status for every one of ``proxies``, in their order; ``known`` is what is known of them so far.

    Raises ``ProberOffline`` if some are unreachable, and no canary answers. Raises ``RoundFailed`` if not a
    single thread can be started; and when ``stop`` is set, after which no other probe begins.
    """
    (batch,) = probe_batches(slow_first(proxies, known or {}), checked_at, lull=math.inf, stop=stop)
    require_online(batch)
    found = {status.proxy.id: status for status in batch}
    return [found[proxy.id] for proxy in proxies]


def probe_batches(
    proxies: Sequence[Proxy], checked_at: datetime, lull: float, stop: threading.Event | None = None
) -> Iterator[list[ProxyStatus]]:
    """A status for every one of ``proxies``, in batches as they come: at least one.

    A batch ends when nothing more comes for ``lull`` seconds, of which each batch has twice as many.
    ``CONCURRENCY`` probes run at once, each in a thread, and begin in the order of ``proxies``. After
    :func:`time_limit` what has not answered is ``unreachable`` (``timeout``), and its thread is left to
    itself. Raises ``RoundFailed`` if not a single thread can be started, or when ``stop`` is set.
    """
    todo: queue.SimpleQueue[Proxy] = queue.SimpleQueue()
    done: queue.SimpleQueue[ProxyStatus] = queue.SimpleQueue()
    over = threading.Event()
    for proxy in proxies:
        todo.put(proxy)

    def work() -> None:
        while not over.is_set():
            try:
                proxy = todo.get_nowait()
            except queue.Empty:
                return
            done.put(probe(proxy, checked_at))

    end = time.monotonic() + time_limit(len(proxies))
    waiting = {proxy.id: proxy for proxy in proxies}
    batch: list[ProxyStatus] = []
    heard = 0.0
    threads = min(conf.CONCURRENCY, len(proxies))
    crowded = threads > _SWITCH_THRESHOLD
    if crowded:
        _switching.fewer()
    try:
        _start_threads(work, threads)
        while waiting:
            if stop and stop.is_set():
                raise RoundFailed("another round has begun while this one ran")
            quiet_until = heard + lull if batch else math.inf
            try:
                pause = min(end, quiet_until) - time.monotonic()
                status = done.get(timeout=max(0.0, min(pause, _STOP_POLL)))
            except queue.Empty:
                if time.monotonic() >= end:
                    break
                if time.monotonic() >= quiet_until:
                    yield batch
                    batch, lull = [], 2 * lull
                continue
            heard = time.monotonic()
            del waiting[status.proxy.id]
            batch.append(status)
    finally:
        over.set()
        if crowded:
            _switching.usual()
    yield batch + [_unanswered(proxy, checked_at) for proxy in waiting.values()]


class _Switching:
    """How often the interpreter has a thread hand over to another one, which is the whole process's.

    Every thread that waits for its turn asks for it so often, and hundreds that do leave little time for
    the work. A probe hands over by itself, whenever it waits for its proxy.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._usual = 0.0

    def fewer(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(max(self._usual, 0.05))

    def usual(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                sys.setswitchinterval(self._usual)


_switching = _Switching()


def _start_threads(work: Callable[[], None], count: int) -> None:
    for started in range(count):
        try:
            # Daemons, so that a process can end although a probe of it does not.
            threading.Thread(target=work, name="probe", daemon=True).start()
        except RuntimeError as error:
            if not started:
                raise RoundFailed(f"no thread can be started: {error}") from error
            return


def require_online(statuses: Iterable[ProxyStatus]) -> None:
    """Raises ``ProberOffline`` if one of ``statuses`` is unreachable, and no canary answers.

    The canaries are asked after the proxies, because it is then that there is something to doubt.
    """
    urls = conf.CANARY_URLS
    if not urls or all(status.status is not Status.UNREACHABLE for status in statuses):
        return
    heard: queue.SimpleQueue[bool] = queue.SimpleQueue()
    for url in urls:
        threading.Thread(
            target=lambda url=url: heard.put(is_reachable(url)), name="canary", daemon=True
        ).start()
    end = time.monotonic() + conf.TIMEOUT + 1
    try:
        if any(heard.get(timeout=max(0.0, end - time.monotonic())) for _ in urls):
            return
    except queue.Empty:  # a look-up that hangs is no answer
        pass
    raise ProberOffline(
        f"Prober offline: proxies seem dead, but none of CANARY_URLS answers the worker on "
        f"{socket.gethostname()} either."
    )


def _unanswered(proxy: Proxy, checked_at: datetime) -> ProxyStatus:
    try:
        host = parse_proxy_url(proxy.url).netloc
    except ValueError:
        host = ""
    return ProxyStatus(
        proxy,
        host,
        status=Status.UNREACHABLE,
        reason=Reason.TIMEOUT,
        report=HealthReport.sanitized(["request to proxy failed: no judgement before the end of the round"]),
        checked_at=checked_at,
    )

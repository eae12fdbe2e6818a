"""Probes of many proxies at once: their order, threads, batches and time limit."""

import math
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from uuid import UUID

from proxyhealth.conf import conf
from proxyhealth.exceptions import ProberOffline, RoundFailed
from proxyhealth.probing.probe import is_reachable, probe
from proxyhealth.report import HealthReport
from proxyhealth.snapshot import Proxy, ProxyStatus
from proxyhealth.statuses import Reason, Status
from proxyhealth.utils import PerProcess, green_threads
from proxyhealth.validators import parse_proxy_url

_STOP_POLL = 0.5  # seconds between two checks of the stop event
_SWITCH_THRESHOLD = 64  # with more threads, fewer switches between them save time


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
) -> list[ProxyStatus]:
    """Probe ``proxies`` and return their statuses in the same order. ``previous`` has their last statuses.

    Raise ``ProberOffline`` if some are unreachable and no canary responds. Raise ``RoundFailed`` if no thread
    can be started or ``stop`` is set; no probe begins after that.
    """
    (batch,) = probe_batches(slow_first(proxies, previous or {}), checked_at, math.inf, stop)
    require_online(batch)
    statuses = {status.proxy.id: status for status in batch}
    return [statuses[proxy.id] for proxy in proxies]


def probe_batches(
    proxies: Sequence[Proxy], checked_at: datetime, batch_idle: float, stop: threading.Event | None = None
) -> Iterator[list[ProxyStatus]]:
    """Probe ``proxies`` in their order and yield the statuses in batches, at least one.

    A batch ends when no probe ends for ``batch_idle`` seconds; each batch doubles this time. A proxy without
    a result after :func:`time_limit` is ``unreachable`` (``timeout``). Raise ``RoundFailed``.
    """
    if library := green_threads():
        raise RoundFailed(
            f"probes need real threads, but {library} replaced those of this process. Run rounds in a Celery "
            "worker with --pool prefork, threads or solo, and call request_check() in place of force_update()"
        )
    end = time.monotonic() + time_limit(len(proxies))
    missing = {proxy.id: proxy for proxy in proxies}
    batch: list[ProxyStatus] = []
    batch_end = end
    with _probing(proxies, checked_at) as statuses:
        while missing:
            if status := _next_status(statuses, batch_end, stop):
                del missing[status.proxy.id]
                batch.append(status)
                batch_end = min(end, time.monotonic() + batch_idle)
            elif time.monotonic() >= end:
                break
            else:
                yield batch
                batch, batch_end, batch_idle = [], end, 2 * batch_idle
    yield batch + [_timed_out(proxy, checked_at) for proxy in missing.values()]


@contextmanager
def _probing(proxies: Sequence[Proxy], checked_at: datetime) -> Iterator[queue.SimpleQueue[ProxyStatus]]:
    """Probe in up to ``CONCURRENCY`` threads while the block runs, and yield the queue of results."""
    waiting: queue.SimpleQueue[Proxy] = queue.SimpleQueue()
    statuses: queue.SimpleQueue[ProxyStatus] = queue.SimpleQueue()
    stopped = threading.Event()
    for proxy in proxies:
        waiting.put(proxy)

    def work() -> None:
        while not stopped.is_set():
            try:
                proxy = waiting.get_nowait()
            except queue.Empty:
                return
            statuses.put(probe(proxy, checked_at))

    count = min(conf.CONCURRENCY, len(proxies))
    with fewer_thread_switches() if count > _SWITCH_THRESHOLD else nullcontext():
        try:
            for number in range(count):
                try:
                    # Daemons, so that the process can end while a probe hangs.
                    threading.Thread(target=work, name="probe", daemon=True).start()
                except RuntimeError as error:
                    if number == 0:
                        raise RoundFailed(f"no thread can be started: {error}") from error
                    break
            yield statuses
        finally:
            stopped.set()


def _next_status(
    statuses: queue.SimpleQueue[ProxyStatus], end: float, stop: threading.Event | None
) -> ProxyStatus | None:
    """Return the next status, or None if none comes before ``end``."""
    while not (stop and stop.is_set()):
        try:
            return statuses.get(timeout=max(0.0, min(end - time.monotonic(), _STOP_POLL)))
        except queue.Empty:
            if time.monotonic() >= end:
                return None
    raise RoundFailed("another round has begun while this one ran")


def _timed_out(proxy: Proxy, checked_at: datetime) -> ProxyStatus:
    try:
        host = parse_proxy_url(proxy.url).netloc
    except ValueError:
        host = ""
    report = HealthReport.sanitized(["request to proxy failed: no result before the end of the round"])
    return ProxyStatus(proxy, host, Status.UNREACHABLE, Reason.TIMEOUT, report, checked_at)


class _SwitchInterval:
    """The interpreter's switch interval: its usual value, and the blocks that lengthen it."""

    usual = 0.0  # 0 outside such blocks; a class attribute, so that a child forked in a block restores it

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.blocks = 0
        self.restore()

    def restore(self) -> None:
        if _SwitchInterval.usual:
            sys.setswitchinterval(_SwitchInterval.usual)
            _SwitchInterval.usual = 0.0


_switch_interval = PerProcess(_SwitchInterval)


@contextmanager
def fewer_thread_switches() -> Iterator[None]:
    """Make the interpreter switch threads less often while the block runs.

    Each waiting thread requests a switch once per interval, and hundreds of them leave little time for the
    work. A probe gives way by itself whenever it waits for its proxy.
    """
    state = _switch_interval.value
    with state.lock:
        state.blocks += 1
        if state.blocks == 1:
            _SwitchInterval.usual = sys.getswitchinterval()
            sys.setswitchinterval(max(_SwitchInterval.usual, 0.05))
    try:
        yield
    finally:
        with state.lock:
            state.blocks -= 1
            if state.blocks == 0:
                state.restore()


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

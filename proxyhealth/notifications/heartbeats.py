"""The heartbeats: requests of ``HEARTBEAT_URLS``, whose owners notice when none comes any more."""

import atexit
import hashlib
import logging
import threading
import time
from contextlib import closing, suppress
from urllib.parse import quote, urlsplit

from proxyhealth import __version__
from proxyhealth.conf import conf
from proxyhealth.exceptions import StoreError
from proxyhealth.probing import tls
from proxyhealth.probing.deadline import Deadline
from proxyhealth.probing.policy import AddressPolicy
from proxyhealth.probing.response import Response
from proxyhealth.probing.transport import Connection
from proxyhealth.storage import presence
from proxyhealth.texts import clean, without_passwords
from proxyhealth.utils import PerProcess
from proxyhealth.validators import parse_proxy_url, split_url

logger = logging.getLogger(__name__)

_MAX_REDIRECTS = 3
_TIMEOUT = 4.0  # seconds of one attempt, with its redirects
_PAUSE = 1.0  # seconds before the second attempt
_EXIT_TIMEOUT = 2.0  # seconds that a process which ends waits for its last heartbeats

_HEADERS = {"Accept": "*/*", "Connection": "close", "User-Agent": f"proxyhealth/{__version__}"}


class _Failed(Exception):
    """A heartbeat that was not accepted. The message has no part of the URL but its host."""


def send() -> None:
    """Request each of ``HEARTBEAT_URLS`` in a thread. Return at once, never raise."""
    try:
        for url in conf.HEARTBEAT_URLS:
            _heartbeats.value.send(url)
    except Exception as error:  # a round that is committed must not fail
        logger.warning("no heartbeat was sent: %s", without_passwords(error))


class Heartbeats:
    """The heartbeats of this process. Each URL has at most one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: dict[str, threading.Thread] = {}
        self._failed: set[str] = set()

    def send(self, url: str) -> None:
        """Request ``url``, unless its last request still runs."""
        with self._lock:
            running = self._threads.get(url)
            if running and running.is_alive():
                return
            thread = threading.Thread(
                target=self._beat, args=(url,), name="proxyhealth heartbeat", daemon=True
            )
            thread.start()
            self._threads[url] = thread

    def wait(self, seconds: float) -> None:
        """Wait for the requests that run, for at most ``seconds`` in total."""
        end = time.monotonic() + seconds
        for thread in list(self._threads.values()):
            thread.join(max(0.0, end - time.monotonic()))

    def _beat(self, url: str) -> None:
        error = _try(url)
        if error:
            time.sleep(_PAUSE)
            error = _try(url)
        with suppress(StoreError):  # the log has it, too
            presence.note_heartbeat(id_of(url), error)
        host = host_of(url)
        had_failed = url in self._failed
        if error and not had_failed:
            self._failed.add(url)
            logger.warning("heartbeat failed host=%s error=%s", host, error)
        elif had_failed and not error:
            self._failed.discard(url)
            logger.info("heartbeat accepted again host=%s", host)


def id_of(url: str) -> str:
    """Return the name of a heartbeat in the cache, which does not show its URL: the path is a secret."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]


def host_of(url: str) -> str:
    """Return the part of the URL that is no secret."""
    return clean(urlsplit(url).netloc, 253)


_heartbeats = PerProcess(Heartbeats)


def flush() -> None:
    """Wait a moment for the heartbeats that run, in a process that ends: their threads would end with it."""
    _heartbeats.value.wait(_EXIT_TIMEOUT)


# For example, a cron job that runs a round.
atexit.register(flush)


def _try(url: str) -> str:
    """Request ``url``. Return an error, or an empty string. Never raise.

    The path of such a URL is a secret, and so may be a redirect, and whatever the response repeats.
    """
    deadline = Deadline(_TIMEOUT)
    try:
        _request(url, deadline)
    except _Failed as error:
        return str(error)
    except TimeoutError:
        return f"no answer within {_TIMEOUT:g} s; the time ran out while {deadline.phase}"
    except ValueError:
        return "the URL, or one that it redirects to, cannot be used"
    except OSError as error:
        return clean(f"{error.strerror or type(error).__name__} while {deadline.phase}", 300)
    except Exception as error:
        return f"{type(error).__name__} while {deadline.phase}"
    return ""


def _request(url: str, deadline: Deadline) -> None:
    for _ in range(_MAX_REDIRECTS + 1):
        status, location = _get(url, deadline)
        if not (300 <= status < 400 and location):
            break
        deadline.count_redirect()
        url = split_url(location, base=url).geturl()
    else:
        raise _Failed(f"more than {_MAX_REDIRECTS} redirects")
    if not 200 <= status < 300:
        raise _Failed(f"status {status}")


def _get(url: str, deadline: Deadline) -> tuple[int, str]:
    """Return the status and the header ``Location`` of the response. Its body is not read."""
    parts = urlsplit(url)
    target = parse_proxy_url(f"{parts.scheme}://{parts.netloc}")
    path = quote(f"{parts.path or '/'}?{parts.query}".removesuffix("?"), safe="!$%&'()*+,/:;=?@[]~")
    context = tls.tls_context(conf.CA_BUNDLE) if target.scheme == "https" else None
    # The operator chose the URL, so the address policy does not apply.
    connection = Connection(
        target.host, target.port, deadline=deadline, policy=AddressPolicy(), context=context
    )
    with closing(connection):
        response: Response = connection.get(path, _HEADERS)
        with closing(response):
            return response.status, response.headers.get("location", "")

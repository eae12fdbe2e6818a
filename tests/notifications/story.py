"""Changes of proxies as the history records them, and a webhook that notes what it is told."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from django.db import transaction
from django.utils import timezone

from proxyhealth.history import outages
from proxyhealth.models import Channel, Delivery, Transition, WorkspaceProxy
from proxyhealth.notifications import deliveries
from proxyhealth.utils import aware

CREATED = timedelta(days=2)  # before now, so that the channels hear of all changes of a test


class Receiver:
    """A webhook that answers with the next of ``answers``, then with 200. ``gate`` lets it answer."""

    def __init__(self):
        self.bodies = []
        self.answers = []
        self.gate = threading.Event()
        self.gate.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.headers["Idempotency-Key"] == body["id"]
                outer.bodies.append(body)
                outer.gate.wait(20)
                status, headers = outer.answers.pop(0) if outer.answers else (200, {})
                self.send_response(status)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                """Ignore a client that was killed."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc_info):
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def ids(self):
        return [body["id"] for body in self.bodies]

    @property
    def told(self):
        """Return the changes of each message, as (name, status)."""
        return [[(each["proxy"]["name"], each["after"]) for each in body["changes"]] for body in self.bodies]


def make_channel(receiver, name="ops", **values):
    values = {"kind": "webhook", "target": receiver.url, "secret": "s" * 32, **values}
    return Channel.objects.create(name=name, listens_since=timezone.now() - CREATED, **values)


def make_proxy(name="paris", **values):
    """Make a proxy that is ok, as nobody has to be told."""
    proxy = WorkspaceProxy.objects.create(name=name, url=f"https://{name}.example.com", **values)
    _row(proxy, "unknown", "ok", timezone.now() - CREATED, token=1).save()
    return proxy


def _row(proxy, before, after, at, token, **values):
    values |= {"proxy": proxy, "proxy_uuid": proxy.pk, "proxy_name": proxy.name, "watched": 0}
    return Transition(before=before, after=after, at=at, token=token, **values)


def change(proxy, *statuses, ago=0.0, every=1.0, **values):
    """Record the next statuses of a proxy: the first began ``ago`` seconds before now. Return the rows."""
    begin = timezone.now() - timedelta(seconds=ago)
    rows = []
    for number, after in enumerate(statuses):
        last = Transition.objects.filter(proxy_uuid=proxy.pk).order_by("token").last()
        before, token = (last.after, last.token) if last else ("unknown", 0)
        at = begin + timedelta(seconds=number * every)
        token = max(int(aware(at).timestamp() * 1_000_000), token + 1)
        rows += record_rows(_row(proxy, before, after, at, token, **values))
    return rows


def record_rows(*rows):
    """Record these rows as the drain of the outbox does."""
    with transaction.atomic():
        Transition.objects.bulk_create(rows)
        deliveries.make("default", rows, outages.record("default", rows))
    return list(rows)


def states():
    """Return the states of all deliveries, in order."""
    return list(Delivery.objects.order_by("pk").values_list("state", flat=True))


def reasons():
    """Return the errors and reasons by state."""
    found = defaultdict(set)
    for state, error in Delivery.objects.values_list("state", "error"):
        found[state].add(error)
    return dict(found)


def rest_is_over():
    Channel.objects.update(rests_until=None)

"""A worker whose killed children cost nothing: forks of one process take Celery's messages from Redis.

``python -m tests.chaos.forked_worker 3`` keeps three children. As with Celery's early acknowledgement, a
child that is killed takes its message with it.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from datetime import UTC, datetime

import django
import redis
from django.conf import settings


def main(count: int) -> None:
    django.setup()
    from project.celery import app

    app.finalize()
    app.loader.import_default_modules()
    print("forked worker ready.", flush=True)
    children: set[int] = set()
    while True:
        while len(children) < count:
            pid = os.fork()
            if not pid:
                work(app)
            children.add(pid)
        children.discard(os.wait()[0])


def work(app) -> None:
    while True:
        try:
            with redis.Redis.from_url(settings.CELERY_BROKER_URL) as client:
                while True:
                    run_next(app, client)
        except redis.RedisError:
            time.sleep(0.05)


def run_next(app, client: redis.Redis) -> None:
    found = client.brpop(["celery"], timeout=1)
    if not found:
        return
    message = json.loads(found[1])
    headers = message["headers"]
    if headers.get("eta") and datetime.fromisoformat(headers["eta"]) > datetime.now(UTC):
        client.lpush("celery", found[1])  # until it is due
        time.sleep(0.01)
        return
    args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    app.tasks[headers["task"]].apply(args, kwargs)


if __name__ == "__main__":
    main(int(sys.argv[1]))

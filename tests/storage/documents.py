"""Documents for tests of their layout, and ways to change them."""

import json

from proxyhealth.storage.document import dump
from proxyhealth.storage.merge import Results, merged

TOKEN = 1_790_000_000_000_000


def commit_statuses(value, *statuses, token=TOKEN, full_round=None):
    return dump(merged(value, Results(statuses, token, full_round=full_round)).document)


def changed_json(change):
    """Return a function that changes a document as JSON, and lays it out as before."""

    def damage(value):
        whole = json.loads(value)
        change(whole)
        judgements, proxies = whole.pop("judgements"), whole.pop("proxies")
        return b"".join(
            [
                json.dumps(whole).encode()[:-1],
                b',\n"judgements": ',
                json.dumps(judgements).encode(),
                b',\n"proxies": [\n',
                b",\n".join(json.dumps(proxy).encode() for proxy in proxies),
                b"\n]}",
            ]
        )

    return damage

import pytest

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import dispatch


@pytest.fixture
def fleet(serve):
    """Create a proxy per status, run a round and return the ids by name."""
    names = {}
    for name, url in {
        "good": serve().url,
        "sick": serve(report={"errors": ["x"]}).url,
        "dead": "http://127.0.0.1:1",
        "new": "",
    }.items():
        names[name] = str(WorkspaceProxy.objects.create(name=name, url=url).pk)
    health.force_update()
    dispatch.flush(10)  # the task that it has sent is one of those that wait
    return names

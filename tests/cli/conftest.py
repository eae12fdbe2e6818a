from __future__ import annotations

import json
from io import StringIO
from typing import Any, NamedTuple

import pytest
from django.core.management import CommandError, call_command

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy


class Result(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Terminal(StringIO):
    """What a person sees on a terminal without colours."""

    def isatty(self) -> bool:
        return True


def run(*args: str, terminal: bool = False, **options: Any) -> Result:
    """Run a subcommand in this process, as from the command line."""
    out, err = Terminal() if terminal else StringIO(), StringIO()
    try:
        call_command("proxyhealth", *args, stdout=out, stderr=err, **options)
        status = 0
    except CommandError as error:
        status = error.returncode
        err.write(f"{error}")
    except SystemExit as error:
        status = error.code
    return Result(status, out.getvalue(), err.getvalue())


@pytest.fixture
def fleet(db: None, serve: Any) -> dict[str, Any]:
    """Four proxies that were checked: oslo and rome are fine, paris reports an error, sydney is silent."""
    servers = {
        "oslo": serve(),
        "paris": serve(report={"errors": ["kaputt"], "warnings": []}),
        "rome": serve(),
    }
    for name, server in servers.items():
        WorkspaceProxy.objects.create(name=name, url=server.url, labels={"region": "eu"})
    WorkspaceProxy.objects.create(name="sydney", url="http://127.0.0.1:1", labels={"region": "au"})
    health.force_update()
    return servers

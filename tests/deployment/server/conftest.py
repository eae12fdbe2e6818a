from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment.server.alerts import AlertReceiver
from tests.deployment.server.site import Site
from tests.support.ports import free_port
from tests.support.proxies import WorkspaceProxyServer

# So that a test need not wait a minute for a round. A snapshot is stale after three intervals, and a busy
# machine needs some seconds for a round.
FAST = "PROXYHEALTH_INTERVAL='2'\nPROXYHEALTH_TIMEOUT='1'\n"
INSTALLATION = (
    "Code",
    "Secrets and environment",
    "PostgreSQL",
    "Valkey",
    "Tables, static files, and first user",
    "Services",
    "nginx",
    "First status",
)


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """A server on which an operator has followed the guide up to the first alert."""
    # The users postgres and www-data cannot enter the folders of pytest.
    with tempfile.TemporaryDirectory(prefix="site-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        site = Site(folder)
        try:
            site.follow("Deployment")
            for section in INSTALLATION:
                if section == "First status":
                    site.wait_until_ready()
                site.follow(section)
                if section == "Secrets and environment":
                    with (folder / "etc/proxyhealth/environment").open("a") as environment:
                        environment.write(FAST)
            site.follow("First alert")
            site.add_proxy("atlantis", f"http://127.0.0.1:{free_port()}")  # nothing listens there
            yield site
        except AssertionError:
            for log in (folder / "var/log").iterdir():
                print(f"== {log.name}\n{log.read_text(errors='replace')[-2000:]}")
            raise
        finally:
            site.close()


@pytest.fixture(scope="session")
def receiver(site: Site) -> Iterator[AlertReceiver]:
    receiver = AlertReceiver(site.ports["receiver"])
    yield receiver
    receiver.close()


@pytest.fixture(scope="session")
def paris(site: Site) -> Iterator[WorkspaceProxyServer]:
    """A healthy proxy that the site monitors."""
    with WorkspaceProxyServer() as server:
        site.add_proxy("paris", server.url)
        yield server

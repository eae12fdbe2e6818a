from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from tests.probing.asking import Configure


@pytest.fixture
def timeout(configure: Configure) -> float:
    configure(TIMEOUT=0.4)
    return 0.4


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return path

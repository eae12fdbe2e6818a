"""A user of the web server of a deployment."""

from __future__ import annotations

import requests

from tests.support.proxies import wait_for


class Web:
    """A session with a web server."""

    def __init__(self, port):
        self.base = f"http://127.0.0.1:{port}"
        self.session = requests.Session()
        self.session.trust_env = False

    def get(self, path, **options):
        return self.session.get(self.base + path, timeout=20, **options)

    def wait(self):
        def responds():
            try:
                return self.get("/admin/login/").ok
            except (requests.ConnectionError, requests.Timeout):
                return False

        wait_for(responds, 40, "the web server responds")

    def sign_in(self, username):
        self.wait()
        form = {
            "username": username,
            "password": "a long password",
            "csrfmiddlewaretoken": self.session.cookies["csrftoken"],
        }
        page = self.session.post(f"{self.base}/admin/login/?next=/admin/", form, timeout=20)
        assert page.ok
        assert page.url == f"{self.base}/admin/"

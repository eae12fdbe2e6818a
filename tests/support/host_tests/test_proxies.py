"""The tests of a small project. Django's runner and pytest run all of them."""

import asyncio
import threading

from django.contrib.auth.models import User
from django.test import LiveServerTestCase, SimpleTestCase, TestCase, TransactionTestCase
from django.test.utils import override_settings

from proxyhealth.health import force_update, health_status, proxy_hosts, request_check, snapshot
from proxyhealth.models import WorkspaceProxy
from proxyhealth.testing import active_fake, fake_snapshot


def create(name):
    return WorkspaceProxy.objects.create(name=name, url=f"https://{name}.example.net")


@fake_snapshot(paris="ok", oslo=("unreachable", "timeout"))
class PagesTests(TestCase):
    @classmethod
    def setUpTestData(cls):
        cls.paris = create("paris")
        User.objects.create_superuser("root", password="root")

    def setUp(self):
        self.client.login(username="root", password="root")
        create("oslo")

    def test_json(self):
        body = self.client.get("/api/v2/workspaceproxies").json()
        statuses = {proxy["name"]: proxy["status"]["status"] for proxy in body["regions"]}
        assert statuses == {"oslo": "unreachable", "paris": "ok"}
        assert not body["snapshot"]["stale"]

    def test_json_shows_changes_of_this_test_only(self):
        WorkspaceProxy.objects.filter(name="oslo").update(display_name="Oslo")
        regions = self.client.get("/api/v2/regions").json()["regions"]
        assert [region["display_name"] for region in regions] == ["Oslo", "paris"]

    def test_admin(self):
        page = self.client.get("/admin/proxyhealth/workspaceproxy/health/")
        self.assertContains(page, "timeout (fake)")
        self.client.post("/admin/proxyhealth/workspaceproxy/health/check/", {"all": 1})
        assert active_fake().requested_checks == [None]

    def test_middleware_badge_and_metrics(self):
        page = self.client.get("/home/")
        self.assertContains(page, "ok")
        assert "https://paris.example.net" in page["Content-Security-Policy"]
        self.assertContains(self.client.get("/metrics"), f'{{proxy_id="{self.paris.pk}"}} 1.0')

    def test_save_is_recorded_on_commit(self):
        with self.captureOnCommitCallbacks(execute=True):
            self.paris.save()
        assert active_fake().requested_checks == [{self.paris.pk}]


class SavingTests(TransactionTestCase):
    def test_save_without_fake_sends_nothing(self):
        paris = create("paris")
        request_check([paris.pk]).result(timeout=1)
        assert health_status() == {}
        assert "fake_snapshot()" in snapshot().stale_reason

    @override_settings(CELERY_TASK_ALWAYS_EAGER=True)
    @fake_snapshot(paris="ok")
    def test_save_and_delete_in_eager_mode_run_no_task(self):
        paris = create("paris")
        assert proxy_hosts() == ["paris.example.net"]
        id = paris.pk
        paris.delete()
        assert active_fake().requested_checks == [{id}, {id}]
        assert force_update().statuses == {}


class LiveTests(LiveServerTestCase):
    def test_server_thread_reads_the_fake(self):
        from urllib.request import urlopen

        create("paris")
        with fake_snapshot(paris="ok"), urlopen(f"{self.live_server_url}/api/v2/regions") as response:
            assert b'"healthy":true' in response.read()


@fake_snapshot({"us-east": "unregistered"}, paris="ok")
class UnitTests(SimpleTestCase):
    def test_without_rows(self):
        assert proxy_hosts(healthy_only=True) == ["paris.example.com"]
        assert snapshot().by_name["us-east"].proxy_host == ""

    async def test_threads_and_coroutines(self):
        hosts = []
        thread = threading.Thread(target=lambda: hosts.append(proxy_hosts()))
        thread.start()
        thread.join()
        assert hosts == [await asyncio.to_thread(proxy_hosts)]


def test_fixture_of_pytest(fake_snapshot):
    fake = fake_snapshot(paris="ok")
    request_check()
    assert (proxy_hosts(), fake.requested_checks) == (["paris.example.com"], [None])

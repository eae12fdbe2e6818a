"""Two deployments that use the same keys of one Redis."""

import asyncio
import json
import uuid

import pytest
from django.core.cache import caches
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.utils.timezone import now

from proxyhealth import health
from proxyhealth.exceptions import ForeignSnapshot, RoundFailed
from proxyhealth.metrics.collector import collector
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import runner
from proxyhealth.rounds.recheck import run_check
from proxyhealth.storage import deployment, reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import RoundRequest, begin_round, take_token
from tests.storage.documents import changed_json
from tests.support.values import a_round, make_proxy, make_status, refuse_queries

OTHER = "2025-01-01T00:00:00.000000Z"
REASON = (
    f"it belongs to another deployment, whose database was set up at {OTHER}. "
    "Give each deployment a KEY_PREFIX of its own in CACHES."
)


def key(name):
    return caches["default"].make_key(f"proxyhealth:{name}")


@pytest.fixture
def paris(db):
    return WorkspaceProxy.objects.create(name="paris")


@pytest.fixture
def hand_over(redis_client, snapshot_key):
    """``hand_over()`` makes all keys those of another deployment, as after its round."""

    def change(identity=OTHER):
        document = redis_client.get(snapshot_key)
        document = changed_json(lambda whole: whole.update(deployment=identity))(document)
        commit_id = json.loads(document)["commit"].encode()
        redis_client.set(snapshot_key, document.replace(commit_id, uuid.uuid4().hex.encode()))
        redis_client.hset(key("round-stats"), "deployment", identity)

    return change


def stored(redis_client, snapshot_key):
    return json.loads(redis_client.get(snapshot_key))


def test_commit__stamps_the_identity(paris, redis_client, snapshot_key):
    runner.run_round()
    identity = stored(redis_client, snapshot_key)["deployment"]
    assert identity == deployment.read_identity() != ""
    assert redis_client.hget(key("round-stats"), "deployment").decode() == identity
    assert not reader.read().stale


def test_identity__is_that_of_the_first_migration(db):
    first = MigrationRecorder(connection).migration_qs.get(app="proxyhealth", name="0001_initial")
    before = deployment.read_identity()
    assert before == first.applied.isoformat().replace("+00:00", "Z")
    MigrationRecorder(connection).record_applied("proxyhealth", "9999_of_a_later_release")
    assert deployment.read_identity() == before


def test_identity__is_the_same_in_every_thread(db):
    identity = deployment.read_identity()
    deployment.forget()
    assert not deployment.is_foreign(identity)
    assert deployment._identity.value == identity
    assert deployment.is_foreign(OTHER)


def test_identity__without_a_database_is_unknown():
    assert deployment.read_identity() == ""
    assert not deployment.is_foreign(OTHER)


def test_identity__is_kept_while_the_database_is_down(db):
    identity = deployment.read_identity()
    with connection.execute_wrapper(refuse_queries):
        assert deployment.read_identity() == identity


def test_identity__without_migrations_is_unknown(db):
    MigrationRecorder(connection).migration_qs.filter(app="proxyhealth").delete()
    assert deployment.read_identity() == ""
    runner.run_round()
    assert not reader.read().stale


def test_read__of_another_deployment_is_refused(paris, hand_over, caplog):
    runner.run_round()
    hand_over()
    reader.forget()  # a fresh process
    snapshot = health.snapshot()
    assert snapshot.statuses == {}
    assert health.proxy_hosts() == []
    assert REASON in snapshot.stale_reason
    assert f"snapshot stale: The snapshot in the cache cannot be used: {REASON}" in caplog.text
    assert "Traceback" not in caplog.text


def test_read__keeps_its_copy_when_another_takes_over(paris, hand_over):
    runner.run_round()
    before = reader.read()
    hand_over()
    after = reader.read_anew()
    assert after.statuses == before.statuses
    assert REASON in after.stale_reason


def test_scrape__of_another_deployment_is_not_up(paris, hand_over):
    runner.run_round()
    hand_over()
    reader.forget()
    (up,) = collector.collect()
    assert (up.name, up.samples[0].value) == ("proxyhealth_snapshot_up", 0.0)


def test_read__forgets_what_was_read_too_early(paris, hand_over, monkeypatch):
    """The database was down when the process started, so it could not know its own identity."""
    runner.run_round()
    hand_over()
    reader.forget()
    deployment.forget()
    monkeypatch.setattr(deployment, "_query", lambda connection: "")
    assert not reader.read_anew().stale
    monkeypatch.undo()
    deployment._identity._queried_at -= deployment._RETRY_INTERVAL
    snapshot = reader.read_anew()
    assert snapshot.statuses == {}
    assert REASON in snapshot.stale_reason


def test_read__follows_a_replaced_database(paris, hand_over, monkeypatch):
    """A developer recreates the database while the web server runs."""
    runner.run_round()
    hand_over()
    assert reader.read_anew().stale
    monkeypatch.setattr(deployment, "_query", lambda connection: OTHER)
    deployment._identity._queried_at -= deployment._RETRY_INTERVAL
    assert not reader.read_anew().stale


def test_read__makes_no_query_in_its_thread(paris, hand_over, django_assert_num_queries):
    runner.run_round()
    for prepare in (lambda: None, hand_over):
        prepare()
        reader.forget()
        deployment.forget()
        with django_assert_num_queries(0):
            health.snapshot()


def test_read__works_in_async_code(paris, hand_over):
    runner.run_round()
    hand_over()
    reader.forget()
    deployment.forget()

    async def view():
        return health.snapshot()

    assert REASON in asyncio.run(view()).stale_reason


def test_read__a_document_without_identity_is_ours(paris, redis_client, snapshot_key):
    """An older version wrote it. The next commit stamps it."""
    runner.run_round()
    older = changed_json(lambda whole: whole.pop("deployment"))(redis_client.get(snapshot_key))
    redis_client.set(snapshot_key, older)
    redis_client.hdel(key("round-stats"), "deployment")
    reader.forget()
    assert not reader.read().stale
    run_check([paris.pk])
    assert stored(redis_client, snapshot_key)["deployment"] == deployment.read_identity()


def test_commit__without_a_database_keeps_the_identity(redis_client, snapshot_key):
    commit([make_status(make_proxy())], take_token(), full_round=a_round())
    document = changed_json(lambda whole: whole.update(deployment=OTHER))(redis_client.get(snapshot_key))
    redis_client.set(snapshot_key, document)
    commit([make_status(make_proxy())], take_token())
    assert stored(redis_client, snapshot_key)["deployment"] == OTHER
    assert len(reader.read().statuses) == 2


def test_check__changes_no_snapshot_of_another(paris, hand_over, redis_client, snapshot_key):
    runner.run_round()
    hand_over()
    before = redis_client.get(snapshot_key)
    with pytest.raises(RoundFailed, match="KEY_PREFIX"):
        run_check([paris.pk])
    assert redis_client.get(snapshot_key) == before


@pytest.mark.parametrize("request_", [RoundRequest(min_gap=30), RoundRequest(rerun_if_busy=True)])
def test_round__is_refused_while_another_is_fresh(paris, hand_over, redis_client, snapshot_key, request_):
    runner.run_round()
    hand_over()
    before = redis_client.get(snapshot_key)
    with pytest.raises(RoundFailed, match="KEY_PREFIX"):
        runner.run_round(request_)
    with pytest.raises(RoundFailed, match="KEY_PREFIX"):
        health.force_update()
    assert redis_client.get(snapshot_key) == before
    assert not redis_client.exists(key("lease"), key("tick")), "the other's rounds go on"
    assert redis_client.hget(key("round-stats"), "error").decode() == f"the cache cannot be used: {REASON}"


def test_round__takes_over_when_the_other_has_stopped(paris, hand_over, redis_client, snapshot_key, caplog):
    runner.run_round()
    hand_over()
    redis_client.hset(key("round-stats"), "full", int((now().timestamp() - 200) * 1_000_000))
    assert runner.run_round() == "success"
    assert f"snapshot replaced: {REASON}" in caplog.text
    assert stored(redis_client, snapshot_key)["deployment"] == deployment.read_identity()
    assert list(reader.read_anew().statuses) == [paris.pk]
    assert not reader.read().stale


def test_left_over__of_a_round_replaces_no_other(db, hand_over):
    """Its plan may be the other's."""
    commit([make_status(make_proxy())], take_token(), full_round=a_round())
    hand_over()
    token = take_token()
    with pytest.raises(ForeignSnapshot, match="KEY_PREFIX"):
        commit([], token, full_round=a_round(), lease=token + 1)


def test_begin_round__ignores_an_owner_if_nothing_is_known(redis_client):
    redis_client.hset(key("round-stats"), mapping={"deployment": OTHER, "full": take_token()})
    assert begin_round().outcome == "begun"

"""Events over a real socket: what is answered with 200 is stored, once, in the key's organisation."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest

from tests.collector.service import Collector, key_of, payload
from tests.realtime.event_data import counted
from tests.warehouse_data import one, rows
from tokentra_dagster.collector.limits import Limits
from tokentra_dagster.realtime.events import FIELDS
from tokentra_dagster.realtime.flush import flush


@pytest.fixture
def collector(database):
    with Collector(database) as running:
        yield running


def ids(database) -> list[str]:
    return [row["event_id"] for row in rows(database, "SELECT event_id FROM raw.usage_events ORDER BY event_id")]


def test_one_event_a_list_and_an_object_with_events_are_stored_and_become_records(collector, database):
    key = key_of(database)
    assert collector.post(payload("a", feature="search", reported_cost="0.25", metadata={"x": [1.5, "é"]}), key)[:2] == (
        200, {"stored": 1, "duplicates": 0, "refused": []},
    )  # fmt: skip
    assert collector.post([payload("b"), payload("c")], key, zipped=True).body["stored"] == 2
    assert collector.post({"events": [payload("d")]}, key).body["stored"] == 1
    assert collector.post([], key).body == {"stored": 0, "duplicates": 0, "refused": []}
    flush(database)
    assert counted(database) == {"a": 1, "b": 1, "c": 1, "d": 1}
    (found,) = rows(database, "SELECT feature, estimated_cost, provider_metadata FROM usage_records WHERE feature IS NOT NULL")
    assert (found["feature"], float(found["estimated_cost"]), found["provider_metadata"]["x"]) == ("search", 0.25, [1.5, "é"])


def test_a_repeat_is_a_duplicate_and_another_event_of_the_same_id_is_told_and_does_not_count(collector, database):
    key = key_of(database)
    first = payload("a", reported_cost=0.1 + 0.2, metadata={"n": 1e23, "z": {"b": 1, "a": None}}, latency_ms=3)
    assert collector.post(first, key).body["stored"] == 1
    again = collector.post([first, payload("b"), first], key)
    assert (again.status, again.body) == (200, {"stored": 1, "duplicates": 2, "refused": []})
    other = collector.post([{**first, "input_tokens": 101}, payload("c"), payload("c", output_tokens=7)], key)
    assert (other.status, other.body["stored"], other.body["duplicates"]) == (200, 1, 0)
    assert [(r["index"], r["event_id"]) for r in other.body["refused"]] == [(0, "a"), (2, "c")]
    assert all("was sent before with other content; the first counts" in r["error"] for r in other.body["refused"])
    assert one(database, "SELECT input_tokens::int FROM raw.usage_events WHERE event_id = 'a'") == 100
    assert collector.post({**first, "input_tokens": 101}, key).status == 422, "nothing of it is stored"


def test_a_bad_event_is_told_by_its_place_and_the_good_ones_are_stored(collector, database):
    key = key_of(database)
    sent = [payload("a"), payload("b", input_tokens=-1), 7, {"event_id": "c"}, payload("d", totalTokens=3), payload("e"),
            payload("f", occurred_at="2030-01-01T00:00:00Z"), payload("g", user_id="a\x00b"), payload("h", input_tokens=10**30)]  # fmt: skip
    answer = collector.post(sent, key)
    assert (answer.status, answer.body["stored"], ids(database)) == (200, 2, ["a", "e"])
    said = {r["index"]: (r["event_id"], r["error"]) for r in answer.body["refused"]}
    words = {1: ("b", "input_tokens is -1"), 2: (None, "The event is 7; it must be an object."), 3: ("c", "has no occurred_at"),
             4: ("d", "unknown field 'totalTokens'"), 6: ("f", "in the future"), 7: ("g", "NUL"), 8: ("h", "whole number")}  # fmt: skip
    assert said.keys() == words.keys()
    for place, (event_id, sentence) in words.items():
        assert said[place][0] == event_id and sentence in said[place][1] and "\n" not in said[place][1]
    assert collector.post(payload("z", provider="aggregated"), key).status == 422


def test_an_event_that_only_the_database_refuses_stops_no_other_of_its_commit(collector, database):
    with database.connect() as db:
        db.execute("ALTER TABLE raw.usage_events ADD CONSTRAINT no_poison CHECK (model <> 'poison')")
    key = key_of(database)
    answer = collector.post([payload(str(n), model="poison" if n == 37 else "gpt-4o") for n in range(100)], key)
    assert (answer.status, answer.body["stored"]) == (200, 99)
    (refused,) = answer.body["refused"]
    assert refused["index"] == 37 and "no_poison" in refused["error"]
    assert len(ids(database)) == 99


def test_requests_that_wait_are_stored_together_by_one_commit(collector, database):
    keys = [key_of(database, org) for org in ("acme", "globex")]
    with ThreadPoolExecutor(20) as pool, database.connect() as db:
        db.execute("LOCK raw.usage_events IN ACCESS EXCLUSIVE MODE")
        first = pool.submit(collector.post, payload("first"), keys[0])
        wait_until(
            lambda: one(
                database,
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'tokentra collect'",
            )
        )
        answers = [pool.submit(collector.post, payload(f"e{n}"), keys[n % 2]) for n in range(18)]
        wait_until(lambda: collector.app.state.writer._waiting == 19)
        db.rollback()
        assert [answer.result().body["stored"] for answer in [first, *answers]] == [1] * 19
    found = rows(database, "SELECT count(DISTINCT received_at) AS commits, count(*) AS n FROM raw.usage_events")
    assert found == [{"commits": 2, "n": 19}]
    assert (
        one(
            database,
            "SELECT count(*) FROM raw.usage_events AS e JOIN app.organizations AS o ON o.id = e.org_id WHERE o.name = 'globex'",
        )
        == 9
    )


def test_when_too_much_waits_the_sender_is_told_when_to_come_back_and_what_was_taken_is_stored(database):
    key = key_of(database)
    with Collector(database, Limits(waiting_events=10)) as collector, ThreadPoolExecutor(4) as pool:
        with database.connect() as db:
            db.execute("LOCK raw.usage_events IN ACCESS EXCLUSIVE MODE")
            taken = pool.submit(collector.post, [payload(f"a{n}") for n in range(8)], key)
            wait_until(lambda: collector.app.state.writer._waiting == 8)
            refused = collector.post([payload(f"b{n}") for n in range(3)], key)
            assert (refused.status, refused.headers["retry-after"]) == (429, "1")
            assert "8 events wait to be stored" in refused.body["error"]
            full = pool.submit(collector.post, [payload(f"c{n}") for n in range(2)], key)
            wait_until(lambda: collector.ask("GET", "/ready").status == 503)
        assert (taken.result().body["stored"], full.result().body["stored"]) == (8, 2)
        assert collector.post([payload(f"b{n}") for n in range(3)], key).body["stored"] == 3
        assert collector.ask("GET", "/ready").status == 200
    assert len(ids(database)) == 13


def test_a_database_that_goes_away_is_503_and_the_next_request_after_it_is_back_is_stored(collector, database, server_url):
    key = key_of(database)
    assert collector.post(payload("a"), key).status == 200
    name = database.parts["dbname"]
    with closing(psycopg.connect(server_url, autocommit=True)) as admin:
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        gone = collector.post(payload("b"), key)
        assert (gone.status, gone.headers["retry-after"]) == (503, "2")
        assert "send the same events again later" in gone.body["error"]
        wait_until(lambda: collector.ask("GET", "/ready").status == 503)
        assert collector.ask("GET", "/health")[:2] == (200, {"status": "ok"})
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert collector.post(payload("b"), key).body["stored"] == 1
    with closing(psycopg.connect(server_url, autocommit=True)) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
    assert collector.post(payload("c"), key).body["stored"] == 1, "a connection that broke while idle costs nobody a request"
    assert ids(database) == ["a", "b", "c"]


def test_what_was_taken_is_stored_and_answered_when_the_collector_is_asked_to_stop(database):
    key = key_of(database)
    with ThreadPoolExecutor(2) as pool, Collector(database) as collector:
        with database.connect() as db:
            db.execute("LOCK raw.usage_events IN ACCESS EXCLUSIVE MODE")
            taken = pool.submit(collector.post, payload("a"), key)
            wait_until(lambda: collector.app.state.writer._waiting == 1)
            stopping = threading.Thread(target=collector.stop)
            stopping.start()
            wait_until(lambda: collector.app.state.stopping.is_set())
        assert taken.result().body["stored"] == 1
        stopping.join()
    assert ids(database) == ["a"]


def test_openapi_says_what_is_taken_and_answered(collector):
    document = collector.ask("GET", "/openapi.json").body
    post = document["paths"]["/v1/events"]["post"]
    single, many, wrapped = post["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    assert set(single["properties"]) == set(FIELDS) and single["required"] == list(FIELDS[:6])
    assert many["items"] == wrapped["properties"]["events"]["items"] == single
    assert {"200", "400", "401", "408", "413", "415", "422", "429", "503"} <= set(post["responses"])
    assert post["security"] == [{"key": []}] and document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert "$ref" not in json.dumps(single), "complete by itself"


def wait_until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)

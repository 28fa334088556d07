"""What nobody should send: each gets its status and one sentence, stores nothing, and the collector goes on."""

from __future__ import annotations

import gzip
import json
import random
import socket
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.collector.service import Collector, key_of, payload
from tests.collector.test_events_route import wait_until
from tests.warehouse_data import one
from tokentra_dagster.collector.body import decompressed
from tokentra_dagster.collector.limits import Limits, Refused
from tokentra_dagster.warehouse.database import Database

LIMITS = Limits(
    body_bytes=100_000, decompressed_bytes=300_000, events=50, header_bytes=5000, header_seconds=0.5, body_seconds=0.7,
    held_bytes=400_000, containers=5000,
)  # fmt: skip


@pytest.fixture(scope="module")
def running(server_url, template_database):
    """One collector with low limits for every test here, and a key."""
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE collector_limits TEMPLATE {template_database}")
        admin.execute('ALTER DATABASE collector_limits SET search_path = "$user", public, app, raw, marts, analytics')
    database = Database(server_url.rsplit("/", 1)[0] + "/collector_limits")
    with Collector(database, LIMITS) as collector:
        yield collector, key_of(database)


@pytest.fixture
def key(running) -> str:
    return running[1]


@pytest.fixture
def collector(running):
    collector, key = running
    stored = "SELECT count(*) FROM raw.usage_events"
    before = one(collector.database, stored)
    yield collector
    assert collector.post(payload(f"after {before}"), key).body["stored"] == 1, "it goes on"
    assert one(collector.database, stored) == before + 1, "and nothing else was stored"


def nested(depth: int) -> str:
    return json.dumps(payload(metadata={"x": None})).replace("null", "[" * depth + "]" * depth)


GZIP = gzip.compress(json.dumps(payload()).encode())


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"", {}, 400, "The body is not JSON (Expecting value, line 1, column 1)."),
        (b"{", {}, 400, "The body is not JSON (Expecting property name"),
        (b"[1,]", {}, 400, "The body is not JSON"),
        (b'{"a": 1} {"b": 2}', {}, 400, "The body is not JSON (Extra data"),
        (b'"text"', {}, 400, "neither an event nor a list of events"),
        (b"null", {}, 400, "neither an event nor a list of events"),
        (b'{"events": 3}', {}, 400, "neither an event nor a list of events"),
        (b'{"events": [], "org": 1}', {}, 400, "Beside events the body has 'org'"),
        (b'{"a": NaN}', {}, 400, "NaN is no JSON number"),
        (b'{"a": -Infinity}', {}, 400, "-Infinity is no JSON number"),
        (b'{"a": ' + b"1" * 5000 + b"}", {}, 400, "The body is not JSON that can be read"),
        (b'{"a": "\x00"}', {}, 400, "The body is not JSON (Invalid control character"),
        (b'{"a": "\xff"}', {}, 400, "The body is not UTF-8 (byte 7)."),
        ('{"a": "é"}'.encode("latin-1"), {}, 400, "The body is not UTF-8 (byte 7)."),
        ('{"a": 1}'.encode("utf-16"), {}, 400, "The body is not UTF-8 (byte 0)."),
        ("\ufeff{}".encode(), {}, 400, "The body is not JSON"),
        (nested(19).encode(), {}, 400, "more than 20 deep"),
        (nested(990).encode(), {}, 400, "more than 20 deep"),
        (b"[" * 4_000, {}, 400, "more than 20 deep"),
        (b'{"a":' * 4_000, {}, 400, "more than 20 deep"),
        (b"[" + b"[]," * 5000 + b"1]", {}, 413, "The body has more than 5,000 lists and objects; send fewer events at a time."),
        (json.dumps([payload(str(n)) for n in range(51)]).encode(), {}, 413, "The request has 51 events; send at most 50 at a time."),
        (b" " * 100_001, {}, 413, "The body is larger than 100,000 bytes; send fewer events at a time."),
        (b"{}", {"Content_Type": "text/plain"}, 415, "Content-Type is 'text/plain'; send application/json in UTF-8."),
        (b"{}", {"Content_Type": "application/json; charset=latin-1"}, 415, "send application/json in UTF-8"),
        (b"{}", {"Content_Type": ""}, 415, "Content-Type is ''"),
        (b"{}", {"Content_Encoding": "br"}, 415, "Content-Encoding is 'br'; send gzip, deflate or nothing."),
        (b"{}", {"Content_Encoding": "gzip, gzip"}, 415, "send gzip, deflate or nothing"),
        (b"{}", {"Content_Encoding": "gzip"}, 400, "cannot be decompressed"),
        (b"", {"Content_Encoding": "gzip"}, 400, "the body is empty"),
        (GZIP[:-9], {"Content_Encoding": "gzip"}, 400, "ends before it is whole"),
        (GZIP[:-6] + b"\0" * 6, {"Content_Encoding": "gzip"}, 400, "cannot be decompressed"),
        (gzip.compress(b" " * 300_001), {"Content_Encoding": "gzip"}, 413, "larger than 300,000 bytes when decompressed"),
        (gzip.compress(b" " * 200_000) * 2, {"Content_Encoding": "gzip"}, 413, "larger than 300,000 bytes when decompressed"),
        (json.dumps(payload(occurred_at="9" * 90_000)).encode(), {}, 422, "write an ISO time"),
        (json.dumps(payload(reported_cost=1e308)).encode(), {}, 422, "must be a decimal number from 0 to"),
        (json.dumps(payload()).replace("100", "1e999").encode(), {}, 422, "must be a whole number"),
        (json.dumps(payload(reported_cost="1e999999999")).encode(), {}, 422, "must be a decimal number from 0 to"),
        (json.dumps(payload(metadata={"x": "\ud800"})).encode(), {}, 422, "half a surrogate pair"),
        (json.dumps(payload("\ud800\x00")).encode(), {}, 422, "NUL character or half a surrogate pair"),
    ],
)  # fmt: skip
def test_it_is_refused_with_one_sentence(collector, key, body, headers, status, words):
    answer = collector.post(body, key, **headers)
    said = answer.body["error"] if status != 422 else answer.body["refused"][0]["error"]
    assert (answer.status, "\n" in said, len(said) < 500) == (status, False, True), answer
    assert words in said


def test_a_bomb_takes_no_more_memory_than_is_allowed():
    layer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(layer.compress(bytes(2**20)) for _ in range(200)) + layer.flush()
    assert len(bomb) < 2**20
    tracemalloc.start()
    with pytest.raises(Refused, match="larger than 5,000,000 bytes when decompressed"):
        decompressed(bomb, "gzip", 5_000_000)
    assert tracemalloc.get_traced_memory()[1] < 15_000_000
    tracemalloc.stop()


def link(collector: Collector) -> socket.socket:
    return socket.create_connection(("127.0.0.1", collector.port), timeout=20)


def head(key: str, *more: str) -> bytes:
    lines = ["POST /v1/events HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", "Content-Type: application/json", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def rest(connection: socket.socket) -> str:
    """What the collector says until it closes the connection."""
    said = b""
    while chunk := connection.recv(65536):
        said += chunk
    return said.decode()


def test_who_connects_and_says_nothing_or_half_a_header_is_told_and_let_go(collector):
    for begin in (b"", b"P", b"POST /v1/events HTTP/1.1\r\nHost: x\r\nX-Slow: "):
        with link(collector) as connection:
            connection.sendall(begin)
            began = time.monotonic()
            said = rest(connection)
            assert said.startswith("HTTP/1.1 408 ") and "The headers did not come within 0.5 seconds." in said
            assert time.monotonic() - began < 10


def test_headers_that_come_a_byte_at_a_time_win_no_time(collector, key):
    with link(collector) as connection:
        began = time.monotonic()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for byte in head(key) * 1000:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
        assert 0.4 < time.monotonic() - began < 10


def test_a_second_request_on_a_connection_has_the_same_time_for_its_headers(collector, key):
    with link(collector) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b'{"status":"ok"}' in connection.recv(65536)
        connection.sendall(b"GET /hea")
        assert rest(connection).startswith("HTTP/1.1 408 ")


@pytest.mark.parametrize("length", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_a_body_that_does_not_come_is_told_and_let_go(collector, key, length):
    with link(collector) as connection:
        connection.sendall(head(key, length))
        said = rest(connection)
        assert said.startswith("HTTP/1.1 408 ") and "The body did not come within 0.7 seconds." in said
        assert "connection: close" in said.lower()


def test_a_body_that_trickles_wins_no_time(collector, key):
    with link(collector) as connection:
        connection.sendall(head(key, "Content-Length: 90000"))
        began = time.monotonic()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(2000):
                connection.sendall(b" ")
                time.sleep(0.02)
        assert 0.6 < time.monotonic() - began < 15


def test_a_body_that_is_said_to_be_too_large_is_refused_before_it_is_sent(collector, key):
    for length in ("100001", "9" * 19):
        with link(collector) as connection:
            connection.sendall(head(key, f"Content-Length: {length}"))
            said = rest(connection)
            assert "413" in said.split("\r\n")[0] or "400" in said.split("\r\n")[0], said


def test_a_body_in_chunks_is_counted_as_it_comes(collector, key):
    with link(collector) as connection:
        connection.sendall(head(key, "Transfer-Encoding: chunked"))
        chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
        connection.sendall(chunk * 7)
        assert "HTTP/1.1 413 " in rest(connection)


@pytest.mark.parametrize(
    ("begin", "endless"),
    [(b"GET / HTTP/1.1\r\nHost: x\r\n", b"X-More: y\r\n"), (b"GET /", b"x"), (b"GET / HTTP/1.1\r\nX: ", b"y")],
)
def test_headers_without_end_are_cut_off(collector, begin, endless):
    with link(collector) as connection:
        connection.sendall(begin)
        try:
            for _ in range(100):
                connection.sendall(endless * 100)
            assert "HTTP/1.1 431 " in rest(connection)
        except (BrokenPipeError, ConnectionResetError):
            pass


def test_a_body_without_end_behind_a_wrong_key_is_cut_off(collector):
    with link(collector) as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
        connection.sendall(head("tokentra_wrong", "Content-Length: 99999999999"))
        for _ in range(10_000):
            connection.sendall(b" " * 10_000)


def test_what_is_no_http_is_refused(collector):
    for begin in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ):
        with link(collector) as connection:
            connection.sendall(begin)
            assert rest(connection).startswith("HTTP/1.1 400 ")


def test_two_lengths_are_no_way_to_smuggle_a_request(collector, key):
    for lengths in (("Content-Length: 4", "Content-Length: 300"), ("Content-Length: 4", "Transfer-Encoding: chunked")):
        with link(collector) as connection:
            connection.sendall(head(key, *lengths) + b"0\r\n\r\n" + head(key, "Content-Length: 2") + b"{}")
            assert rest(connection).startswith("HTTP/1.1 400 ")


def test_bodies_that_are_held_at_one_time_are_bounded(collector, key):
    with ThreadPoolExecutor(5) as pool:
        connections = [link(collector) for _ in range(5)]
        for connection in connections:
            connection.sendall(head(key, "Content-Length: 100000") + b" " * 99_999)
        answers = list(pool.map(rest, connections))
    first = sorted(said.split(" ")[1] for said in answers)
    assert first == ["408", "408", "408", "429", "429"] or first == ["408", "408", "408", "408", "429"], first
    refused = next(said for said in answers if " 429 " in said.split("\r\n")[0])
    assert "retry-after: 1" in refused and "Too many large requests at one time" in refused
    for connection in connections:
        connection.close()
    wait_until(lambda: collector.app.state.bodies._held == 0)


def test_other_addresses_and_methods_get_a_sentence(collector):
    assert collector.ask("GET", "/v1/event")[:2] == (
        404,
        {"error": "There is nothing at /v1/event; /openapi.json says what there is."},
    )
    assert collector.ask("GET", "/v1/events").body == {"error": "/v1/events does not take GET; it takes POST."}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
CHANGED = st.dictionaries(
    st.sampled_from([*payload(), "org_id", "reported_cost", "metadata", "latency_ms", "user_id", "token_details"]),
    JSON,
    max_size=3,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(st.lists(CHANGED | JSON, max_size=4), st.randoms(use_true_random=False))
def test_whatever_comes_is_answered_and_every_event_is_accounted_for(running, changes, generator):
    collector, key = running
    sent = [{**payload(str(n)), **one} if isinstance(one, dict) else one for n, one in enumerate(changes)]
    data = bytearray(json.dumps(sent).encode())
    broken = generator.random() < 0.3
    if broken:
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
    answer = collector.post(bytes(data), key)
    assert answer.status in (200, 400, 422), answer
    if answer.status == 400:
        assert set(answer.body) == {"error"} and "\n" not in answer.body["error"]
    elif not broken:
        assert answer.body["stored"] + answer.body["duplicates"] + len(answer.body["refused"]) == len(sent)


def test_bytes_at_random_are_refused(running):
    collector, key = running
    generator = random.Random(7)
    for _ in range(50):
        assert collector.post(generator.randbytes(generator.randint(1, 300)), key).status == 400
        assert collector.post(generator.randbytes(generator.randint(1, 300)), key, Content_Encoding="gzip").status == 400
